"""Segmentation in miniature, on procedural images of several objects.

    python -m mmjax.main --task=segment

LRASPP with few channels learns eight shapes and the background from 64 × 64 crops. Expect a mIoU
of about 0.23, in half a minute on two CPU cores. `demo:rescale` and `demo:contrastive` train with
diagnostic texts. They need a text encoder that knows the words of the describer, by default
runs/flair-differences; docs/segment.md has the commands and results.
"""

from mmjax import config


def get_config(arg: str = "cross_entropy"):
    """Returns the config.

    Args:
      arg: 'cross_entropy', 'rescale' or 'contrastive'; 'smoke' for two steps (for tests); or both
        separated by a comma.
    """
    words = config.variants(arg, "cross_entropy", "rescale", "contrastive", "smoke")
    smoke = "smoke" in words
    name = config.only(
        words, ("cross_entropy", "rescale", "contrastive"), "cross_entropy", what="loss"
    )
    cfg = config.base()
    cfg.task = "segment"
    cfg.batch_size = 8 if smoke else 16
    cfg.total_steps = 2 if smoke else 400
    cfg.log_every = 1 if smoke else 25
    cfg.checkpoint.every = 1 if smoke else 200
    world = "world:scenes_tiny" if smoke else "world:scenes"
    cfg.data = dict(train=world, split="train", segmentation=dict(size=64, scale=(0.75, 1.5)))
    cfg.model = dict(name="lraspp_demo")
    cfg.optimizer = dict(
        name="adamw",
        weight_decay=0.05,
        clip_norm=10.0,
        schedule=dict(name="cosine", base=8e-3, warmup_steps=1 if smoke else 40),
    )
    if name != "cross_entropy":
        cfg.text = dict(encoder="runs/flair-differences", size=64, writer=dict(name="describer"))
    if name == "rescale":
        cfg.loss = dict(text=dict(name="rescale"))
    if name == "contrastive":
        cfg.model.adaptation = dict(name="conv_attn_pool_by_text", width=128, num_heads=4)
        cfg.loss = dict(
            text=dict(
                name="grouped",
                weight=0.05,
                convex=False,
                normalize="l2",
                scale=10.0,
                bias=-5.0,
                learn_scale=True,
            )
        )
    cfg.evals = dict(
        masks=dict(
            type="segmentation", batch_size=8, num_examples=6, at="final", limit=8 if smoke else 0
        )
    )
    return cfg
