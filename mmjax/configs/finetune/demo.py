"""Fine-tuning in miniature: which shape moves in a clip of the procedural world, from few labels.

    python -m mmjax.main --task=finetune --override_checkpoint=runs/pretrain-demo
    python -m mmjax.main --task=finetune --model_dir=runs/finetune-scratch

The first starts from the video tower that `--task=pretrain` trained (run it before), the second
from random weights: the difference is what pretraining is worth. Under a minute on two CPU cores.
"""

from mmjax import config
from mmjax.configs.pretrain import demo as pretraining


def get_config(arg: str = ""):
    """`arg`: 'smoke' for two steps on the tiny world, which tests use."""
    cfg = config.base()
    cfg.task = "finetune"
    smoke = arg == "smoke"
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
    tower = pretraining.get_config(arg).model.video  # of the same form, or it could not be loaded
    cfg.model = dict(
        name="classifier",
        backbone={"name": "vit_tiny", **config.plain(tower)},
        dropout_rate=0.1,
        scan_unroll=0,
    )
    cfg.loss = dict(label_smoothing=0.1)
    cfg.optimizer = dict(
        name="adamw",
        weight_decay=0.05,
        clip_norm=1.0,
        lr_multipliers=((r"^video/", 0.3),),
        schedule=dict(name="cosine", base=1e-3, warmup_steps=1 if smoke else 15),
    )
    # What a pretraining run has and this model has not, and the classifier, which is new.
    cfg.init_allow = ("^(audio|text|touch|head)/", "^extra/", "^classifier/")
    cfg.evals = dict(
        shape=dict(type="classification", data=world, batch_size=cfg.batch_size),
    )
    return cfg
