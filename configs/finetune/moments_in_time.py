"""Moments in Time as VATT fine-tunes it: 339 classes, 12 views per video.

    python -m mmjax.main --task=finetune --config=moments_in_time:vit_medium \\
        --model_dir=runs/moments_in_time --override_checkpoint=runs/mbs

VATT's published results for this recipe (percent; from its own checkpoints, not trained by us):

    argument    from            top-1    top-5
    vit_base    runs/bbs        38.7     67.5
    vit_medium  runs/mbs        39.5     68.2
    vit_large   runs/lbs        41.1     67.7
    ut_medium   runs/ut_medium  37.8     65.9

See docs/datasets for the dataset, and the recipe `video` for other arguments and all values.
"""

from mmjax.configs.finetune import video


def get_config(arg: str = "vit_medium"):
    """Returns the config.

    Args:
      arg: A video tower.
    """
    cfg = video.get_config(arg)
    cfg.data.train = "datasets/moments_in_time"
    cfg.total_steps = 150_000
    return cfg
