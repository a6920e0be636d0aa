"""Images of any size to the input of CLIP's and FLAIR's image towers, on the device, inside jit.

Images of a dataset get their size in the input pipeline (`data.image`); use this for images that
are made on the device, such as overlays of masks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.pixel_statistics import CLIP_MEAN, CLIP_STD
from mmjax.preprocess.color import normalize, to_float


def clip_images(images: jax.Array, size: int = 224) -> jax.Array:
    """Returns normalized square images, float32 [..., size, size, 3].

    The shorter side is resized to `size` bicubically with antialiasing, as torchvision does with
    tensors; values are not clipped. Then the center is cropped.

    Args:
      images: [..., H, W, 3], uint8 or float in [0, 1].
      size: Height and width.
    """
    x = to_float(images) if images.dtype == jnp.uint8 else images.astype(jnp.float32)
    height, width = x.shape[-3:-1]
    shorter = min(height, width)
    new = tuple(size if side == shorter else size * side // shorter for side in (height, width))
    if new != (height, width):
        x = jax.image.resize(x, (*x.shape[:-3], *new, x.shape[-1]), "cubic", antialias=True)
    for axis, side in zip((-3, -2), new, strict=True):
        start = round((side - size) / 2)  # half a pixel is rounded to even, as in torchvision
        x = jax.lax.slice_in_dim(x, start, start + size, axis=x.ndim + axis)
    return normalize(x, CLIP_MEAN, CLIP_STD)
