"""Pretrain on your own clips with one GPU, or slowly on CPU cores. Captions are optional.

    mmjax build --csv my_clips.csv --out datasets/my_clips --fps 10 --size 96 --sample-rate 16000
    python -m mmjax.main --task=pretrain --config=clips --config.data.train=datasets/my_clips

Clips must be at least 1.6 seconds long: the model sees 8 frames of 64 pixels at 5 frames per
second, and the audio of the same time. If the clips have captions, use `--config=clips:text`.
docs/your_data.md describes how to build the dataset; docs/pretrain.md describes what to change for
more data and larger models.
"""

from mmjax import config


def get_config(arg: str = ""):
    """Returns the config.

    Args:
      arg: 'text' to train on captions too.
    """
    config.variants(arg, "text")
    cfg = config.base()
    cfg.task = "pretrain"
    cfg.batch_size = 64
    cfg.total_steps = 2000
    cfg.log_every = 20
    cfg.checkpoint = dict(every=200, keep=3)
    cfg.ema_decay = 0.99
    cfg.data = dict(
        train="",
        split="train",
        video=dict(num_frames=8, stride=2, size=64, crop="inception", area=(0.4, 1.0)),
        audio=dict(num_samples=25_600, sample_rate=16_000.0),
        text=dict(candidates=1) if arg == "text" else None,
    )
    cfg.model = dict(
        name="tx_fac",
        size="tiny",
        video=dict(num_layers=2, patch_size=(2, 16, 16), buckets=(4, 4, 4), keep_tokens=1.0),
        # Log-mel spectrograms: the waveform tower needs much more audio than fits on one disk.
        audio=dict(name="spt_tiny", num_layers=3, patch_size=(5, 16), buckets=(15, 4)),
        head=dict(name="joint", joint=256),  # BatchNorm on both sides: little data, no collapse
        dropout_rate=0.0,
        scan_unroll=0,
    )
    if arg != "text":
        cfg.model.text = None
    # With strong augmentation, nothing is learned from a few hundred clips. With thousands of
    # clips, add color_jitter=0.8 and spec_augment=dict().
    cfg.augment = dict(audio_noise=0.01, spectrogram=dict(num_bins=64))
    weights = dict(video_audio=1.0, video_text=1.0) if arg == "text" else dict(video_audio=1.0)
    cfg.loss = dict(name="asymmetric_nce", weights=weights, double_positive=False)
    cfg.optimizer = dict(
        name="adamw",
        b2=0.98,
        weight_decay=0.05,
        weight_decay_exclude=("bias$", "scale$", "positions/", "agg_token$"),
        clip_norm=1.0,
        schedule=dict(name="cosine", base=1e-3, warmup_steps=100),
    )
    cfg.evals = dict(
        retrieval_audio=dict(
            type="retrieval",
            query="video",
            target="audio",
            split="test",
            every=200,
            where="eval",
        ),
    )
    return cfg
