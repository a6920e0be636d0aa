"""TTDL's settings for fine-tuning FLAIR, without a model: for recipes and converted runs."""

from __future__ import annotations

import ml_collections

from mmjax import config
from mmjax.pixel_statistics import CLIP_MEAN, CLIP_STD

# Examples per epoch. TTDL does not state how many it has; for your data, set
# config.total_examples to 16 times their number.
_EPOCH = 30_000
_NUM_EPOCHS = 16


def flair_config(
    *, reference: bool = False, image_size: int = 224, max_tokens: int = 77
) -> ml_collections.ConfigDict:
    """Returns TTDL's training config without a model.

    Only the projection of texts is trained, or with `reference` the `concat_adapter`.

    Args:
      reference: Whether captions describe the difference between two frames of a record, for
        example overlays of the true and of the predicted mask. Otherwise they describe one image,
        for example an overlay of the pixels where the masks differ.
      image_size: Height and width of images in pixels. TTDL crops 224 pixels from the center of
        overlays of 520 pixels; here, their shorter side is resized to 224.
      max_tokens: Number of token ids of a caption.
    """
    cfg = config.base()
    cfg.task = "flair"
    cfg.batch_size = 128
    cfg.total_examples = _NUM_EPOCHS * _EPOCH
    cfg.log_every = 10
    image = dict(size=image_size, square="crop_resized", resize="bicubic")
    cfg.data = dict(
        train="datasets/mask_pairs" if reference else "datasets/mask_differences",
        split="train",
        image=dict(image, frame=-1) if reference else image,
        reference=dict(image, frame=0) if reference else None,
        text=dict(tokenizer="clip", max_tokens=max_tokens, candidates=1, sample="random"),
    )
    cfg.augment = dict(image=dict(mean=CLIP_MEAN, std=CLIP_STD))
    cfg.loss = dict(multi_positive=True, max_logit_scale=100.0, min_logit_scale=1.0)
    trained = "concat_adapter" if reference else "text_projection"
    parts = ("image", "text", "image_projection", "text_projection", "pooling")
    cfg.optimizer = dict(
        name="adamw",
        b1=0.9,
        b2=0.98,
        eps=1e-8,
        weight_decay=0.5,
        clip_norm=10.0,
        frozen=(*(f"^{part}/" for part in parts if part != trained), "^logit_"),
        schedule=dict(name="cosine", base=5e-4, warmup_steps=100),
    )
    if reference:
        cfg.init_allow = ("^concat_adapter/",)  # FLAIR does not have it
    cfg.checkpoint = dict(every=250, keep=2, best="valid/text_to_image/mean_rank", best_of="min")
    retrieval = dict(type="retrieval", query=("text", "image"), target=("image", "text"))
    cfg.evals = dict(valid=dict(retrieval, split="valid", batch_size=64, every=250))
    return cfg
