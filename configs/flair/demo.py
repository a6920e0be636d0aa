"""FLAIR in miniature, on the procedural world.

    python -m mmjax.main --task=flair

Two tiny transformers and the attention pooling learn together from 3,000 images and captions. They
are evaluated on 200 images with combinations of shape, color, size and motion that do not occur in
training. This takes less than a minute on two CPU cores. Expect a text-to-image R@1 of about 0.17
and an R@10 of about 0.83 (chance: 0.005 and 0.05).

As TTDL does, two images can be compared with a text by an adapter that fuses them, with everything
else frozen. Here they are the first and the last frame of a clip, whose caption names the motion:

    python -m mmjax.main --task=flair --config=demo:reference --override_checkpoint=runs/flair-demo

The adapter starts from random values. Expect an R@10 of about 0.85; an R@1 of about 0.12, because
the frozen model has learned nothing about motion.
"""

from mmjax import config


def get_config(arg: str = ""):
    """Returns the config.

    Args:
      arg: 'reference' to train only the adapter of two images, 'smoke' for two steps on the tiny
        world (for tests), or both separated by a comma.
    """
    words = config.variants(arg, "reference", "smoke")
    smoke, reference = "smoke" in words, "reference" in words
    cfg = config.base()
    cfg.task = "flair"
    cfg.batch_size = 8 if smoke else 64
    cfg.total_steps = 2 if smoke else 120 if reference else 240
    cfg.log_every = 1 if smoke else 25
    cfg.checkpoint.every = 1 if smoke else 120
    world = "world:tiny" if smoke else "world"
    cfg.data = dict(
        train=world,
        split="train",
        image=dict(size=32, frame=-1 if reference else None),
        reference=dict(size=32) if reference else None,
        text=dict(candidates=1, max_tokens=16, sample="random"),
    )
    tower = dict(num_layers=2, dropout_rate=0.0, scan_unroll=0)
    cfg.model = dict(
        image=dict(name="clip_vit_tiny", **tower),
        text=dict(name="clip_text_tiny", **tower),
        width=128,
        num_heads=4,
        adapters=("concat_adapter",) if reference else (),
    )
    cfg.optimizer = dict(
        name="adamw",
        b2=0.98,
        weight_decay=0.05,
        clip_norm=1.0,
        schedule=dict(name="cosine", base=1e-3, warmup_steps=1 if smoke else 50),
    )
    if reference:
        cfg.optimizer.frozen = ("^(image|text)(_projection)?/", "^pooling/", "^logit_")
        cfg.init_allow = ("^concat_adapter/",)  # randomly initialized
    clips = dict(data=world, batch_size=cfg.batch_size)
    cfg.evals = dict(
        retrieval=dict(type="retrieval", query="text", target="image", **clips),
        shape=dict(type="zero_shot", modality="image", templates="a {}", **clips),
    )
    return cfg
