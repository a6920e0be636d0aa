"""What happens to single images on the device, inside jit: augmentation and normalization.

Images are float [B, H, W, 3] in [0, 1]. Random functions take one key and draw for every image
on its own; the same key gives the same draws, so two images of a pair can change alike. What
colors, flips and blurs mean is torchvision's convention, that of most published recipes.

The order of operations is that of the published code of TVL (Fu et al. 2024, A Touch, Vision, and
Language Dataset for Multimodal Alignment, arXiv 2402.13232), where the tactile constants are from,
and of LGSSL (El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling,
arXiv 2302.12248). Some options are kornia's ways, which the latter trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import config
from mmjax.errors import UserError
from mmjax.preprocess import video as preprocess


class Channels(NamedTuple):
    """One number for each color."""

    red: float
    green: float
    blue: float


CLIP_MEAN = Channels(0.48145466, 0.4578275, 0.40821073)
CLIP_STD = Channels(0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = Channels(0.485, 0.456, 0.406)
IMAGENET_STD = Channels(0.229, 0.224, 0.225)
# Of TVL's touch images, and of what is left when their background is subtracted.
TACTILE_MEAN = Channels(0.29174602047139075, 0.2971325588927249, 0.2910404549605639)
TACTILE_STD = Channels(0.18764469044810236, 0.19467651810273057, 0.21871583397361818)
SUBTRACTED_MEAN = Channels(-0.00809318389762342, -0.01887447008747725, -0.018430588238856332)
SUBTRACTED_STD = Channels(0.04535400223885517, 0.044029170444552575, 0.05332520729596308)

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2
_LEAST_SIGMA = 1e-3  # of a blur, pixels


def normalize(
    images: jax.Array, mean: Sequence[float] | None, std: Sequence[float] | None
) -> jax.Array:
    """(x − mean) / std of each channel, [..., 3]; None leaves the mean or the scale."""
    if mean is not None:
        images = images - jnp.asarray(mean, images.dtype)
    return images if std is None else images / jnp.asarray(std, images.dtype)


def luma(images: jax.Array) -> jax.Array:
    """Brightness as ITU-R 601 weighs the colors: [..., 3] → [..., 1]."""
    return (images * jnp.asarray(_LUMA, images.dtype)).sum(axis=-1, keepdims=True)


def horizontal_flip(key: jax.Array, images: jax.Array, probability: float = 0.5) -> jax.Array:
    """Mirrors left and right."""
    return _some(key, probability, images[..., ::-1, :], images)


def vertical_flip(key: jax.Array, images: jax.Array, probability: float = 0.5) -> jax.Array:
    """Mirrors top and bottom."""
    return _some(key, probability, images[..., ::-1, :, :], images)


def quarter_turn(key: jax.Array, images: jax.Array, probability: float = 0.5) -> jax.Array:
    """Turns square images by 90° counter-clockwise."""
    return _some(key, probability, jnp.rot90(images, axes=(-3, -2)), images)


def grayscale(key: jax.Array, images: jax.Array, probability: float = 0.2) -> jax.Array:
    """Takes the color away; three equal channels remain."""
    return _some(key, probability, jnp.broadcast_to(luma(images), images.shape), images)


def color_jitter(
    key: jax.Array,
    images: jax.Array,
    *,
    probability: float = 0.8,
    brightness: Sequence[float] | None = None,
    contrast: Sequence[float] | None = None,
    saturation: Sequence[float] | None = None,
    hue: Sequence[float] | None = None,
    order: str = "random",
) -> jax.Array:
    """Changes colors with some probability, as torchvision's ColorJitter.

    Brightness, contrast and saturation blend an image with black, with its mean gray, and with its
    own grays: factor · image + (1 − factor) · other, clipped to [0, 1]. Hue is turned.

    Args:
      key: one key for all images.
      images: float [B, H, W, 3] in [0, 1].
      probability: that an image is changed at all.
      brightness, contrast, saturation: the range (low, high) of the factor; None is 1.
      hue: the range of the turn, 1 being a full one; None is 0.
      order: 'random', another for each image; 'batch', one for all of them, as kornia; or
        'fixed': brightness, contrast, saturation, hue.

    Raises:
      UserError: a range that is none, or another order.
    """
    blends = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    ranges = {
        name: _range(name, value, 0.0, np.inf) if name in blends else _range(name, value, -0.5, 0.5)
        for name, value in {**blends, "hue": hue}.items()
        if value is not None
    }
    if order not in ("random", "batch", "fixed"):
        raise UserError(f"order={order!r} must be 'random', 'batch' or 'fixed'.")
    names, count = list(ranges), len(images)
    *keys, order_key, some_key = jax.random.split(key, len(names) + 2)
    changed = jax.random.uniform(some_key, (count,)) < probability
    drawn = {
        name: jnp.where(
            changed,
            jax.random.uniform(drawn_key, (count,), jnp.float32, *ranges[name]),
            0.0 if name == "hue" else 1.0,
        )
        for name, drawn_key in zip(names, keys, strict=True)
    }
    ranks = jnp.arange(len(names))
    if order == "random":
        order_keys = jax.random.split(order_key, count)
        orders = jax.vmap(lambda key: jax.random.permutation(key, ranks))(order_keys)
    else:
        ranks = jax.random.permutation(order_key, ranks) if order == "batch" else ranks
        orders = jnp.broadcast_to(ranks, (count, len(names)))
    # Each image has an order of its own, so each stage can be any operation; but blends differ
    # only in what they blend with, and a blend by 1 or a turn by 0 is none.
    at = {name: orders == rank for rank, name in enumerate(names)}  # [B, stages]
    for stage in range(len(names)):
        now = {name: _spread(chosen[:, stage]) for name, chosen in at.items()}
        factor, gray = jnp.ones((count, 1, 1, 1)), luma(images)
        other = jnp.zeros_like(gray)
        for name in (name for name in blends if name in now):
            factor = jnp.where(now[name], _spread(drawn[name]), factor)
        if "contrast" in now:
            other = jnp.where(now["contrast"], gray.mean(axis=(1, 2), keepdims=True), other)
        if "saturation" in now:
            other = jnp.where(now["saturation"], gray, other)
        blended = jnp.clip(factor * images + (1.0 - factor) * other, 0.0, 1.0)
        if "hue" in now:
            turn = _spread(drawn["hue"])
            turned = preprocess.adjust_hue(images, turn)
            blended = jnp.where(now["hue"] & (turn != 0), turned, blended)
        images = blended
    return images


def gaussian_blur(
    key: jax.Array,
    images: jax.Array,
    *,
    probability: float = 0.5,
    kernel_size: int = 9,
    sigma: Sequence = (0.1, 2.0),
    sigma_yx: Sequence | None = None,
) -> jax.Array:
    """Blurs with some probability; beyond the edges, images are mirrored.

    Args:
      key: one key for all images.
      images: float [B, H, W, 3].
      probability: that an image is blurred.
      kernel_size: pixels, odd.
      sigma: range of the Gaussian's standard deviation in pixels, drawn for each image.
      sigma_yx: in place of `sigma` the deviations of all images, the vertical and the horizontal
        one. kornia's RandomGaussianBlur took its `sigma` so up to version 0.6.9.

    Raises:
      UserError: an even kernel, one as large as the image, a range that is none, or deviations
        that are not two numbers above 0.
    """
    half, low = kernel_size // 2, min(images.shape[1:3])
    if kernel_size < 1 or kernel_size % 2 == 0 or half >= low:
        raise UserError(
            f"kernel_size={kernel_size} must be odd, and below {2 * low} for images of {low} "
            "pixels."
        )
    sigma = _range("sigma", sigma, _LEAST_SIGMA, np.inf)
    sigma_key, some_key = jax.random.split(key)
    if sigma_yx is None:
        width = jax.random.uniform(sigma_key, (len(images), 1), jnp.float32, *sigma)
        widths = (width, width)
    else:
        pair = isinstance(sigma_yx, Sequence) and len(sigma_yx) == 2
        if not pair or min(sigma_yx) < _LEAST_SIGMA:
            raise UserError(
                f"sigma_yx={sigma_yx} must be (vertical, horizontal), both at least {_LEAST_SIGMA}."
            )
        widths = tuple(jnp.full((1, 1), width) for width in sigma_yx)
    distance = jnp.arange(-half, half + 1)
    blurred = images
    for axis, width in enumerate(widths, 1):
        weights = jnp.exp(-0.5 * (distance / width) ** 2)
        weights = weights / weights.sum(axis=1, keepdims=True)  # [B or 1, kernel_size]
        margin = [(half, half) if n == axis else (0, 0) for n in range(4)]
        padded, size = jnp.pad(blurred, margin, mode="reflect"), images.shape[axis]
        blurred = sum(
            _spread(weights[:, n]) * jax.lax.slice_in_dim(padded, n, n + size, axis=axis)
            for n in range(kernel_size)
        )
    return _some(some_key, probability, blurred, images)


def _some(key: jax.Array, probability: float, changed: jax.Array, otherwise: jax.Array):
    """Each image `changed` with this probability."""
    chosen = jax.random.uniform(key, (len(otherwise),)) < probability
    return jnp.where(_spread(chosen), changed, otherwise)


def _spread(values: jax.Array) -> jax.Array:
    """[B] → [B, 1, 1, 1]."""
    return values[:, None, None, None]


def _range(name: str, value: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    """`value` as (low, high) within the limits, or an error that names it."""
    pair = isinstance(value, Sequence) and len(value) == 2
    if not pair or not lowest <= value[0] <= value[1] <= highest:
        raise UserError(
            f"{name}={value} must be (low, high) with {lowest:g} <= low <= high <= {highest:g}."
        )
    return float(value[0]), float(value[1])


class Augmentation:
    """From a batch's uint8 images to what a tower takes: one section of `config.augment`.

    In training, in this order: colors (`color_jitter`, `grayscale`), `blur`, subtraction of the
    background, flips, a quarter turn, normalization. In evaluation only subtraction and
    normalization, unless `in_eval`.

    Args:
      mean, std: of each channel, for images in [0, 1]; None is 0 or 1.
      horizontal_flip, vertical_flip, quarter_turn, grayscale: probabilities.
      color_jitter: keywords of `color_jitter`; None is off.
      blur: keywords of `gaussian_blur`; None is off.
      subtract_background: normalize the difference to the background. Colors and blur change
        image and background alike.
      in_eval: augment in evaluation as well, as TVL's published code does in validation, and in its
        tests of models that subtract the background. What is drawn depends on each image alone,
        so an evaluation gives the same result each time.
      where: name of the section, for messages.

    Raises:
      UserError: an unknown keyword or a value out of range, by name.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
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
        for name, value in (("mean", mean), ("std", std)):
            three = isinstance(value, Sequence) and len(value) == 3
            if value is not None and (not three or (name == "std" and min(value) <= 0)):
                raise UserError(
                    f"config.{where}.{name}={value} must be three numbers, one for each channel"
                    + (", above 0." if name == "std" else ".")
                )
        self._mean, self._std = mean, std
        self._flips = {
            "horizontal_flip": horizontal_flip,
            "vertical_flip": vertical_flip,
            "quarter_turn": quarter_turn,
        }
        for name, value in {**self._flips, "grayscale": grayscale}.items():
            if not 0 <= value <= 1:
                raise UserError(f"config.{where}.{name}={value} must be a probability in [0, 1].")
        self._grayscale, self._subtract = grayscale, subtract_background
        self._in_eval = in_eval
        self._jitter = _checked(_color_jitter, color_jitter, f"{where}.color_jitter")
        self._blur = _checked(gaussian_blur, blur, f"{where}.blur")

    @classmethod
    def from_config(cls, section: Mapping[str, Any], where: str) -> Augmentation:
        return cls(where=where, **config.keywords(cls.__init__, section, where, provided=["where"]))

    def __call__(
        self, images: jax.Array, background: jax.Array | None = None, *, key: jax.Array | None
    ) -> jax.Array:
        """uint8 [B, H, W, 3] → float32, normalized; augmented when there is a key.

        Without augmentation any leading dimensions will do. `background` is shaped as `images`,
        and used with `subtract_background` alone.

        Raises:
          UserError: a background is to be subtracted, and there is none.
        """
        if key is None and self._in_eval:
            return self._by_content(images, background)
        x = preprocess.normalize_video(images, zero_centered=False)
        color_key, *flip_keys = jax.random.split(key, 4) if key is not None else [None] * 4
        if key is not None:
            x = self._colors(color_key, x)
        if self._subtract:
            if background is None:
                raise UserError(
                    f"config.{self._where}.subtract_background needs backgrounds in the batch: "
                    "set config.data.touch.background to a file, or to 'recording' for those of "
                    "the dataset."
                )
            background = preprocess.normalize_video(background, zero_centered=False)
            x = x - (background if key is None else self._colors(color_key, background))
        if key is not None:
            for flip_key, (name, probability) in zip(flip_keys, self._flips.items(), strict=True):
                if probability:
                    x = _FLIPS[name](flip_key, x, probability)
        return normalize(x, self._mean, self._std)

    def _by_content(self, images: jax.Array, background: jax.Array | None) -> jax.Array:
        """Augments each image with a key of its own pixels, whatever else is in the batch."""
        content = jnp.sum(images, axis=(1, 2, 3), dtype=jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), content)

        def one(key, images):
            return self(*(x[None] for x in images), key=key)[0]

        both = (images,) if background is None else (images, background)
        return jax.vmap(one)(keys, both)

    def _colors(self, key: jax.Array, images: jax.Array) -> jax.Array:
        jitter_key, gray_key, blur_key = jax.random.split(key, 3)
        if self._jitter is not None:
            images = _color_jitter(jitter_key, images, **self._jitter)
        if self._grayscale:
            images = grayscale(gray_key, images, self._grayscale)
        if self._blur is not None:
            images = gaussian_blur(blur_key, images, **self._blur)
        return images


def _checked(function, section: Mapping[str, Any] | None, where: str) -> dict[str, Any] | None:
    """A section as keywords of one of the functions above, of which all is checked that can be."""
    if section is None:
        return None
    keywords = config.keywords(function, section, where, provided=("key", "images"))
    key = jax.eval_shape(lambda: jax.random.key(0))
    large = jax.ShapeDtypeStruct((1, 4096, 4096, 3), jnp.float32)
    try:
        jax.eval_shape(lambda key, images: function(key, images, **keywords), key, large)
    except UserError as error:
        raise UserError(f"config.{where}: {error}") from error
    return keywords


_color_jitter = color_jitter  # `Augmentation` has arguments of these names
_FLIPS = {
    "horizontal_flip": horizontal_flip,
    "vertical_flip": vertical_flip,
    "quarter_turn": quarter_turn,
}
