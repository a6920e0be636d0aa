"""Settings that VATT's fine-tuning recipes share: `video` and `audio`."""

from mmjax import config
from mmjax.errors import UserError, unknown
from mmjax.models.vatt import BACKBONES, TOWERS


def settings(modality: str, arg: str, data: dict, views: dict):
    """Returns the config of a tower, with schedule, optimizer and evaluation as published.

    Args:
      modality: Modality that is classified.
      arg: Name of the tower; `ut_*` is the unified encoder with this modality.
      data: Sections of `config.data`.
      views: Views of the evaluation.

    Raises:
      UserError: `arg` is not a tower for the modality.
    """
    towers = [n for n in BACKBONES if n not in TOWERS or TOWERS[n][0] == modality]
    if arg in BACKBONES and arg not in towers:
        raise UserError(f"{arg} is not a tower for {modality}. Choose from: {', '.join(towers)}.")
    if arg not in towers:
        raise unknown("argument of the recipe:", arg, towers)
    cfg = config.base()
    cfg.task = "finetune"
    cfg.batch_size = 64
    cfg.log_every = 50
    cfg.checkpoint = dict(every=5000, keep=3)
    cfg.data = dict(train="", split="train", **data)
    backbone = dict(name=arg, modality=modality) if arg.startswith("ut_") else arg
    cfg.model = dict(
        name="classifier",
        backbone=backbone,
        dropout_rate=0.5 if modality == "video" else 0.0,  # for ut_* too, as published
        dtype="bfloat16",
        remat="dots",
    )
    cfg.optimizer = dict(
        name="keras_momentum",
        momentum=0.9,
        clip_norm=0.75,
        clip_groups=((r"^classifier/", 0.0),),
        schedule=dict(name="cosine", base=0.005, warmup_steps=2500),
    )
    # The other towers of a pretraining run, and the classifier, which is randomly initialized.
    others = "|".join(m for m in ("video", "audio", "text", "touch", "head") if m != modality)
    cfg.init_allow = (rf"^(extra/)?({others})/", "^classifier/")
    cfg.evals = dict(
        test=dict(type="classification", every=5000, where="eval", views={modality: views}),
    )
    return cfg
