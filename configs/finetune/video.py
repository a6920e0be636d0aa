"""VATT's fine-tuning for video classification, on your dataset.

    python -m mmjax.main --task=finetune --model_arch=vit_medium --model_dir=runs/my_videos \\
        --config.data.train=datasets/my_videos --override_checkpoint=runs/mbs

The argument is the tower: vit_base, vit_medium (default), vit_large or vit_xlarge; ut_base,
ut_medium or ut_large for a run of ut_fac; i3d, tsm_50 or tsm_50x2 for a run of mmv_fac. Store
videos at 25 frames per second to get VATT's clips: 32 frames at 12.5 frames per second. The values
are those of VATT's published code; its batch size is not published (the paper mentions 64). The
recipes `kinetics400`, `kinetics600`, `kinetics700`, `moments_in_time` and `imagenet` are this one
on these datasets.
"""

from mmjax.configs.finetune import _vatt


def get_config(arg: str = "vit_medium"):
    """Returns the config.

    Args:
      arg: A video tower.
    """
    clips = dict(
        num_frames=32,
        stride=2,
        size=224,
        crop="inception",
        area=(0.08, 1.0),
        aspect=(0.5, 2.0),
    )
    views = dict(num_clips=4, multi_crop=True)
    cfg = _vatt.settings("video", arg, dict(video=clips, label=dict()), views)
    cfg.total_steps = 100_000
    cfg.augment = dict(color_jitter=0.8, mixup=0.0)
    cfg.loss = dict(label_smoothing=0.1)
    return cfg
