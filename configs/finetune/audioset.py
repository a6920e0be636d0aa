"""AudioSet as VATT fine-tunes it: 527 classes, several a clip, 4 windows of 6.4 seconds.

    python -m mmjax.main --task=finetune --config=audioset:wat_base \\
        --model_dir=runs/audioset --override_checkpoint=runs/bbs

What VATT published for this recipe (from its own checkpoints; we have not trained it):

    argument    from            mAP     AUC     d'
    wat_base    runs/bbs        39.4    97.1    2.895
    ut_medium   runs/ut_medium  39.3    97.0    2.884

d' is the mean of the classes' d' (`d_prime`). The dataset: docs/datasets. Other arguments and all
values: the recipe `audio`.
"""

from mmjax.configs.finetune import audio


def get_config(arg: str = "wat_base"):
    """`arg`: an audio tower."""
    cfg = audio.get_config(arg)
    cfg.data.train = "data/audioset"
    return cfg
