"""Fine-tune on your own labeled clips, from a run of the pretraining recipe of the same name.

    python -m mmjax.main --task=finetune --config=clips --config.data.train=datasets/my_clips \\
        --override_checkpoint=runs/pretrain-clips

Without --override_checkpoint, the tower is randomly initialized.
"""

from mmjax import config
from mmjax.configs.pretrain import clips as pretraining


def get_config(arg: str = ""):
    """Returns the config; the recipe has no argument."""
    config.variants(arg)
    cfg = config.base()
    cfg.task = "finetune"
    cfg.batch_size = 32
    cfg.total_steps = 300
    cfg.log_every = 20
    cfg.checkpoint = dict(every=100, keep=2)
    source = config.plain(pretraining.get_config())
    cfg.data = dict(train="", split="train", video=source["data"]["video"], label=dict())
    tower = {"name": "vit_tiny", **source["model"]["video"]}  # the same shapes, so that it loads
    cfg.model = dict(name="classifier", backbone=tower, scan_unroll=0)
    cfg.loss = dict(label_smoothing=0.1)
    cfg.optimizer = dict(
        name="adamw",
        weight_decay=0.05,
        clip_norm=1.0,
        lr_multipliers=((r"^video/", 0.3),),
        schedule=dict(name="cosine", base=1e-3, warmup_steps=30),
    )
    cfg.init_allow = ("^(audio|text|touch|head)/", "^extra/", "^classifier/")
    cfg.evals = dict(test=dict(type="classification", batch_size=32))
    return cfg
