"""Cross entropy of pixels that attention maps of texts make more or less important, in float32.

A pixel with loss ℓ and weight w costs ℓ · (1 + α w). The costs are then scaled so that their sum is
that of ℓ. Neither the weights nor this factor have gradients. So the value is that of the cross
entropy; only the distribution of the gradient over pixels changes.

By default, costs are scaled within each image and ignored pixels do not count. TTDL's published
code scales within the batch (`normalize_over='batch'`) and divides by the number of all pixels
(`count_ignored=True`). There, images with maps get more gradient than those without, whose weights
are much smaller, and the loss depends on the number of ignored pixels.

Source: the published code of "Training Vision Tasks Using Diagnostic Text Description Loss" (TTDL).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from mmjax.errors import check_choice, choose
from mmjax.losses.classification import masked_mean
from mmjax.losses.end_task import cross_entropies

Normalization = Literal["image", "batch", "none"]
# Functions (weights, exponent) -> weights.
TRENDS: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "power": jnp.power,
    "log": lambda weights, exponent: jnp.log1p(weights),
    "exp": lambda weights, exponent: jnp.expm1(weights),
    "identity": lambda weights, exponent: weights,
}


def pixel_weights(
    maps: jax.Array,
    images: jax.Array,
    num_images: int,
    *,
    valid: jax.Array | None = None,
    trend: str = "power",
    exponent: float = 0.8,
    filler: float | None = None,
) -> jax.Array:
    """Returns the weights of the pixels of each image, float32 [B, H, W].

    They are the mean of the attention maps of the image, then a trend.

    Args:
      maps: [P, H, W] of pairs of an image and a text; at least 0.
      images: int [P], the image of each map.
      num_images: B.
      valid: bool [P], whether the map exists.
      trend: A key of `TRENDS`: 'power' is w ** exponent, 'log' log(1 + w), 'exp' exp(w) − 1,
        'identity' w.
      exponent: Of 'power'.
      filler: Weight of images without a map, before the trend. None is 1 / (H · W), as in TTDL.

    Raises:
      UserError: An unknown `trend`.
    """
    transform = choose("trend", trend, TRENDS)
    maps = maps.astype(jnp.float32)
    own = images[None] == jnp.arange(num_images)[:, None]  # [B, P]
    if valid is not None:
        own &= valid > 0
        maps = jnp.where((valid > 0)[:, None, None], maps, 0.0)
    counts = own.sum(axis=1)[:, None, None]
    sums = jnp.einsum("bp,phw->bhw", own.astype(jnp.float32), maps)
    filler = 1.0 / (maps.shape[1] * maps.shape[2]) if filler is None else filler
    return transform(jnp.where(counts > 0, sums / jnp.maximum(counts, 1), filler), exponent)


def rescaled_mean(
    losses: jax.Array,
    weights: jax.Array,
    *,
    valid: jax.Array | None = None,
    alpha: float = 10.0,
    normalize_over: Normalization = "image",
    count_ignored: bool = False,
) -> jax.Array:
    """Returns the mean of rescaled losses, a float32 scalar.

    Args:
      losses: [B, H, W], at least 0.
      weights: [B, H, W] of `pixel_weights`.
      valid: bool [B, H, W], whether the pixel is labeled.
      alpha: Factor of the weights.
      normalize_over: 'image' or 'batch', within which rescaling keeps the sum of losses, or 'none'.
      count_ignored: Whether the mean is over all pixels, with loss 0 of those that are not valid.

    Raises:
      UserError: An unknown `normalize_over`.
    """
    check_choice("normalize_over", normalize_over, get_args(Normalization))
    valid = jnp.ones(losses.shape, bool) if valid is None else valid > 0
    losses = jnp.where(valid, losses.astype(jnp.float32), 0.0)
    factors = 1.0 + alpha * jax.lax.stop_gradient(weights.astype(jnp.float32))
    rescaled = losses * jnp.where(valid, factors, 0.0)
    if normalize_over != "none":
        axes = (1, 2) if normalize_over == "image" else None
        before = losses.sum(axes, keepdims=True)
        after = rescaled.sum(axes, keepdims=True)
        ratio = jnp.where(after > 0, before / jnp.where(after > 0, after, 1.0), 1.0)
        rescaled *= jax.lax.stop_gradient(ratio)
    return masked_mean(rescaled, None if count_ignored else valid)


def rescaled_cross_entropy(
    outputs: jax.Array,
    target: jax.Array,
    weights: jax.Array,
    *,
    ignore: int | None = None,
    alpha: float = 10.0,
    normalize_over: Normalization = "image",
    count_ignored: bool = False,
) -> jax.Array:
    """Returns the mean of rescaled cross entropies, a float32 scalar.

    Args:
      outputs: Logits [B, H, W, C].
      target: int [B, H, W, 1]; -1 is ignored.
      weights: [B, H, W] of `pixel_weights`.
      ignore: A class that is ignored too.
      alpha: See `rescaled_mean`.
      normalize_over: See `rescaled_mean`.
      count_ignored: See `rescaled_mean`.

    Raises:
      UserError: An unknown `normalize_over`, or shapes that do not fit.
    """
    losses, labels, valid = cross_entropies(outputs, target)
    return rescaled_mean(
        losses,
        weights,
        valid=valid if ignore is None else valid & (labels != ignore),
        alpha=alpha,
        normalize_over=normalize_over,
        count_ignored=count_ignored,
    )
