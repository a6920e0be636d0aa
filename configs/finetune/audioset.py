"""AudioSet as VATT fine-tunes it: 527 classes, several per clip, 4 windows of 6.4 seconds.

    python -m mmjax.main --task=finetune --config=audioset:wat_base \\
        --model_dir=runs/audioset --override_checkpoint=runs/bbs

VATT's published results for this recipe (from its own checkpoints, not trained by us):

    argument    from            mAP     AUC     d'
    wat_base    runs/bbs        39.4    97.1    2.895
    ut_medium   runs/ut_medium  39.3    97.0    2.884

d' is the mean over classes (`d_prime`). See docs/datasets for the dataset, and the recipe `audio`
for other arguments and all values.
"""

from mmjax.configs.finetune import audio


def get_config(arg: str = "wat_base"):
    """Returns the config.

    Args:
      arg: An audio tower.
    """
    cfg = audio.get_config(arg)
    cfg.data.train = "datasets/audioset"
    return cfg
