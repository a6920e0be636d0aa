"""Images and their segmentation masks, scaled and cropped together.

A crop is a square window of the whole scaled image. Images are resized bilinearly with
antialiasing, masks to the nearest pixel. Where the window extends beyond the image, the image has
the mean color of ImageNet and the mask has no class. All functions work in tf.data and eagerly.

Sizes are int32 [2], height and width in pixels. Positions are (row, column) in the scaled image.
"""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

from mmjax.data.pipeline.common import random_below
from mmjax.data.storage.mask_files import IGNORE

# Which pixel of a mask a pixel of the scaled mask shows: the one with the nearest center, or that
# at floor(position * old size / new size), as PyTorch's 'nearest'.
Nearest = Literal["center", "floor"]

PADDING = (124, 116, 104)  # the mean color of ImageNet, which normalization makes 0


def scaled_size(
    size: tf.Tensor, *, shorter_side: int, factor: tf.Tensor | float = 1.0
) -> tf.Tensor:
    """Returns the size of a whole image after scaling.

    Args:
      size: Stored size.
      shorter_side: Length of the shorter side before `factor`; 0 for that of the stored size. The
        longer side is rounded down.
      factor: Factor by which both sides are scaled, with rounding.
    """
    if shorter_side:
        size = size * shorter_side // tf.reduce_min(size)
    scaled = tf.cast(size, tf.float32) * factor
    return tf.maximum(tf.cast(tf.round(scaled), tf.int32), 1)


def center_start(scaled: tf.Tensor, size: tf.Tensor | int) -> tf.Tensor:
    """Returns the position of a central window, as torchvision's CenterCrop.

    Args:
      scaled: Size of the scaled image.
      size: Size of the window. A larger window starts at a negative position.
    """
    room = scaled - size
    half = tf.cast(tf.round(tf.cast(room, tf.float32) / 2), tf.int32)  # half a pixel to even
    return tf.where(room < 0, -(-room // 2), half)


def random_start(scaled: tf.Tensor, size: int, seed: tf.Tensor) -> tf.Tensor:
    """Returns the position of a random window; a larger window contains the whole image.

    Args:
      scaled: Size of the scaled image.
      size: Size of the window.
      seed: int64 [2].
    """
    room = scaled - size
    rows, columns = (random_below(tf.abs(room[axis]) + 1, seed + [0, axis]) for axis in range(2))
    return tf.where(room < 0, -1, 1) * tf.stack([rows, columns])


def cut_image(
    image: tf.Tensor, scaled: tf.Tensor, start: tf.Tensor, size: tuple[int, int]
) -> tf.Tensor:
    """Returns a window of a scaled image.

    Args:
      image: uint8 [H, W, 3], stored pixels.
      scaled: Size of the whole image after scaling.
      start: Position of the window.
      size: Size of the window.

    Returns:
      uint8 [*size, 3].
    """
    stored = tf.shape(image)[:2]
    # The same operation as `tf.image.resize` with antialiasing, of only the window.
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=size,
        scale=tf.cast(scaled, tf.float32) / tf.cast(stored, tf.float32),
        translation=-tf.cast(start, tf.float32),
        kernel_type="triangle",
        antialias=True,
    )[0]
    rows, columns = (_inside(_positions(start, size, axis), scaled, axis) for axis in range(2))
    pixels = tf.saturate_cast(tf.round(pixels), tf.uint8)
    inside = rows[:, None, None] & columns[:, None]
    return tf.where(inside, pixels, tf.constant(PADDING, tf.uint8))


def cut_mask(
    mask: tf.Tensor,
    scaled: tf.Tensor,
    start: tf.Tensor,
    size: tuple[int, int],
    nearest: Nearest = "center",
) -> tf.Tensor:
    """Returns the same window of the scaled mask, uint8 `size`.

    Args:
      mask: uint8 [H, W], stored pixels.
      scaled, start, size: See `cut_image`.
      nearest: Which pixels to take.
    """
    stored = tf.shape(mask)
    for axis in range(2):
        position = _positions(start, size, axis)
        if nearest == "floor":
            source = position * stored[axis] // scaled[axis]
        else:
            source = (2 * position + 1) * stored[axis] // (2 * scaled[axis])
        mask = tf.gather(mask, tf.clip_by_value(source, 0, stored[axis] - 1), axis=axis)
    rows, columns = (_inside(_positions(start, size, axis), scaled, axis) for axis in range(2))
    return tf.where(rows[:, None] & columns, mask, tf.constant(IGNORE, tf.uint8))


def _positions(start: tf.Tensor, size: tuple[int, int], axis: int) -> tf.Tensor:
    return start[axis] + tf.range(size[axis])


def _inside(positions: tf.Tensor, scaled: tf.Tensor, axis: int) -> tf.Tensor:
    return (positions >= 0) & (positions < scaled[axis])
