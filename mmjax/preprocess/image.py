"""Augmentation and normalization of single images on the device, inside jit.

Images are float [B, H, W, 3] in [0, 1]. Random functions take one key per image, so two images of
a pair can be changed alike. Colors, flips and blurs follow torchvision's conventions, as most
published recipes do.

The order of operations is that of the published code of TVL (Fu et al. 2024, A Touch, Vision, and
Language Dataset for Multimodal Alignment, arXiv 2402.13232) and LGSSL (El Banani et al. 2023,
Learning Visual Representations via Language-Guided Sampling, arXiv 2302.12248). Some options follow
kornia, with which LGSSL was trained.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import config
from mmjax.errors import UserError
from mmjax.preprocess import example_random
from mmjax.preprocess.color import ColorJitter, grayscale, normalize, to_float

_MIN_SIGMA = 1e-3  # of a blur, in pixels


def horizontal_flip(keys: jax.Array, images: jax.Array, probability: float = 0.5) -> jax.Array:
    """Mirrors images left to right, with some probability each."""
    return example_random.apply_to_some(keys, probability, images[..., ::-1, :], images)


def vertical_flip(keys: jax.Array, images: jax.Array, probability: float = 0.5) -> jax.Array:
    """Mirrors images top to bottom, with some probability each."""
    return example_random.apply_to_some(keys, probability, images[..., ::-1, :, :], images)


def quarter_turn(keys: jax.Array, images: jax.Array, probability: float = 0.5) -> jax.Array:
    """Rotates square images by 90° counter-clockwise, with some probability each."""
    return example_random.apply_to_some(keys, probability, jnp.rot90(images, axes=(-3, -2)), images)


_FLIPS = {
    "horizontal_flip": horizontal_flip,
    "vertical_flip": vertical_flip,
    "quarter_turn": quarter_turn,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Blurs images; beyond the edges they are mirrored.

    Attributes:
      probability: Probability that an image is blurred.
      kernel_size: Size of the kernel in pixels, odd.
      sigma: Range of the standard deviation in pixels, sampled for each image.
      sigma_yx: Replaces `sigma` by fixed vertical and horizontal standard deviations for all
        images. kornia's RandomGaussianBlur interpreted its `sigma` in this way until 0.6.9.

    Raises:
      UserError: An even kernel size, or an invalid range.
    """

    probability: float = 0.5
    kernel_size: int = 9
    sigma: tuple[float, float] = (0.1, 2.0)
    sigma_yx: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size={self.kernel_size} must be a positive odd number.")
        example_random.check_range("sigma", self.sigma, _MIN_SIGMA, np.inf)
        if self.sigma_yx is not None and min(self.sigma_yx) < _MIN_SIGMA:
            raise UserError(
                f"sigma_yx={self.sigma_yx} must be (vertical, horizontal), both at least "
                f"{_MIN_SIGMA}."
            )

    def __call__(self, keys: jax.Array, images: jax.Array) -> jax.Array:
        """Blurs images.

        Args:
          keys: One key per image, [B].
          images: float [B, H, W, 3].

        Raises:
          UserError: The kernel is larger than the image.
        """
        half, side = self.kernel_size // 2, min(images.shape[1:3])
        if half >= side:
            raise UserError(
                f"kernel_size={self.kernel_size} must be less than {2 * side} for images of "
                f"{side} pixels."
            )
        sigma_keys, apply_keys = example_random.split(keys, 2)
        if self.sigma_yx is None:
            sigma = example_random.uniform(sigma_keys, *self.sigma)[:, None]
            sigmas = (sigma, sigma)
        else:
            sigmas = tuple(jnp.full((1, 1), sigma) for sigma in self.sigma_yx)
        blurred = images
        for axis, sigma in enumerate(sigmas, 1):
            blurred = _blur_axis(blurred, sigma, half, axis)
        return example_random.apply_to_some(apply_keys, self.probability, blurred, images)


def _blur_axis(images: jax.Array, sigma: jax.Array, half: int, axis: int) -> jax.Array:
    """Convolves images [B, H, W, 3] along one axis with Gaussians of sigma [B or 1, 1]."""
    weights = jnp.exp(-0.5 * (jnp.arange(-half, half + 1) / sigma) ** 2)
    weights = weights / weights.sum(axis=1, keepdims=True)  # [B or 1, kernel_size]
    margin = [(half, half) if n == axis else (0, 0) for n in range(4)]
    padded, size = jnp.pad(images, margin, mode="reflect"), images.shape[axis]
    return sum(
        example_random.per_image(weights[:, n])
        * jax.lax.slice_in_dim(padded, n, n + size, axis=axis)
        for n in range(2 * half + 1)
    )


class Augmentation:
    """Turns the uint8 images of a batch into the input of a tower: a section of `config.augment`.

    In training, in this order: colors (`color_jitter`, `grayscale`), `blur`, subtraction of the
    background, flips, quarter turn, normalization. In evaluation only subtraction and
    normalization, unless `in_eval` is set.

    Args:
      mean, std: One value per channel, for images in [0, 1]; None for 0 and 1.
      horizontal_flip, vertical_flip, quarter_turn, grayscale: Probabilities.
      color_jitter: Options of `mmjax.preprocess.color.ColorJitter`; None for no jitter.
      blur: Options of `GaussianBlur`; None for no blur.
      subtract_background: Whether to normalize the difference to the background. Colors and blur
        change an image and its background alike.
      in_eval: Whether to augment in evaluation too, as TVL's published code does in validation,
        and in its tests of models that subtract the background. The random numbers depend only on
        the id of an example, so an evaluation has the same result each time.
      where: Key of the section, for messages.

    Raises:
      UserError: An unknown key, or a value of the wrong type or out of range.
    """

    def __init__(
        self,
        *,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        horizontal_flip: float = 0.0,
        vertical_flip: float = 0.0,
        quarter_turn: float = 0.0,
        grayscale: float = 0.0,
        color_jitter: Mapping[str, Any] | None = None,
        blur: Mapping[str, Any] | None = None,
        subtract_background: bool = False,
        in_eval: bool = False,
        where: str = "augment.image",
    ):
        self._where = where
        if std is not None and min(std) <= 0:
            raise UserError(f"config.{where}.std={std} must be positive for each channel.")
        self._mean, self._std = mean, std
        self._flips = {
            "horizontal_flip": horizontal_flip,
            "vertical_flip": vertical_flip,
            "quarter_turn": quarter_turn,
        }
        for name, value in {**self._flips, "grayscale": grayscale}.items():
            if not 0 <= value <= 1:
                raise UserError(f"config.{where}.{name}={value} must be a probability in [0, 1].")
        self._grayscale, self._subtract, self._in_eval = grayscale, subtract_background, in_eval
        self._jitter: ColorJitter | None = _make(ColorJitter, color_jitter, f"{where}.color_jitter")
        self._blur: GaussianBlur | None = _make(GaussianBlur, blur, f"{where}.blur")

    @classmethod
    def from_config(cls, section: Mapping[str, Any], where: str) -> Augmentation:
        """Returns the augmentation of a section.

        Args:
          section: The arguments of the constructor.
          where: Key of the section, for messages.
        """
        return cls(where=where, **config.keywords(cls.__init__, section, where, provided=["where"]))

    def __call__(
        self,
        images: jax.Array,
        background: jax.Array | None = None,
        *,
        key: jax.Array | None,
        batch: Mapping[str, jax.Array] | None = None,
    ) -> jax.Array:
        """Returns normalized images as float32; augmented in training.

        Args:
          images: uint8 [B, H, W, 3]; without augmentation, any leading dimensions.
          background: Backgrounds of the same shape. Used only with `subtract_background`.
          key: Key of the step; None in evaluation.
          batch: The batch. Its field `example_id` identifies the examples; see
            `mmjax.preprocess.example_random.example_keys`.

        Raises:
          UserError: The section subtracts the background, but the batch has no background.
        """
        if self._subtract and background is None:
            raise UserError(
                f"config.{self._where}.subtract_background=True needs backgrounds in the batch. "
                "Set config.data.touch.background to an image file, or to 'recording' for those "
                "of the dataset."
            )
        if key is None and self._in_eval:
            key = jax.random.key(0)
        x = to_float(images)
        background = to_float(background) if self._subtract else None
        if key is not None:
            keys = example_random.example_keys(key, batch or {}, len(images))
            color_keys, *flip_keys = example_random.split(keys, 1 + len(self._flips))
            x = self._change_colors(color_keys, x, batch_key=key)
            if background is not None:
                background = self._change_colors(color_keys, background, batch_key=key)
        if background is not None:
            x = x - background
        if key is not None:
            for (name, probability), own in zip(self._flips.items(), flip_keys, strict=True):
                if probability:
                    x = _FLIPS[name](own, x, probability)
        return normalize(x, self._mean, self._std)

    def _change_colors(
        self, keys: jax.Array, images: jax.Array, *, batch_key: jax.Array
    ) -> jax.Array:
        jitter_keys, gray_keys, blur_keys = example_random.split(keys, 3)
        if self._jitter is not None:
            images = self._jitter(jitter_keys, images, batch_key=batch_key)
        if self._grayscale:
            images = grayscale(gray_keys, images, self._grayscale)
        if self._blur is not None:
            images = self._blur(blur_keys, images)
        return images


def _make(cls: Callable[..., Any], section: Mapping[str, Any] | None, where: str) -> Any:
    """Returns an instance of a section, or None; errors name the full key."""
    if section is None:
        return None
    options = config.keywords(cls, section, where)
    try:
        return cls(**options)
    except UserError as error:
        raise UserError(f"config.{where}.{error}") from error
