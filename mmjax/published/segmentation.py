"""Settings for training segmentation models, without a model: for recipes and converted runs.

They are those of TTDL (Training Vision Tasks Using Diagnostic Text Description Loss).
"""

from __future__ import annotations

import ml_collections

from mmjax import config

NUM_IMAGES, _NUM_EPOCHS = 1464, 50  # of VOC2012's training split


def segmentation_config(*, image_size: int = 520) -> ml_collections.ConfigDict:
    """Returns the training config with cross-entropy only.

    The shorter side of images is scaled to the size of the model, and the center is cropped. Unlike
    in TTDL, biases and norms have no weight decay.

    Args:
      image_size: Height and width of crops in pixels.
    """
    cfg: ml_collections.ConfigDict = config.base()
    cfg.task = "segment"
    cfg.batch_size = 8
    cfg.total_examples = _NUM_EPOCHS * NUM_IMAGES
    cfg.log_every = 5
    cfg.data = dict(
        train="datasets/voc2012",
        split="train",
        segmentation=dict(
            size=image_size, shorter_side=image_size, crop="center", flip=False, nearest="floor"
        ),
    )
    cfg.optimizer = dict(
        name="adamw",
        weight_decay=10**-0.5,
        weight_decay_exclude=("bias$", "norm"),
        clip_norm=10.0,
        schedule=dict(name="cosine", base=1e-4, warmup_steps=200),
    )
    return cfg
