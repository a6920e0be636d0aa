"""Kinetics-700 as VATT fine-tunes it: 700 classes, 12 views a video.

    python -m mmjax.main --task=finetune --config=kinetics700:vit_large \\
        --model_dir=runs/kinetics700 --override_checkpoint=runs/lbs

What VATT published for this recipe (percent, from its own checkpoints; we have not trained it):

    argument    from            top-1    top-5
    vit_large   runs/lbs        72.7     90.5

For the other towers VATT published nothing.
The dataset: docs/datasets. Other arguments and all values: the recipe `video`.
"""

from mmjax.configs.finetune import video


def get_config(arg: str = "vit_large"):
    """`arg`: a video tower."""
    cfg = video.get_config(arg)
    cfg.data.train = "data/kinetics700"
    cfg.total_steps = 100_000
    return cfg
