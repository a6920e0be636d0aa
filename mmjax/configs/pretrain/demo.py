"""VATT pretraining in miniature, on the procedural world that mmjax brings.

    python -m mmjax.main --task=pretrain

A tiny tx_fac (video, spectrogram and text transformers, FAC head, asymmetric NCE) learns from 3,000
short scenes and is judged on 200 scenes whose combinations of shape, colour, size and motion it has
never met. Two to three minutes on two CPU cores. Expect a text-to-video R@1 of about 0.4 and an
audio-to-video R@1 of about 0.3 (chance: 0.005); see docs/pretrain.md.
"""

from mmjax import config


def get_config(arg: str = ""):
    """`arg`: 'smoke' for two steps on the tiny world, which tests use."""
    cfg = config.base()
    cfg.task = "pretrain"
    smoke = arg == "smoke"
    cfg.batch_size = 8 if smoke else 64
    cfg.total_steps = 2 if smoke else 500
    cfg.log_every = 1 if smoke else 25
    cfg.checkpoint.every = 1 if smoke else 250
    cfg.data = dict(
        train="world:tiny" if smoke else "world",
        split="train",
        video=dict(num_frames=4 if smoke else 8, size=32, scale_jitter=False, flip=False),
        audio=dict(num_samples=3200 if smoke else 6400),
        text=dict(candidates=1, max_words=16),
    )
    cfg.model = dict(
        name="tx_fac",
        size="tiny",
        video=dict(num_layers=2, keep_tokens=1.0),
        audio=dict(name="spt_tiny", num_layers=2, patch_size=(4, 64), buckets=(10, 1)),
        text=dict(num_layers=2),
        head=dict(name="fac", fine=128, coarse=128),
        dropout_rate=0.0,
        scan_unroll=0,
    )
    cfg.augment = dict(spectrogram=dict(window=0.064, step=0.02, num_bins=64))
    cfg.loss = dict(name="asymmetric_nce", weights=dict(video_text=1.0, video_audio=1.0))
    cfg.optimizer = dict(
        name="adamw",
        b2=0.98,
        weight_decay=0.05,
        clip_norm=1.0,
        schedule=dict(name="cosine", base=1e-3, warmup_steps=1 if smoke else 50),
    )
    clips = dict(data="world:tiny" if smoke else "world", batch_size=cfg.batch_size)
    cfg.evals = dict(
        retrieval_text=dict(type="retrieval", query="text", target="video", **clips),
        retrieval_audio=dict(type="retrieval", query="audio", target="video", **clips),
        probe=dict(type="linear_probe", feature=("video", "audio"), **clips),
    )
    return cfg
