"""TTDL's settings for fine-tuning FLAIR, without a model: for recipes and converted runs."""

from __future__ import annotations

import ml_collections

from mmjax import config
from mmjax.pixel_statistics import CLIP_MEAN, CLIP_STD

IMAGE_SIZE, MAX_TOKENS = 224, 77
# Examples per epoch. TTDL does not state how many it has; set it to the size of your dataset with
# config.total_examples (16 times that size).
_EPOCH = 30_000
_NUM_EPOCHS = 16


def flair_config(*, image_size: int = IMAGE_SIZE, max_tokens: int = MAX_TOKENS):
    """Returns the training config without a model, for images and captions.

    Only the projection of texts is trained. TTDL crops the center of 224 pixels from overlays of
    520 pixels; here the shorter side is resized to 224 first.

    Args:
      image_size: Height and width of images in pixels.
      max_tokens: Number of token ids of a caption.
    """
    cfg: ml_collections.ConfigDict = config.base()
    cfg.task = "flair"
    cfg.batch_size = 128
    cfg.total_examples = _NUM_EPOCHS * _EPOCH
    cfg.log_every = 10
    cfg.data = dict(
        train="datasets/overlays",
        split="train",
        image=dict(size=image_size, square="crop_resized", resize="bicubic"),
        text=dict(tokenizer="clip", max_tokens=max_tokens, candidates=1),
    )
    cfg.augment = dict(image=dict(mean=CLIP_MEAN, std=CLIP_STD))
    cfg.loss = dict(multi_positive=True, max_logit_scale=100.0)
    cfg.optimizer = dict(
        name="adamw",
        b1=0.9,
        b2=0.98,
        eps=1e-8,
        weight_decay=0.5,
        clip_norm=10.0,
        frozen=("^image/", "^text/", "^image_projection/", "^pooling/", "^logit_"),
        schedule=dict(name="cosine", base=5e-4, warmup_steps=100),
    )
    return cfg
