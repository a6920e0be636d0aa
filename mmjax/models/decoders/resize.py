"""Changes of the resolution of feature maps, with PyTorch's conventions.

Bilinear resizing never antialiases, unlike `jax.image.resize` when it shrinks.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


@functools.lru_cache(maxsize=64)
def _bilinear_matrix(size: int, new_size: int, align_corners: bool) -> np.ndarray:
    """Returns the matrix [new_size, size] that interpolates linearly along an axis."""
    if align_corners:
        positions = np.arange(new_size) * ((size - 1) / max(new_size - 1, 1))
    else:
        positions = np.maximum((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0)
    lower = np.minimum(positions.astype(int), size - 1)
    upper = np.minimum(lower + 1, size - 1)
    fraction = positions - lower
    rows = np.arange(new_size)
    matrix = np.zeros((new_size, size), np.float32)
    np.add.at(matrix, (rows, lower), 1 - fraction)
    np.add.at(matrix, (rows, upper), fraction)
    matrix.flags.writeable = False  # shared by all callers
    return matrix


def _resize(x: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    for axis, new_size in zip((-3, -2), size, strict=True):
        if x.shape[axis] != new_size:
            matrix = _bilinear_matrix(x.shape[axis], new_size, align_corners).astype(x.dtype)
            equation = "oh,...hwc->...owc" if axis == -3 else "ow,...hwc->...hoc"
            x = jnp.einsum(equation, matrix, x, precision="highest")
    return x


def resize_half_pixel(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes maps bilinearly as PyTorch does with `align_corners=False`.

    Args:
      x: [..., h, w, C].
      size: New height and width.

    Returns:
      [..., height, width, C].
    """
    return _resize(x, size, align_corners=False)


def resize_corners(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes maps bilinearly as PyTorch does with `align_corners=True`.

    The centers of the corner pixels stay in place.

    Args:
      x: [..., h, w, C].
      size: New height and width.

    Returns:
      [..., height, width, C].
    """
    return _resize(x, size, align_corners=True)


def resize_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns maps [..., h, w, C] resized as PyTorch does with `mode='nearest'`.

    New pixel i is old pixel ⌊i · h / height⌋. `jax.image.resize` takes the nearest center instead.

    Args:
      x: [..., h, w, C], of any dtype.
      size: New height and width.
    """
    for axis, new_size in zip((-3, -2), size, strict=True):
        if x.shape[axis] != new_size:
            x = jnp.take(x, np.arange(new_size) * x.shape[axis] // new_size, axis=axis)
    return x


def pixel_shuffle(x: jax.Array) -> jax.Array:
    """Moves channels to space: out[2y+i, 2x+j, c] = x[y, x, 4c + 2i + j].

    Args:
      x: [..., h, w, 4C].

    Returns:
      [..., 2h, 2w, C].
    """
    *batch, height, width, channels = x.shape
    x = x.reshape(*batch, height, width, channels // 4, 2, 2)
    x = jnp.moveaxis(x, (-2, -1), (-4, -2))  # [..., h, 2, w, 2, C]
    return x.reshape(*batch, 2 * height, 2 * width, channels // 4)


def halve(x: jax.Array) -> jax.Array:
    """Returns maps [N, h, w, C] max-pooled over 2×2 pixels; odd sizes are rounded up."""
    return nnx.max_pool(x, (2, 2), (2, 2), "SAME")


def fit(x: jax.Array, size: tuple[int, int] | None) -> jax.Array:
    """Returns maps of the size of an image.

    Maps of an image with an odd side are one pixel larger, because encoders round up. Their last
    row or column is cut off. Maps of any other size are resized.

    Args:
      x: [N, h, w, C].
      size: Height and width; None keeps the maps.
    """
    if size is None:
        return x
    if all(0 <= s - n < 2 for s, n in zip(x.shape[1:3], size, strict=True)):
        return x[:, : size[0], : size[1]]
    return resize_half_pixel(x, size)
