"""Pixel values and colors: scaling, normalization, and random color changes.

Two conventions of color jitter are in use, and results that are to be comparable need the right
one: `ColorJitter` is that of torchvision, per image; `DMVRColorJitter` is that of DMVR and VATT,
per video clip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.preprocess import example_random

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2


def to_float(images: jax.Array, *, zero_centered: bool = False) -> jax.Array:
    """Returns uint8 pixels of any shape as float32 in [0, 1], or in [-1, 1] if `zero_centered`.

    Raises:
      TypeError: The pixels are not uint8.
    """
    if images.dtype != jnp.uint8:
        raise TypeError(f"Pixels must be uint8; got {images.dtype}.")
    images = images.astype(jnp.float32)
    return images * (2.0 / 255.0) - 1.0 if zero_centered else images * (1.0 / 255.0)


def normalize(
    images: jax.Array, mean: Sequence[float] | None, std: Sequence[float] | None
) -> jax.Array:
    """Returns (x - mean) / std of each channel.

    Args:
      images: float [..., 3].
      mean: One value per channel; None for 0.
      std: One value per channel; None for 1.
    """
    if mean is not None:
        images = images - jnp.asarray(mean, images.dtype)
    return images if std is None else images / jnp.asarray(std, images.dtype)


def luma(images: jax.Array) -> jax.Array:
    """Returns the luma of ITU-R 601 (Pillow's gray): [..., 3] -> [..., 1]."""
    return (images * jnp.asarray(_LUMA, images.dtype)).sum(axis=-1, keepdims=True)


def grayscale(keys: jax.Array, images: jax.Array, probability: float = 0.2) -> jax.Array:
    """Replaces images by their luma in three equal channels, with some probability each.

    Args:
      keys: One key per image, [B].
      images: float [B, H, W, 3].
      probability: Probability that an image is changed.
    """
    gray = jnp.broadcast_to(luma(images), images.shape)
    return example_random.apply_to_some(keys, probability, gray, images)


def adjust_contrast(images: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Scales the deviation of each channel from its mean over the image [..., H, W, 3]."""
    mean = images.mean(axis=(-3, -2), keepdims=True)
    return (images - mean) * factor + mean


def adjust_saturation(images: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Multiplies the saturation in HSV by `factor`, up to 1; hue and value stay: [..., 3]."""
    value = images.max(axis=-1, keepdims=True)
    chroma = value - images.min(axis=-1, keepdims=True)
    saturation = jnp.where(value > 0, chroma / jnp.where(value > 0, value, 1.0), 0.0)
    target = jnp.clip(saturation * factor, 0.0, 1.0)
    # With hue and value fixed, a channel's distance from the value is proportional to the
    # saturation.
    ratio = jnp.where(saturation > 0, target / jnp.where(saturation > 0, saturation, 1.0), 0.0)
    return value - (value - images) * ratio


def adjust_hue(images: jax.Array, turn: jax.Array | float) -> jax.Array:
    """Shifts the hue in HSV; the largest and the smallest channel value stay: [..., 3].

    Args:
      images: float [..., 3].
      turn: Shift, where 1 is a full turn of the color circle.
    """
    red, green, blue = images[..., 0], images[..., 1], images[..., 2]
    high, low = images.max(axis=-1), images.min(axis=-1)
    chroma = high - low
    safe = jnp.where(chroma > 0, chroma, 1.0)
    # In sixths of a turn. Channels are compared with each other, not with `high`: a compiler may
    # compute it twice, with results that differ by a bit.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / safe,
        jnp.where(green >= blue, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    turn = jnp.asarray(turn)
    hue = (hue + 6.0 * (turn[..., 0] if turn.ndim else turn)) % 6.0
    channels = (
        jnp.abs(hue - 3.0) - 1.0,
        2.0 - jnp.abs(hue - 2.0),
        2.0 - jnp.abs(hue - 4.0),
    )
    shares = jnp.clip(jnp.stack(channels, axis=-1), 0.0, 1.0)
    return low[..., None] + chroma[..., None] * shares


@dataclasses.dataclass(frozen=True, kw_only=True)
class DMVRColorJitter:
    """The color augmentation of DMVR and VATT: the same random change for all frames of a clip.

    In this order: U(-brightness, brightness) is added; saturation and contrast are multiplied by a
    factor from their range, contrast around each frame's mean of each channel; the hue is shifted
    by U(-hue, hue) of a full turn; the result is clipped to [0, 1]. Saturation and hue are those
    of HSV.

    Attributes:
      probability: Probability that a clip is changed.
      brightness: Largest change of the brightness.
      saturation: Range of the factor.
      contrast: Range of the factor.
      hue: Largest shift of the hue, as a fraction of a full turn.
    """

    probability: float = 0.8
    brightness: float = 32.0 / 255.0
    saturation: tuple[float, float] = (0.6, 1.4)
    contrast: tuple[float, float] = (0.6, 1.4)
    hue: float = 0.2

    def __call__(self, key: jax.Array, video: jax.Array) -> jax.Array:
        """Changes the colors of clips.

        Args:
          key: One key for all clips.
          video: float [..., T, H, W, 3] in [0, 1].
        """
        clips = video.shape[:-4]
        keys = jax.random.split(key, 5)

        def uniform(key, low, high):
            return jax.random.uniform(key, (*clips, 1, 1, 1, 1), jnp.float32, low, high)

        changed = video + uniform(keys[0], -self.brightness, self.brightness)
        changed = adjust_saturation(changed, uniform(keys[1], *self.saturation))
        changed = adjust_contrast(changed, uniform(keys[2], *self.contrast))
        changed = adjust_hue(changed, uniform(keys[3], -self.hue, self.hue))
        changed = jnp.clip(changed, 0.0, 1.0)
        return jnp.where(uniform(keys[4], 0.0, 1.0) < self.probability, changed, video)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """The color augmentation of torchvision's ColorJitter, random for each image.

    Brightness, contrast and saturation blend an image with black, with its mean gray, and with its
    grayscale version: factor · image + (1 - factor) · other, clipped to [0, 1]. The hue is shifted
    in HSV.

    Attributes:
      probability: Probability that an image is changed.
      brightness, contrast, saturation: Range (low, high) of the factor; None for 1.
      hue: Range (low, high) of the shift as a fraction of a full turn; None for 0.
      order: Order of the operations: 'random' for each image; 'batch' is one random order for the
        whole batch, as in kornia; 'fixed' is brightness, contrast, saturation, hue.

    Raises:
      UserError: A range is invalid.
    """

    probability: float = 0.8
    brightness: tuple[float, float] | None = None
    contrast: tuple[float, float] | None = None
    saturation: tuple[float, float] | None = None
    hue: tuple[float, float] | None = None
    order: Literal["random", "batch", "fixed"] = "random"

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            example_random.check_range(name, getattr(self, name), 0.0, np.inf)
        example_random.check_range("hue", self.hue, -0.5, 0.5)

    def __call__(
        self, keys: jax.Array, images: jax.Array, *, batch_key: jax.Array | None = None
    ) -> jax.Array:
        """Changes the colors of images.

        Args:
          keys: One key per image, [B].
          images: float [B, H, W, 3] in [0, 1].
          batch_key: Key of the order of operations, for order='batch'.
        """
        ranges = {name: getattr(self, name) for name in (*_BLENDS, "hue")}
        ranges = {name: value for name, value in ranges.items() if value is not None}
        *value_keys, order_keys, apply_keys = example_random.split(keys, len(ranges) + 2)
        apply = example_random.uniform(apply_keys) < self.probability
        values = {
            name: jnp.where(
                apply,
                example_random.uniform(value_key, *ranges[name]),
                0.0 if name == "hue" else 1.0,
            )
            for name, value_key in zip(ranges, value_keys, strict=True)
        }
        orders = self._orders(order_keys, batch_key, len(ranges))
        # Each image has its own order, so each stage may be any operation. But blends differ only
        # in the image to blend with, and a blend by 1 or a shift by 0 changes nothing.
        selected = {name: orders == rank for rank, name in enumerate(ranges)}  # [B, stages]
        for stage in range(len(ranges)):
            now = {
                name: example_random.per_image(chosen[:, stage])
                for name, chosen in selected.items()
            }
            images = _jitter_stage(images, now, values)
        return images

    def _orders(self, keys: jax.Array, batch_key: jax.Array | None, count: int) -> jax.Array:
        """Returns the operation of each stage for each image, int [B, stages]."""
        ranks = jnp.arange(count)
        if self.order == "random":
            return jax.vmap(lambda key: jax.random.permutation(key, ranks))(keys)
        if self.order == "batch":
            if batch_key is None:
                raise ValueError("order='batch' needs a batch_key.")
            ranks = jax.random.permutation(batch_key, ranks)
        return jnp.broadcast_to(ranks, (len(keys), count))


_BLENDS = ("brightness", "contrast", "saturation")


def _jitter_stage(
    images: jax.Array, now: dict[str, jax.Array], values: dict[str, jax.Array]
) -> jax.Array:
    """Applies one operation to each image.

    Args:
      images: float [B, H, W, 3].
      now: {operation: bool [B, 1, 1, 1], whether it is the one of the image}.
      values: {operation: its factor or shift, float [B]}.
    """
    factor, gray = jnp.ones((len(images), 1, 1, 1)), luma(images)
    other = jnp.zeros_like(gray)
    for name in _BLENDS:
        if name in now:
            factor = jnp.where(now[name], example_random.per_image(values[name]), factor)
    if "contrast" in now:
        other = jnp.where(now["contrast"], gray.mean(axis=(1, 2), keepdims=True), other)
    if "saturation" in now:
        other = jnp.where(now["saturation"], gray, other)
    result = jnp.clip(factor * images + (1.0 - factor) * other, 0.0, 1.0)
    if "hue" in now:
        turn = example_random.per_image(values["hue"])
        result = jnp.where(now["hue"] & (turn != 0), adjust_hue(images, turn), result)
    return result


# pyVTAB's augmentation of the images of pixelwise end tasks (section "J" of its data loaders).
_END_TASK_JITTER = ColorJitter(
    probability=1.0,
    brightness=(0.6, 1.4),
    contrast=(0.6, 1.4),
    saturation=(0.6, 1.4),
    hue=(-0.2, 0.2),
)


def jitter_frames(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Changes the colors of images at random, and some of them to gray (probability 0.2).

    Args:
      keys: One key per example, [B].
      images: uint8 [B, T, H, W, 3]. The images of an example are changed independently.

    Returns:
      uint8 [B, T, H, W, 3].

    Source: pyVTAB (Kotar et al. 2021); see `mmjax.end_tasks`.
    """
    count = images.shape[1]
    keys = jax.vmap(lambda key: jax.random.split(key, count))(keys).reshape(-1)
    jitter_keys, gray_keys = example_random.split(keys, 2)
    flat = to_float(images.reshape(-1, *images.shape[2:]))
    flat = grayscale(gray_keys, _END_TASK_JITTER(jitter_keys, flat), 0.2)
    return jnp.round(flat * 255).astype(jnp.uint8).reshape(images.shape)
