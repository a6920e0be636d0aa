"""Settings that VATT's pretraining recipes share: `tx_fac`, `ut_fac` and `mmv_fac`."""

from mmjax import config

# Log-mel spectrograms of VATT's loaders: 150 × 80 of 153,600 samples at 48 kHz.
SPECTROGRAM = dict(window=0.04267, step=0.02134, num_bins=80)


def settings(model: dict, *, sharding: str = "dp"):
    """Returns the config of a model, with data, loss, optimizer and evaluations as published."""
    cfg = config.base()
    cfg.task = "pretrain"
    cfg.batch_size = 2048
    cfg.total_steps = 500_000
    cfg.log_every = 50
    cfg.checkpoint = dict(every=10_000, keep=5, keep_every=50_000)
    cfg.sharding = sharding
    cfg.data = dict(
        train=("datasets/howto100m", "datasets/audioset"),  # sampled equally
        split="train",
        # 32 frames at 10 frames per second, for any stored rate, and their 3.2 s of audio.
        video=dict(num_frames=32, fps=10.0, size=224, crop="vgg", scale_jitter=True),
        audio=dict(num_samples=153_600, sample_rate=48_000.0),
        text=dict(candidates=5, max_tokens=16),
    )
    cfg.model = dict(model, dtype="bfloat16")
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
    cfg.evals = evaluations()
    return cfg


def evaluations() -> dict:
    """Returns the published evaluations, to be run by the evaluation job.

    `--config.evals.NAME=None` omits one. `--config.evals.ucf101.classifier=svm` selects the paper's
    linear SVM, and `logistic` our logistic regression, instead of the classifier of VATT's code.
    """
    when = dict(every=50_000, where="eval")
    windows = dict(num_clips=4)  # per test clip; training clips have one window in the middle

    def probe(name: str, feature: str, num_splits: int) -> dict:
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
            views={**others, feature: windows},
            **when,
        )

    def retrieval(name: str) -> dict:
        return dict(
            type="retrieval",
            data=f"datasets/{name}",
            query="text",
            target="video",
            split="test",
            aggregate=("embd", "cosine"),
            views=dict(video=windows, audio=None, text=dict(candidates=1)),
            **when,
        )

    return dict(
        ucf101=probe("ucf101", "video", 3),
        hmdb51=probe("hmdb51", "video", 3),
        esc50=probe("esc50", "audio", 5),
        youcook2=retrieval("youcook2"),
        msrvtt=retrieval("msrvtt"),
    )
