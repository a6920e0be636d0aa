"""Your own touch images, images and captions, from scratch, on one GPU or slowly on a CPU.

    mmjax build --csv touches.csv --out datasets/touches --size 128
    python -m mmjax.main --task=touch --config=pairs --config.data.train=datasets/touches

The table has the columns path (an image of the touched object), touch, caption and split (see
docs/your_data.md). Use `--config=pairs:text` for data without images, and `pairs:image` for data
without captions. If you have many thousands of pairs and OpenCLIP's weights, use `--config=tvl`.
"""

from mmjax import config


def get_config(arg: str = ""):
    """Returns the config.

    Args:
      arg: 'text' or 'image', the modality to align touch with; both by default.
    """
    words = config.variants(arg, "text", "image") or {"text", "image"}
    cfg = config.base()
    cfg.task = "touch"
    cfg.batch_size = 64
    cfg.total_steps = 2000
    cfg.log_every = 20
    cfg.ema_decay = 0.99
    cfg.data = dict(
        train="",
        split="train",
        touch=dict(size=64, square="pad"),
        image=dict(size=64, square="pad") if "image" in words else None,
        text=dict(candidates=1, max_tokens=16, sample="random") if "text" in words else None,
    )
    tower = dict(num_layers=3, dropout_rate=0.0, scan_unroll=0)
    cfg.model = dict(
        touch=dict(name="touch_tiny", image_size=64, **tower),
        image=dict(name="clip_vit_tiny", image_size=64, **tower) if "image" in words else None,
        text=dict(name="clip_text_tiny", **tower) if "text" in words else None,
    )
    cfg.loss = dict(name="info_nce")
    cfg.optimizer = dict(
        name="adamw",
        b2=0.98,
        weight_decay=0.05,
        weight_decay_exclude=("bias$", "scale$", "positions$", "class_token$"),
        clip_norm=1.0,
        schedule=dict(name="cosine", base=1e-3, warmup_steps=100),
    )
    targets = tuple(sorted(words))
    # The mean rank falls steadily; caption-based accuracies depend on the changing text tower.
    cfg.checkpoint = dict(
        every=200, keep=2, best=f"test/touch_to_{targets[0]}/mean_rank", best_of="min"
    )
    common = dict(split="test", batch_size=64)
    cfg.evals = dict(
        test=dict(type="retrieval", query="touch", target=targets, every=200, **common),
        affinity=dict(type="affinity", target=targets[0], **common),
    )
    return cfg
