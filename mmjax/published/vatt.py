"""VATT's published training settings, without a model: for its recipes and converted runs."""

from __future__ import annotations

from typing import Any

import ml_collections

from mmjax import config

# Log-mel spectrograms of VATT's data pipeline: 150 × 80 for 153,600 samples at 48 kHz.
SPECTROGRAM = dict(window=0.04267, step=0.02134, num_bins=80)


def pretraining_config() -> ml_collections.ConfigDict:
    """Returns the pretraining config without a model, for tx_fac, ut_fac and mmv_fac.

    The evaluation job runs the evaluators. `--config.evals.NAME=None` omits one.
    `--config.evals.ucf101.classifier=svm` selects the paper's linear SVM, and `logistic` our
    logistic regression, instead of the classifier of VATT's code.
    """
    cfg = config.base()
    cfg.task = "pretrain"
    cfg.batch_size = 2048
    cfg.total_steps = 500_000
    cfg.log_every = 50
    cfg.checkpoint = dict(every=10_000, keep=5, keep_every=50_000)
    cfg.data = dict(
        train=("datasets/howto100m", "datasets/audioset"),  # sampled equally
        split="train",
        # 32 frames at 10 frames per second, for any stored rate, and their 3.2 s of audio.
        video=dict(num_frames=32, fps=10.0, size=224, crop="vgg", scale_jitter=True),
        audio=dict(num_samples=153_600, sample_rate=48_000.0),
        text=dict(candidates=5, max_tokens=16),
    )
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
        ucf101=_probe("ucf101", "video", 3),
        hmdb51=_probe("hmdb51", "video", 3),
        esc50=_probe("esc50", "audio", 5),
        youcook2=_retrieval("youcook2"),
        msrvtt=_retrieval("msrvtt"),
    )
    return cfg


_SCHEDULE = dict(every=50_000, where="eval")
_WINDOWS = dict(num_clips=4)  # per test clip; training clips have one window in the middle


def _probe(name: str, feature: str, num_splits: int) -> dict[str, Any]:
    others = {other: None for other in ("video", "audio", "text") if other != feature}
    splits = range(1, num_splits + 1)
    return dict(
        type="linear_probe",
        classifier="vatt",
        data=f"datasets/{name}",
        feature=feature,
        train_split=tuple(f"train{i}" for i in splits),
        split=tuple(f"test{i}" for i in splits),
        train_views=others,
        views={**others, feature: _WINDOWS},
        **_SCHEDULE,
    )


def _retrieval(name: str) -> dict[str, Any]:
    return dict(
        type="retrieval",
        data=f"datasets/{name}",
        query="text",
        target="video",
        split="test",
        aggregate=("embd", "cosine"),
        views=dict(video=_WINDOWS, audio=None, text=dict(candidates=1)),
        **_SCHEDULE,
    )


def finetuning_config(modality: str) -> ml_collections.ConfigDict:
    """Returns the fine-tuning config without a model.

    Args:
      modality: 'video' or 'audio' (waveforms).
    """
    cfg = config.base()
    cfg.task = "finetune"
    cfg.batch_size = 64
    cfg.log_every = 50
    cfg.checkpoint = dict(every=5000, keep=3)
    cfg.optimizer = dict(
        name="keras_momentum",
        momentum=0.9,
        clip_norm=0.75,
        clip_groups=((r"^classifier/", 0.0),),
        schedule=dict(name="cosine", base=0.005, warmup_steps=2500),
    )
    # The other towers of a pretraining run, and the classifier, which is randomly initialized.
    others = "|".join(m for m in ("video", "audio", "text", "touch", "head") if m != modality)
    cfg.init_allow = (rf"^(extra/)?({others})/", "^classifier/")
    if modality == "video":
        cfg.total_steps = 100_000
        frames = dict(num_frames=32, stride=2, size=224, crop="inception")
        clips = dict(frames, area=(0.08, 1.0), aspect=(0.5, 2.0))
        cfg.data = dict(train="", split="train", video=clips, label=dict())
        cfg.augment = dict(color_jitter=0.8, mixup=0.0)
        cfg.loss = dict(label_smoothing=0.1)
        views = dict(num_clips=4, multi_crop=True)
    else:
        cfg.total_steps = 50_000
        samples = dict(num_samples=153_600, sample_rate=48_000.0, stride=2)
        cfg.data = dict(train="", split="train", audio=samples, label=dict(multi_label=True))
        cfg.augment = dict(mixup=5.0)
        cfg.loss = dict(balance=True)
        views = dict(num_clips=4)
    cfg.evals = dict(
        test=dict(type="classification", every=5000, where="eval", views={modality: views})
    )
    return cfg
