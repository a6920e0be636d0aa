"""VATT's fine-tuning for video classification (Kinetics, Moments in Time, …), on your dataset.

    python -m mmjax.main --task=finetune --config=video:vit_medium --model_dir=runs/k400 \\
        --config.data.train=data/k400 --override_checkpoint=runs/mbs

The argument is the tower: vit_base, vit_medium (default), vit_large or vit_xlarge. Videos stored at
25 frames a second give VATT's clips: 32 frames at 12.5. The values are those of VATT's published
code; its batch size is not published (the paper names 64).
"""

from mmjax import config


def get_config(arg: str = "vit_medium"):
    """`arg`: a video tower."""
    cfg = config.base()
    cfg.task = "finetune"
    cfg.batch_size = 64
    cfg.total_steps = 100_000
    cfg.log_every = 50
    cfg.checkpoint = dict(every=5000, keep=3)
    cfg.data = dict(
        train="",
        split="train",
        video=dict(
            num_frames=32,
            stride=2,
            size=224,
            crop="inception",
            area=(0.08, 1.0),
            aspect=(0.5, 2.0),
        ),
        label=dict(),
    )
    cfg.model = dict(name="classifier", backbone=arg, dtype="bfloat16", remat="dots")
    cfg.augment = dict(color_jitter=0.8, mixup=0.0)
    cfg.loss = dict(label_smoothing=0.1)
    cfg.optimizer = dict(
        name="keras_momentum",
        momentum=0.9,
        clip_norm=0.75,
        clip_groups=((r"^classifier/", 0.0),),
        schedule=dict(name="cosine", base=0.005, warmup_steps=2500),
    )
    cfg.init_allow = ("^(audio|text|touch|head)/", "^extra/", "^classifier/")
    cfg.evals = dict(
        test=dict(
            type="classification",
            every=5000,
            where="eval",
            views=dict(video=dict(num_clips=4, multi_crop=True)),
        ),
    )
    return cfg
