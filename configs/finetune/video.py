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
    return _vatt.settings("video", arg)
