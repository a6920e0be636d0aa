"""Kinetics-700 as VATT fine-tunes it: 700 classes, 12 views per video.

    python -m mmjax.main --task=finetune --config=kinetics700:vit_large \\
        --model_dir=runs/kinetics700 --override_checkpoint=runs/lbs

VATT's published results for this recipe (percent; from its own checkpoints, not trained by us):

    argument    from            top-1    top-5
    vit_large   runs/lbs        72.7     90.5

VATT published no results for the other towers.
See docs/datasets for the dataset, and the recipe `video` for other arguments and all values.
"""

from mmjax.configs.finetune import video


def get_config(arg: str = "vit_large"):
    """Returns the config.

    Args:
      arg: A video tower.
    """
    cfg = video.get_config(arg)
    cfg.data.train = "datasets/kinetics700"
    cfg.total_steps = 100_000
    return cfg
