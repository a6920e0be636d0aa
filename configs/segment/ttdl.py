"""The experiments of TTDL on PASCAL VOC, with diagnostic texts of a vision-language model.

    python -m mmjax.main --task=segment --config=ttdl:2_base \\
        --override_checkpoint=mobilenet_v3_large.pth
    python -m mmjax.main --task=segment --config=ttdl:3.4

The argument is the number of an experiment in TTDL's code; docs/ttdl.md has a table of them, what
they need, and how they differ from the original. Datasets are built as in
docs/datasets/segmentation.md. Texts come from a server (docs/segment.md has the commands), or, with
`--config=ttdl:3.4,describer`, from rules.

We have not reproduced TTDL's results: its fine-tuned encoders and texts are not published.
"""

from __future__ import annotations

import ml_collections

from mmjax import config
from mmjax.published.segmentation import NUM_IMAGES, segmentation_config

TEXT_ENCODER, FUSING_ENCODER = "runs/flair_dm", "runs/flair_gt_pr"
EXPERIMENTS = (
    "0",
    "1",
    "2_base",
    "2",
    "3.1_phase_1",
    "3.1_phase_2",
    "3.1",
    "3.3",
    "3.4",
    "3.5",
    "4.1_phase_2",
    "4.1",
    "4.2",
    "4.3",
)
_GLOBAL, _DIFFERENCE, _BY_TEXT = "contrastive_global", "contrastive_diff", "conv_attn_pool_by_text"
_LOSSES = {  # the section loss.text and the adapter of the bottleneck
    "1": (dict(name="variable_text", weight=0.0), _GLOBAL),
    "2": (dict(name="rescale", normalize_over="batch", count_ignored=True), None),
    "3.1_phase_2": (dict(name="variable_text", weight=0.1), _GLOBAL),
    "3.1": (dict(name="variable_text", weight=0.1), _GLOBAL),
    "3.3": (dict(name="grouped", weight=0.2), _GLOBAL),
    "3.4": (dict(name="grouped_paired_negative", weight=0.1), _BY_TEXT),
    "3.5": (dict(name="grouped", weight=0.5, convex=False), _BY_TEXT),
    "4.1_phase_2": (dict(name="grouped_paired_negative", weight=0.1), _DIFFERENCE),
    "4.1": (dict(name="grouped_paired_negative", weight=0.1), _DIFFERENCE),
    "4.2": (dict(name="grouped", weight=0.5), _BY_TEXT),
    "4.3": (dict(name="grouped_paired_negative", weight=0.1), _BY_TEXT),
}
# Epochs that are trained, and those that the learning rate is planned for.
_EPOCHS = {
    "0": (50, 50),
    "2_base": (50, 50),
    "2": (29, 29),
    "3.1_phase_1": (20, 50),
    "3.1_phase_2": (5, 50),
    "4.1_phase_2": (5, 50),
}
_INITIAL = {  # the run whose model they start with
    "3.1_phase_2": "3.1_phase_1",
    "4.1_phase_2": "3.1_phase_1",
    "1": "2_base",
    "3.3": "2_base",
    "3.4": "2_base",
    "3.5": "2_base",
    "4.2": "2_base",
    "4.3": "2_base",
}
_CONTINUED = {"2": "2_base", "3.1": "3.1_phase_2", "4.1": "4.1_phase_2"}  # with the optimizer


def get_config(arg: str = "0") -> ml_collections.ConfigDict:
    """Returns the config.

    Args:
      arg: An experiment of `EXPERIMENTS`; optionally 'describer' for texts by rules instead of a
        server, 'decay_all' for weight decay of biases and norms too, as in TTDL; separated by
        commas.
    """
    words = config.variants(arg, *EXPERIMENTS, "describer", "decay_all")
    name = config.only(words, EXPERIMENTS, "0", what="experiment")
    loss, adaptation = _LOSSES.get(name, (None, None))
    cfg = segmentation_config()
    cfg.batch_size = 8 if name in ("0", "2_base", "2", "3.1_phase_1") else 32
    per_epoch = -(-NUM_IMAGES // cfg.batch_size)
    epochs, planned = _EPOCHS.get(name, (25, 25))
    cfg.total_examples = 0
    cfg.total_steps = epochs * per_epoch
    cfg.optimizer.schedule.total_steps = planned * per_epoch
    if name == "2_base":
        cfg.optimizer.schedule.base = 1e-4 * 10**-0.5
    if "decay_all" in words:
        cfg.optimizer.weight_decay_exclude = ()
    model = "deeplabv3_resnet18" if name == "0" else "lraspp_mobilenet_v3_large"
    cfg.model = dict(name=model, dtype="bfloat16")
    if name in ("0", "2_base", "3.1_phase_1"):
        cfg.init_allow = ("^(extra/)?head/",)  # initialized from a backbone
    if adaptation:
        cfg.model.adaptation = dict(name=adaptation)
    if loss:
        cfg.loss = dict(text=loss)
        cfg.text = _texts(name, "describer" in words)
    if name in _INITIAL:
        cfg.init_from = f"runs/segment-ttdl-{_INITIAL[name]}"
        cfg.init_allow = ("^(extra/)?adapter/",)
    if name in _CONTINUED:
        cfg.resume_from = f"runs/segment-ttdl-{_CONTINUED[name]}"
    if name.startswith("4"):
        cfg.loss.text.fuse_prediction = True
        cfg.optimizer.frozen = ("^concat_adapter/",)
        if name in _INITIAL:
            cfg.init_from = (cfg.init_from, FUSING_ENCODER)
            cfg.init_allow += ("^(image|text)(_projection)?/", "^pooling/", "^logit_")
    masks = dict(type="segmentation", batch_size=8)
    cfg.checkpoint = dict(every=per_epoch, keep=2, best="crops/miou")
    cfg.evals = dict(
        crops=dict(mode="crop", every=per_epoch, **masks),
        whole=dict(at="final", shorter_side=0, num_examples=8, **masks),
    )
    return cfg


def _texts(name: str, describer: bool) -> dict:
    """Returns the section `text`."""
    bootstrap = name.endswith("phase_2")
    writer = dict(
        name="vlm",
        url="http://localhost:11434",
        model="gemma3:12b-it-qat",
        sampling=dict(temperature=0.1, seed=42),
    )
    if bootstrap or name == "1":
        writer = dict(name="templates")
    elif describer:
        writer = dict(name="describer")
    cache: dict = dict(percentile=0.5 if name == "1" else 0.4, empty_similarity=0.0)
    return dict(
        encoder=FUSING_ENCODER if name.startswith("4") else TEXT_ENCODER,
        writer=writer,
        cache=dict(every_pair=True) if bootstrap else cache,
        negatives=dict(image_classes=name in ("3.4", "4.3")),
        pairs_per_image=4,
        staleness=0,
    )
