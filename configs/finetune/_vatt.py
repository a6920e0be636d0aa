"""Settings that VATT's fine-tuning recipes share: `video` and `audio`."""

from mmjax.errors import UserError, unknown
from mmjax.models.vatt import BACKBONES, TOWERS
from mmjax.published.vatt import finetuning_config


def settings(modality: str, arg: str):
    """Returns the published config with a tower and a classifier.

    Args:
      modality: Modality that is classified.
      arg: Name of the tower; `ut_*` is the unified encoder with this modality.

    Raises:
      UserError: `arg` is not a tower for the modality.
    """
    towers = [n for n in BACKBONES if n not in TOWERS or TOWERS[n][0] == modality]
    if arg in BACKBONES and arg not in towers:
        raise UserError(f"{arg} is not a tower for {modality}. Choose from: {', '.join(towers)}.")
    if arg not in towers:
        raise unknown("argument of the recipe:", arg, towers)
    cfg = finetuning_config(modality)
    backbone = dict(name=arg, modality=modality) if arg.startswith("ut_") else arg
    cfg.model = dict(
        name="classifier",
        backbone=backbone,
        dropout_rate=0.5 if modality == "video" else 0.0,  # for ut_* too, as published
        dtype="bfloat16",
        remat="dots",
    )
    return cfg
