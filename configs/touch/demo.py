"""Touch aligned with images and text in miniature, on the procedural world.

    python -m mmjax.main --task=touch

Three tiny transformers learn together from 3,000 scenes with touch images, images and captions.
They are evaluated on 200 scenes with combinations of shape, color, size and motion that do not
occur in training. This takes less than two minutes on two CPU cores. Expect a touch-to-text R@1 of
about 0.3 and a touch-to-image R@1 of about 0.15 (chance: 0.005). As in TVL, a touch encoder can
also be added to towers that are already trained and stay frozen:

    python -m mmjax.main --task=touch --config=demo:clip --model_dir=runs/clip
    python -m mmjax.main --task=touch --config=demo:frozen --override_checkpoint=runs/clip
"""

from mmjax import config


def get_config(arg: str = ""):
    """Returns the config.

    Args:
      arg: 'clip' for images and text only, 'frozen' to add touch to their frozen towers, 'smoke'
        for two steps on the tiny world (for tests), or several of them separated by commas.
    """
    words = config.variants(arg, "clip", "frozen", "smoke")
    smoke, clip = "smoke" in words, "clip" in words
    cfg = config.base()
    cfg.task = "touch"
    cfg.batch_size = 8 if smoke else 64
    cfg.total_steps = 2 if smoke else 600
    cfg.log_every = 1 if smoke else 25
    cfg.checkpoint.every = 1 if smoke else 300
    world = "world:tiny" if smoke else "world"
    cfg.data = dict(
        train=world,
        split="train",
        image=dict(size=32),
        touch=None if clip else dict(size=32),
        text=dict(candidates=1, max_tokens=16, sample="random"),
    )
    tower = dict(num_layers=2, dropout_rate=0.0, scan_unroll=0)
    cfg.model = dict(
        touch=None if clip else dict(name="touch_tiny", **tower),
        image=dict(name="clip_vit_tiny", **tower),
        text=dict(name="clip_text_tiny", **tower),
    )
    cfg.loss = dict(name="info_nce")
    cfg.optimizer = dict(
        name="adamw",
        b2=0.98,
        weight_decay=0.05,
        clip_norm=1.0,
        schedule=dict(name="cosine", base=1e-3, warmup_steps=1 if smoke else 50),
    )
    if "frozen" in words:
        cfg.optimizer.frozen = ("^image/", "^text/")
        cfg.init_allow = ("^touch/",)  # randomly initialized
    clips = dict(data=world, batch_size=cfg.batch_size)
    if clip:
        cfg.evals = dict(retrieval=dict(type="retrieval", query="text", target="image", **clips))
        return cfg
    cfg.evals = dict(
        retrieval=dict(type="retrieval", query="touch", target=("image", "text"), **clips),
        shape=dict(type="zero_shot", modality=("touch", "image"), templates="a {}", **clips),
        affinity=dict(type="affinity", target="image", **clips),
    )
    return cfg
