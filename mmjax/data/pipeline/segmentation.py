"""Images with segmentation masks: the section `data.segmentation` and its pipeline functions.

Image and mask of an example are scaled, cropped and mirrored together, with random choices of the
example's own. They stay uint8 until they are on the device. Evaluation over whole images reads the
same records in another way; see `mmjax.data.pipeline.whole_images`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline import crops, mask_geometry
from mmjax.data.pipeline.common import Context, check_positive, encoded_parser, random_below
from mmjax.data.pipeline.mask_geometry import Nearest
from mmjax.data.pipeline.phases import Features, Pipeline, seed_of
from mmjax.data.storage import mask_files, schema
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation:
    """The section `data.segmentation`.

    Attributes:
      size: Height and width of the crops in pixels.
      shorter_side: Length of the shorter side of the image before it is cropped; 0 keeps the size
        that is stored. The longer side follows, rounded down.
      scale: Range of a random factor by which training images are scaled in addition.
      crop: Whether the crops of training images are at a 'random' position or in the 'center'.
        Those of evaluation are in the center.
      flip: Whether half of the training images are mirrored.
      nearest: Which pixel a resized mask shows: the one with the nearest 'center', or that
        at the 'floor' of the scaled position, as in TTDL and PyTorch.
      num_classes: Number of classes; 0 takes that of the datasets.
    """

    size: int = 512
    shorter_side: int = 0
    scale: tuple[float, ...] = (1.0, 1.0)
    crop: Literal["random", "center"] = "random"
    flip: bool = True
    nearest: Nearest = "center"
    num_classes: int = 0

    def __post_init__(self) -> None:
        check_positive("segmentation", self, "size")
        if self.shorter_side < 0:
            raise UserError(
                f"data.segmentation.shorter_side={self.shorter_side} must be a length in pixels, "
                "or 0 for the size that is stored."
            )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(
                f"data.segmentation.scale={self.scale} must be (low, high) with 0 < low <= high."
            )
        if not 0 <= self.num_classes <= mask_files.MAX_CLASSES:
            raise UserError(
                f"data.segmentation.num_classes={self.num_classes} must be from 1 to "
                f"{mask_files.MAX_CLASSES}, or 0 for that of the datasets."
            )

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """{field: (shape of one example, dtype)}."""
        size = (self.size, self.size)
        return {
            "image": ((*size, 3), "uint8"),
            "image_mask": ((), "float32"),
            "segmentation": (size, "uint8"),
        }


def class_names(options: Segmentation, infos: Sequence[DatasetInfo]) -> list[str]:
    """Returns the names of the classes of masks by value.

    Args:
      options: The section.
      infos: Description of the dataset of each source.

    Raises:
      UserError: A dataset does not name the classes of its masks, or two datasets differ.
    """
    named = {tuple(info.mask_classes) for info in infos}
    if options.num_classes and (len(named) != 1 or len(*named) != options.num_classes):
        return [str(value) for value in range(options.num_classes)]
    if len(named) != 1 or not all(named):
        listed = "; ".join(
            f"{info.name}: {', '.join(info.mask_classes[:8]) or 'unknown'}"
            + (", …" if len(info.mask_classes) > 8 else "")
            for info in infos
        )
        raise UserError(
            "data.segmentation takes the classes of masks from the datasets, but they do not agree "
            f"on them ({listed}). Build the datasets with the same --mask-classes, or set "
            "data.segmentation.num_classes."
        )
    return list(named.pop())


def add_segmentation(pipeline: Pipeline, options: Segmentation, context: Context) -> None:
    """Adds the batch fields `image`, `image_mask` and `segmentation`.

    `image` is uint8 [H, W, 3], without an axis of views, and `image_mask` is 0 for an example
    without an image. `segmentation` is uint8 [H, W], the class of each pixel, and 255 for pixels
    without a class: those that the dataset ignores, those outside of the image, and all pixels of
    an example without a mask.

    Functions: 'segmentation' in the phases parse, sample, decode and preprocess. Of a video,
    training samples one frame; evaluation takes the middle one.
    """
    key = schema.MASKS[0]
    num_classes = len(class_names(options, context.infos))
    parse_image = encoded_parser(pipeline, schema.FRAMES[0], "_image", "image_mask")
    pipeline.sequence(key, tf.string)

    def parse(features: Features) -> Features:
        masks = features[f"_sequence/{key}"].flat_values
        return parse_image(features) | {"_masks": masks}

    def sample(features: Features) -> Features:
        images, masks = features["_image"], features["_masks"]
        count = tf.size(images)
        seed = seed_of(features, "segmentation frame")
        index = random_below(count, seed) if context.train else count // 2
        image = pipeline.resolve(features["_source"], images[index][None])
        fits = (tf.size(masks) == count) & (features["image_mask"] > 0)
        tf.debugging.Assert(
            fits | (tf.size(masks) == 0),
            ["the record has", count, "images but", tf.size(masks), "segmentation masks"],
        )
        masks = tf.cond(fits, lambda: masks[index][None], lambda: masks[:0])
        return features | {"_image": image, "_masks": masks}

    def decode(features: Features) -> Features:
        image = crops.decode(features["_image"], count=1, dct="accurate")[0]
        mask = decode_mask(features["_masks"], tf.shape(image)[:2])
        check_mask(mask, tf.shape(image)[:2], num_classes)
        return features | {"_image": image, "_mask": mask}

    def preprocess(features: Features) -> Features:
        image, mask = features["_image"], features["_mask"]
        scaled, start = _window(tf.shape(mask), features, options, train=context.train)
        size = (options.size, options.size)
        image = mask_geometry.cut_image(image, scaled, start, size)
        mask = mask_geometry.cut_mask(mask, scaled, start, size, options.nearest)
        if context.train and options.flip:
            is_mirrored = crops.random_flip(seed_of(features, "segmentation flip"))
            image, mask = (_mirrored(x, is_mirrored) for x in (image, mask))
        return features | {
            "image": tf.ensure_shape(image, [*size, 3]),
            "segmentation": tf.ensure_shape(mask, size),
        }

    pipeline.add("parse", "segmentation", parse)
    pipeline.add("sample", "segmentation", sample)
    pipeline.add("decode", "segmentation", decode)
    pipeline.add("preprocess", "segmentation", preprocess)


def _window(
    stored: tf.Tensor, features: Features, options: Segmentation, *, train: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the scaled size and the position of the crop of an example."""
    factor: tf.Tensor | float = 1.0
    if train and options.scale != (1.0, 1.0):
        seed = seed_of(features, "segmentation scale")
        factor = tf.random.stateless_uniform([], seed, *options.scale)
    scaled = mask_geometry.scaled_size(stored, shorter_side=options.shorter_side, factor=factor)
    if train and options.crop == "random":
        seed = seed_of(features, "segmentation crop")
        return scaled, mask_geometry.random_start(scaled, options.size, seed)
    return scaled, mask_geometry.center_start(scaled, options.size)


def _mirrored(pixels: tf.Tensor, is_mirrored: tf.Tensor) -> tf.Tensor:
    return tf.cond(is_mirrored, lambda: tf.reverse(pixels, [1]), lambda: pixels)


def decode_mask(masks: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the class map uint8 [H, W] in masks, string [1]; without a class for string [0]."""
    mask = tf.cond(
        tf.size(masks) > 0,
        lambda: tf.io.decode_png(masks[0], channels=1),
        lambda: tf.fill([size[0], size[1], 1], np.uint8(mask_files.IGNORE)),
    )
    return tf.ensure_shape(mask, [None, None, 1])[..., 0]


def check_mask(mask: tf.Tensor, size: tf.Tensor, num_classes: int) -> None:
    """Raises InvalidArgumentError for a mask of another size, or with an unknown class.

    Args:
      mask: uint8 [H, W].
      size: Size of the image.
      num_classes: Number of classes.
    """
    tf.debugging.Assert(
        tf.reduce_all(tf.shape(mask) == size),
        ["the segmentation mask has height and width", tf.shape(mask), "but its image has", size],
    )
    value = tf.reduce_max(tf.where(mask == mask_files.IGNORE, tf.zeros_like(mask), mask))
    tf.debugging.Assert(
        tf.cast(value, tf.int32) < num_classes,
        [
            "the segmentation mask has the value",
            value,
            f"but there are {num_classes} classes, numbered from 0, and {mask_files.IGNORE} for "
            "pixels without a class. Set data.segmentation.num_classes, or correct the masks",
        ],
    )
