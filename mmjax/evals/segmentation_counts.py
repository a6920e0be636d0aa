"""Counts of pixels for metrics of semantic segmentation, on the device and in integers.

Images of different sizes share arrays of one shape [B, H, W]: image b fills the first
`sizes[b]` = (height, width) rows and columns. Pixels outside are never counted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.data.storage.mask_files import IGNORE

_FAR = 1 << 20  # more than the side of any image


def classes_at(
    logits: jax.Array, sizes: jax.Array, new_sizes: jax.Array, shape: tuple[int, int]
) -> jax.Array:
    """Returns the class with the largest logit, after resizing the logits.

    Resizing is bilinear between pixel centers, without antialiasing, from `sizes` to `new_sizes`.

    Args:
      logits: [B, H, W, C].
      sizes: int [B, 2], part of the logits that belongs to the image.
      new_sizes: int [B, 2], size of the same part after resizing.
      shape: Height and width of the result.

    Returns:
      uint8 [B, *shape].
    """

    def one(logits, size, new_size):
        values = logits.astype(jnp.float32)
        for axis in (0, 1):
            low, high, weight = _between(size[axis], new_size[axis], shape[axis])
            weight = weight.reshape(-1, *(1,) * (values.ndim - 1 - axis))
            below, above = (jnp.take(values, index, axis=axis) for index in (low, high))
            values = below + weight * (above - below)
        return values.argmax(-1).astype(jnp.uint8)

    return jax.vmap(one)(logits, sizes, new_sizes)


def _between(size: jax.Array, new_size: jax.Array, length: int) -> tuple[jax.Array, ...]:
    """Returns the two pixels that each new pixel is between, and the weight of the second."""
    scale = size.astype(jnp.float32) / jnp.maximum(new_size, 1).astype(jnp.float32)
    position = (jnp.arange(length, dtype=jnp.float32) + 0.5) * scale - 0.5
    last = jnp.maximum(size - 1, 0)
    position = jnp.clip(position, 0, last.astype(jnp.float32))
    low = jnp.floor(position).astype(jnp.int32)
    return low, jnp.minimum(low + 1, last), position - low


def confusion(classes: jax.Array, truth: jax.Array, num_classes: int) -> jax.Array:
    """Returns how many pixels of a class (row) are predicted as a class (column), int32 [C, C].

    Args:
      classes: Predicted classes, int [B, H, W].
      truth: Classes, int [B, H, W]. Pixels with other values than classes are not counted.
      num_classes: Number of classes C.
    """
    pairs = truth.astype(jnp.int32) * num_classes + classes.astype(jnp.int32)
    pairs = jnp.where(truth < num_classes, pairs, num_classes**2)
    counts = jax.vmap(lambda x: jnp.bincount(x.ravel(), length=num_classes**2 + 1))(pairs)
    return counts.sum(0)[:-1].reshape(num_classes, num_classes).astype(jnp.int32)


def boundary_counts(
    classes: jax.Array, truth: jax.Array, sizes: jax.Array, radii: jax.Array, num_classes: int
) -> jax.Array:
    """Returns counts of the pixels near the boundaries of each class, int32 [C, 3].

    A pixel belongs to the boundary of its class if the square around it that extends to the radius
    contains another class or extends beyond the image. The counts are those of pixels that belong
    to the boundary of a class in both masks, in the prediction, and in the truth. Pixels without a
    class in the truth have none in the prediction either, and are a region of their own.

    Source: Cheng et al. 2021, Boundary IoU, arXiv 2103.16562, where the radius is 2 % of the
    diagonal of the image.

    Args:
      classes: Predicted classes, int [B, H, W].
      truth: Classes, int [B, H, W].
      sizes: int [B, 2].
      radii: int [B].
      num_classes: Number of classes C.
    """
    classes = jnp.where(truth < num_classes, classes, IGNORE)

    def one(classes, truth, size, radius):
        predicted, labeled = (boundary(x, size, radius) for x in (classes, truth))
        return jnp.stack(
            [
                _histogram(truth, predicted & labeled & (classes == truth), num_classes),
                _histogram(classes, predicted, num_classes),
                _histogram(truth, labeled, num_classes),
            ],
            -1,
        )

    return jax.vmap(one)(classes, truth, sizes, radii).sum(0).astype(jnp.int32)


def _histogram(classes: jax.Array, where: jax.Array, num_classes: int) -> jax.Array:
    index = jnp.where(where & (classes < num_classes), classes, num_classes)
    return jnp.bincount(index.ravel(), length=num_classes + 1)[:-1]


def boundary(classes: jax.Array, size: jax.Array, radius: jax.Array) -> jax.Array:
    """Returns the pixels that belong to the boundary of their class, bool [H, W].

    Args:
      classes: int [H, W].
      size: int [2], part of the array that belongs to the image.
      radius: int [], at least 1.
    """
    inside = (jnp.arange(classes.shape[0]) < size[0])[:, None]
    inside &= jnp.arange(classes.shape[1]) < size[1]
    labels = jnp.where(inside, classes.astype(jnp.int32), -1)
    # The square is of one class if its central column is, and so are all of its rows.
    rows = _extent(labels, axis=1) >= radius
    interior = (_extent(labels, axis=0) >= radius) & (_reach(rows, axis=0) > radius)
    return inside & ~interior


def _extent(labels: jax.Array, axis: int) -> jax.Array:
    """Returns how many pixels on both sides of a pixel are like it, the smaller number."""
    length = labels.shape[axis]
    position = jnp.expand_dims(jnp.arange(length), 1 - axis)
    changes = jnp.diff(labels, axis=axis) != 0
    first, last = [(1, 0), (0, 0)], [(0, 1), (0, 0)]
    if axis == 1:
        first, last = first[::-1], last[::-1]
    is_first = jnp.pad(changes, first, constant_values=True)
    is_last = jnp.pad(changes, last, constant_values=True)
    start = jax.lax.cummax(jnp.where(is_first, position, 0), axis=axis)
    end = jax.lax.cummin(jnp.where(is_last, position, length), axis=axis, reverse=True)
    return jnp.minimum(position - start, end - position)


def _reach(condition: jax.Array, axis: int) -> jax.Array:
    """Returns the distance to the nearest pixel along an axis where the condition is false."""
    position = jnp.expand_dims(jnp.arange(condition.shape[axis]), 1 - axis)
    before = jax.lax.cummax(jnp.where(condition, -_FAR, position), axis=axis)
    after = jax.lax.cummin(jnp.where(condition, _FAR, position), axis=axis, reverse=True)
    return jnp.minimum(position - before, after - position)
