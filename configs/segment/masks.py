"""Your own images and masks: cross entropy, or cross entropy rescaled by diagnostic texts.

    mmjax build --images photos --masks masks --mask-classes classes.txt --out datasets/photos \\
        --size 0
    python -m mmjax.main --task=segment --config=masks --config.data.train=datasets/photos

The argument is a model, by default 'lraspp_mobilenet_v3_large'; docs/segment.md lists them. Start
with pretrained weights when you have them: the file of a backbone, or of a complete model.

    --override_checkpoint=mobilenet_v3_large.pth
"""

from mmjax import config
from mmjax.models.segmentation.registry import MODELS


def get_config(arg: str = "lraspp_mobilenet_v3_large"):
    """Returns the config.

    Args:
      arg: A name in `mmjax.models.segmentation.registry.MODELS`.
    """
    models = tuple(name for name in MODELS if not name.endswith("_demo"))
    words = config.variants(arg, *models)
    cfg = config.base()
    cfg.task = "segment"
    cfg.batch_size = 16
    cfg.total_steps = 10_000
    cfg.log_every = 50
    cfg.init_allow = ("^(extra/)?(head|aux_head)/",)  # of other classes
    cfg.data = dict(
        train="datasets/photos",
        split="train",
        segmentation=dict(size=512, shorter_side=512, scale=(0.5, 2.0)),
    )
    cfg.model = dict(name=config.only(words, models, "lraspp_mobilenet_v3_large", what="model"))
    cfg.optimizer = dict(
        name="adamw",
        weight_decay=0.05,
        weight_decay_exclude=("bias$", "norm"),
        clip_norm=10.0,
        schedule=dict(name="cosine", base=5e-4, warmup_steps=500),
    )
    masks = dict(type="segmentation", batch_size=8)
    cfg.checkpoint = dict(every=500, keep=2, best="masks/miou")
    cfg.evals = dict(masks=dict(every=500, num_examples=8, **masks))
    return cfg
