"""VATT pretraining in miniature, on the procedural world.

    python -m mmjax.main --task=pretrain
    python -m mmjax.main --task=pretrain --config=demo:ut_fac
    python -m mmjax.main --task=pretrain --config=demo:mmv_fac

A tiny model learns from 3,000 short scenes with the asymmetric NCE loss. It is evaluated on 200
scenes with combinations of shape, color, size and motion that do not occur in training. The default
is tx_fac: transformers for video, spectrograms and text, and a FAC head. ut_fac has one transformer
for all three modalities. mmv_fac has a ResNet with temporal shifts for video, a ResNet for
spectrograms, and linear text. Each takes two to three minutes on two CPU cores.

Expect a text-to-video R@1 of about 0.4 and an audio-to-video R@1 of about 0.3 from tx_fac (chance:
0.005); docs/pretrain.md lists the results of the others.
"""

from mmjax import config

_SPECTROGRAM_PATCHES = dict(name="spt_tiny", patch_size=(4, 64), buckets=(10, 1))
_MODELS = dict(
    tx_fac=dict(
        video=dict(num_layers=2, keep_tokens=1.0),
        audio=dict(_SPECTROGRAM_PATCHES, num_layers=2),
        text=dict(num_layers=2),
        dropout_rate=0.0,
        scan_unroll=0,
    ),
    ut_fac=dict(
        video=dict(keep_tokens=1.0),
        audio=_SPECTROGRAM_PATCHES,
        text=dict(),
        num_layers=2,
        dropout_rate=0.0,
        scan_unroll=0,
    ),
    mmv_fac=dict(text=dict(vocab_size=2048, embedding_dim=128)),
)


def get_config(arg: str = ""):
    """Returns the config.

    Args:
      arg: 'tx_fac' (default), 'ut_fac' or 'mmv_fac', 'smoke' for two steps on the tiny world (for
        tests), or both separated by a comma.
    """
    words = config.variants(arg, *_MODELS, "smoke")
    smoke = "smoke" in words
    name = config.only(words, tuple(_MODELS), "tx_fac", what="model")
    cfg = config.base()
    cfg.task = "pretrain"
    cfg.batch_size = 8 if smoke else 64
    cfg.total_steps = 2 if smoke else 500
    cfg.log_every = 1 if smoke else 25
    cfg.checkpoint.every = 1 if smoke else 250
    cfg.data = dict(
        train="world:tiny" if smoke else "world",
        split="train",
        video=dict(num_frames=4 if smoke else 8, size=32, scale_jitter=False, flip=False),
        audio=dict(num_samples=3200 if smoke else 6400),
        text=dict(candidates=1, max_tokens=16),
    )
    head = dict(name="fac", fine=128, coarse=128)
    cfg.model = dict(name=name, size="tiny", head=head, **_MODELS[name])
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
