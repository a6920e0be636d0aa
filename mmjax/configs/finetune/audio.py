"""VATT's fine-tuning for audio events with several labels a clip (AudioSet), on your dataset.

    python -m mmjax.main --task=finetune --config=audio:wat_base --model_dir=runs/audioset \\
        --config.data.train=data/audioset --override_checkpoint=runs/bbs

The argument is the tower: wat_base (default), wat_medium or wat_large. Sound stored at 48 kHz gives
VATT's windows: 153,600 samples at 24 kHz, 6.4 seconds. The values are those of VATT's published
code; its batch size is not published.
"""

from mmjax import config


def get_config(arg: str = "wat_base"):
    """`arg`: an audio tower."""
    cfg = config.base()
    cfg.task = "finetune"
    cfg.batch_size = 64
    cfg.total_steps = 50_000
    cfg.log_every = 50
    cfg.checkpoint = dict(every=5000, keep=3)
    cfg.data = dict(
        train="",
        split="train",
        audio=dict(num_samples=153_600, stride=2),
        label=dict(multi_label=True),
    )
    cfg.model = dict(name="classifier", backbone=arg, dtype="bfloat16", remat="dots")
    cfg.augment = dict(mixup=5.0)
    cfg.loss = dict(balance=True)
    cfg.optimizer = dict(
        name="keras_momentum",
        momentum=0.9,
        clip_norm=0.75,
        clip_groups=((r"^classifier/", 0.0),),
        schedule=dict(name="cosine", base=0.005, warmup_steps=2500),
    )
    cfg.init_allow = ("^(video|text|touch|head)/", "^extra/", "^classifier/")
    cfg.evals = dict(
        test=dict(
            type="classification",
            every=5000,
            where="eval",
            views=dict(audio=dict(num_clips=4)),
        ),
    )
    return cfg
