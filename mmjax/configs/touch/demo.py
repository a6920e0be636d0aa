"""Touch aligned with pictures and words in miniature, on the procedural world that mmjax brings.

    python -m mmjax.main --task=touch

Three tiny transformers learn together from 3,000 scenes that are felt, seen and described.
"""

from mmjax import config


def get_config(arg: str = ""):
    words = config.variants(arg, "smoke", "clip", "frozen")
    smoke = "smoke" in words
    cfg = config.base()
    cfg.task = "touch"
    cfg.batch_size = 8 if smoke else 128
    cfg.total_steps = 2 if smoke else 600
    cfg.log_every = 1 if smoke else 25
    cfg.checkpoint.every = 1 if smoke else 300
    world = "world:tiny" if smoke else "world"
    cfg.data = dict(
        train=world,
        split="train",
        image=dict(size=32),
        touch=dict(size=32),
        text=dict(candidates=1, max_words=16, sample="random"),
    )
    tower = dict(num_layers=2, dropout_rate=0.0, scan_unroll=0)
    cfg.model = dict(
        touch=dict(name="touch_tiny", **tower),
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
    if "clip" in words:
        cfg.data.touch = cfg.model.touch = None
    if "frozen" in words:
        cfg.optimizer.frozen = ("^image/", "^text/")
        cfg.init_allow = ("^touch/",)
    clips = dict(data=world, batch_size=cfg.batch_size)
    pairs = (("text", "image"),) if "clip" in words else (("touch", "image"), ("touch", "text"))
    cfg.evals = {
        f"{a}_{b}": dict(type="retrieval", query=a, target=b, **clips) for a, b in pairs
    }
    return cfg
