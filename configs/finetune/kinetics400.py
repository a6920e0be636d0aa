"""Kinetics-400 as VATT fine-tunes it: 400 classes, 12 views per video.

    python -m mmjax.main --task=finetune --config=kinetics400:vit_medium \\
        --model_dir=runs/kinetics400 --override_checkpoint=runs/mbs

VATT's published results for this recipe (percent; from its own checkpoints, not trained by us):

    argument    from            top-1    top-5
    vit_base    runs/bbs        79.6     94.9
    vit_medium  runs/mbs        81.1     95.6
    vit_large   runs/lbs        82.1     95.5
    ut_medium   runs/ut_medium  79.9     94.9

See docs/datasets for the dataset, and the recipe `video` for other arguments and all values.
"""

from mmjax.configs.finetune import video


def get_config(arg: str = "vit_medium"):
    """Returns the config.

    Args:
      arg: A video tower.
    """
    cfg = video.get_config(arg)
    cfg.data.train = "datasets/kinetics400"
    cfg.total_steps = 100_000
    return cfg
