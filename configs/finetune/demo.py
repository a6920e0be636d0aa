"""Fine-tuning in miniature: classify the shape in a clip of the procedural world, from few labels.

    python -m mmjax.main --task=finetune --override_checkpoint=runs/pretrain-demo
    python -m mmjax.main --task=finetune --model_dir=runs/finetune-scratch

The first command starts from the video tower that `--task=pretrain` trained (run it before); the
second starts from random weights. The difference is the benefit of pretraining. Each takes less
than a minute on two CPU cores. `--config=demo:ut_fac` and `demo:mmv_fac` fine-tune the runs of the
pretraining demos of the same names.
"""

from mmjax import config
from mmjax.configs.pretrain import demo as pretraining

# The video tower of each model, with the same shapes, so that it can be loaded.
_BACKBONES = dict(
    tx_fac=lambda model: {"name": "vit_tiny", **model["video"], "scan_unroll": 0},
    ut_fac=lambda model: {
        "name": "ut_tiny",
        **model["video"],
        "num_layers": model["num_layers"],
        "scan_unroll": 0,
    },
    mmv_fac=lambda model: {"name": "tsm_tiny"},
)


def get_config(arg: str = ""):
    """Returns the config.

    Args:
      arg: The argument of the pretraining demo.
    """
    source = config.plain(pretraining.get_config(arg).model)
    smoke = "smoke" in arg.split(",")
    cfg = config.base()
    cfg.task = "finetune"
    cfg.batch_size = 8 if smoke else 32
    cfg.total_steps = 2 if smoke else 200
    cfg.log_every = 1 if smoke else 25
    cfg.checkpoint.every = 1 if smoke else 200
    world = "world:tiny" if smoke else "world"
    cfg.data = dict(
        train=world,
        split="train",
        limit=16 if smoke else 160,
        video=dict(num_frames=4 if smoke else 8, size=32, scale_jitter=False, flip=False),
        label=dict(),
    )
    cfg.model = dict(
        name="classifier", backbone=_BACKBONES[source["name"]](source), dropout_rate=0.1
    )
    cfg.loss = dict(label_smoothing=0.1)
    cfg.optimizer = dict(
        name="adamw",
        weight_decay=0.05,
        clip_norm=1.0,
        lr_multipliers=((r"^(video|encoder)/", 0.3),),
        schedule=dict(name="cosine", base=1e-3, warmup_steps=1 if smoke else 15),
    )
    # The other towers of a pretraining run, and the classifier, which is randomly initialized.
    cfg.init_allow = ("^(audio|text|touch|head)/", "^extra/", "^classifier/")
    cfg.evals = dict(
        shape=dict(type="classification", data=world, batch_size=cfg.batch_size),
    )
    return cfg
