"""VATT's modality-specific pretraining at its published sizes, on your dataset folder.

    python -m mmjax.main --task=pretrain --config=tx_fac:mbs --model_dir=runs/mbs \\
        --config.data.train=/data/howto100m

The argument is the size: bbs, mbs (default) or lbs. Videos stored at 10 frames a second and 48 kHz
give VATT's
clips: 32 frames and 3.2 seconds of sound. The values are those of VATT's published code; its batch
size is not published (the paper names 2048 over 256 TPU-v3 cores) and is for you to set with your
devices.
"""

from mmjax import config


def get_config(arg: str = "mbs"):
    """`arg`: 'bbs', 'mbs' or 'lbs': base, medium or large video tower."""
    cfg = config.base()
    cfg.task = "pretrain"
    cfg.batch_size = 2048
    cfg.total_steps = 500_000
    cfg.log_every = 50
    cfg.checkpoint = dict(every=10_000, keep=5, keep_every=50_000)
    cfg.sharding = "fsdp" if arg == "lbs" else "dp"
    cfg.data = dict(
        train="",
        split="train",
        video=dict(num_frames=32, size=224, crop="vgg", scale_jitter=True),
        audio=dict(num_samples=153_600),
        text=dict(candidates=5, max_words=16),
    )
    cfg.model = dict(name="tx_fac", size=arg or "mbs", dtype="bfloat16", remat="dots")
    cfg.augment = dict(color_jitter=0.8, audio_noise=0.01)
    cfg.loss = dict(
        name="asymmetric_nce",
        temperature=0.07,
        double_positive=True,
        weights=dict(video_text=1.0, video_audio=1.0),
    )
    cfg.optimizer = dict(
        name="keras_adam",
        frozen=("^text/word_embedding$",),
        schedule=dict(name="stepwise_cosine", levels=(1e-4, 5e-5), boundaries=(5000, 500_000)),
    )
    cfg.evals = dict(
        retrieval=dict(
            type="retrieval", query="text", target="video", split="test", every=10_000, where="eval"
        ),
    )
    return cfg
