"""Touch, images and captions of your own, learned from scratch on one GPU or, patiently, on CPU.

    mmjax build --csv touches.csv --out data/touches --size 128
    python -m mmjax.main --task=touch --config=pairs --config.data.train=data/touches

The table has the columns path (an image of what is touched), touch, caption and split
(docs/your_data.md). `--config=pairs:text` is for data without images, `pairs:image` for data
without captions. With many thousands of pairs and OpenCLIP's weights, start from `--config=tvl`.
"""

from mmjax import config


def get_config(arg: str = ""):
    """`arg`: 'text' or 'image', what touch is compared with; both by default."""
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
    # The mean rank falls steadily, where accuracies by captions follow a text tower that changes.
    cfg.checkpoint = dict(
        every=200, keep=2, best=f"test/touch_to_{targets[0]}/mean_rank", best_of="min"
    )
    judged = dict(split="test", batch_size=64)
    cfg.evals = dict(
        test=dict(type="retrieval", query="touch", target=targets, every=200, **judged),
        affinity=dict(type="affinity", target=targets[0], **judged),
    )
    return cfg
