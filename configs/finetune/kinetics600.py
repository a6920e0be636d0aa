"""Kinetics-600 as VATT fine-tunes it: 600 classes, 12 views per video.

    python -m mmjax.main --task=finetune --config=kinetics600:vit_medium \\
        --model_dir=runs/kinetics600 --override_checkpoint=runs/mbs

VATT's published results for this recipe (percent; from its own checkpoints, not trained by us):

    argument    from            top-1    top-5
    vit_base    runs/bbs        80.5     95.5
    vit_medium  runs/mbs        82.4     96.1
    vit_large   runs/lbs        83.6     96.6
    ut_medium   runs/ut_medium  80.8     95.5

The published checkpoint of vit_medium is from step 90,000.
See docs/datasets for the dataset, and the recipe `video` for other arguments and all values.
"""

from mmjax.configs.finetune import video


def get_config(arg: str = "vit_medium"):
    """Returns the config.

    Args:
      arg: A video tower.
    """
    cfg = video.get_config(arg)
    cfg.data.train = "datasets/kinetics600"
    cfg.total_steps = 100_000
    return cfg
