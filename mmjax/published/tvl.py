"""TVL's published training settings, without a model: for its recipe and converted runs."""

from __future__ import annotations

from typing import Any

import ml_collections

from mmjax import config
from mmjax.pixel_statistics import CLIP_MEAN, CLIP_STD, TACTILE_MEAN, TACTILE_STD

# Training images per epoch of the published recipe: 90 % of the 43,339 pairs outside the test set,
# and images without contact, a tenth as many as there are human-collected pairs.
_EPOCH = 42_500


def tvl_config(*, base_learning_rate: float) -> ml_collections.ConfigDict:
    """Returns TVL's training config without a model.

    Args:
      base_learning_rate: Peak learning rate for a batch of 256: 1.5e-4 for the small and base ViT,
        3e-4 for the other touch encoders.
    """
    cfg = config.base()
    cfg.task = "touch"
    cfg.batch_size = 256
    cfg.total_examples = 200 * _EPOCH
    cfg.log_every = 50
    cfg.data = dict(
        train="datasets/tvl",
        split="train",
        image=dict(size=224),
        touch=dict(size=224, square="pad", quarter_turns=1, background="", antialias=True),
        text=dict(tokenizer="clip", max_tokens=77, candidates=1, keywords=dict()),
    )
    cfg.augment = _augment()
    cfg.loss = dict(name="info_nce", mean_over="pairs", max_logit_scale=0.0)
    cfg.optimizer = dict(
        name="adamw",
        b2=0.95,
        weight_decay=0.05,
        weight_decay_exclude=("bias$", "scale$"),
        frozen=("^image/", "^text/"),
        schedule=dict(
            name="cosine",
            base=base_learning_rate,
            per_examples=256,
            warmup_examples=10 * _EPOCH,
        ),
    )
    cfg.init_allow = ("^touch/", "^heads/", "^logit_", "^extra/")  # arrays OpenCLIP does not have
    cfg.checkpoint = dict(every=1000, keep=2, best="valid/touch_text@0.9/top1")
    retrieval = dict(type="semantic_retrieval", batch_size=64)
    cfg.evals = dict(
        valid=dict(retrieval, split="valid", thresholds=(0.9,), every=1000),
        test=dict(retrieval, split="test", trials=10),
        affinity=dict(type="affinity", threshold=0.636, split="test", batch_size=64),
    )
    return cfg


def _augment() -> dict[str, Any]:
    """Returns the augmentation of images and touch."""
    return dict(
        image=dict(
            mean=CLIP_MEAN,
            std=CLIP_STD,
            horizontal_flip=0.5,
            color_jitter=dict(
                probability=0.8, brightness=(0.8, 1.1), contrast=(0.7, 1.3), saturation=(0.8, 1.2)
            ),
            grayscale=0.2,
            blur=dict(probability=0.5, kernel_size=9, sigma=(0.5, 1.0)),
        ),
        touch=dict(
            mean=TACTILE_MEAN,
            std=TACTILE_STD,
            horizontal_flip=0.5,
            vertical_flip=0.5,
            color_jitter=dict(
                probability=0.8,
                brightness=(0.9, 1.1),
                contrast=(0.9, 1.1),
                saturation=(0.8, 1.2),
                hue=(-0.05, 0.05),
            ),
            quarter_turn=0.5,
        ),
    )
