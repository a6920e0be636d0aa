"""Sigmoid losses of images and texts that come in groups, in float32.

Every pair of an image vector and a text is one binary classification with the logit
scale · ⟨x, t⟩ + bias, as in SigLIP. A positive pair costs softplus(−logit), a negative pair
softplus(logit). The losses differ in which texts are negatives and how pairs are averaged:

    multi_text                 all texts belong to one image
    variable_text              each image has any number of texts; all others are negatives
    paired_negative            the same, but the negatives are texts written for each image
    grouped                    pairs of an image vector and a text, averaged within each image
    grouped_paired_negative    the same, but the negatives are texts written for each pair
    grouped_slacked_negative   both kinds of negatives, up to a number

First compute logits (`pair_logits`, `negative_logits`), then the loss. All shapes are fixed: pad
with pairs that a `valid` mask excludes. Excluded logits affect neither values nor gradients, even
if they are NaN. Without any valid image or pair, a loss is 0. `mmjax.losses.contrastive` has
SigLIP's own loss.

Source: Zhai et al. 2023, arXiv 2303.15343 (SigLIP); the published code of "Training Vision Tasks
Using Diagnostic Text Description Loss" (TTDL).
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from mmjax.errors import check_choice
from mmjax.losses import similarity
from mmjax.losses.classification import masked_mean

Aggregation = Literal["sum", "mean"]
Normalization = Literal["none", "l2"]
Scalar = jax.Array | float


def pair_logits(
    images: jax.Array,
    texts: jax.Array,
    *,
    scale: Scalar = 1.0,
    bias: Scalar = 0.0,
    normalize: Normalization = "none",
) -> jax.Array:
    """Returns the logits float32 [P, T] of all images with all texts.

    Args:
      images: [P, D]; or [P, T, D], one vector for each text, for images that are pooled as each
        text asks.
      texts: [T, D].
      scale: Factor of the inner products. It may be a learned parameter; pass exp(log_scale).
      bias: Added to the scaled inner products; may be learned too.
      normalize: 'l2' compares vectors of unit length, so that inner products are cosines; 'none'
        compares them as they are, as in TTDL.

    Raises:
      UserError: An unknown `normalize`.
    """
    images, texts = _prepare(images, texts, normalize)
    equation = "pd,td->pt" if images.ndim == 2 else "ptd,td->pt"
    return scale * _inner_products(equation, images, texts) + bias


def negative_logits(
    images: jax.Array,
    negatives: jax.Array,
    *,
    scale: Scalar = 1.0,
    bias: Scalar = 0.0,
    normalize: Normalization = "none",
) -> jax.Array:
    """Returns the logits float32 [P, M] of images with negatives of their own.

    Args:
      images: [P, D]; or [P, M, D], one vector for each negative.
      negatives: [P, M, D]; M may be 0.
      scale: See `pair_logits`.
      bias: See `pair_logits`.
      normalize: See `pair_logits`.

    Raises:
      UserError: An unknown `normalize`.
    """
    images, negatives = _prepare(images, negatives, normalize)
    equation = "pd,pmd->pm" if images.ndim == 2 else "pmd,pmd->pm"
    return scale * _inner_products(equation, images, negatives) + bias


def _prepare(images: jax.Array, texts: jax.Array, normalize: str) -> tuple[jax.Array, jax.Array]:
    check_choice("normalize", normalize, get_args(Normalization))
    if normalize == "l2":
        return similarity.normalize(images), similarity.normalize(texts)
    return images.astype(jnp.float32), texts.astype(jnp.float32)


def _inner_products(equation: str, images: jax.Array, texts: jax.Array) -> jax.Array:
    # By default, accelerators multiply float32 in lower precision; see `similarity.products`.
    return jnp.einsum(equation, images, texts, precision=jax.lax.Precision.HIGHEST)


def same_group(groups: jax.Array) -> jax.Array:
    """Returns bool [P, P], for `excluded`: texts of the same image are no negatives.

    Args:
      groups: int [P], the image of each pair.
    """
    return groups[:, None] == groups[None]


def same_text(ids: jax.Array) -> jax.Array:
    """Returns bool [P, P], for `excluded`: copies of the own text are no negatives.

    Args:
      ids: int [P, W], token ids.
    """
    return (ids[:, None] == ids[None]).all(axis=-1)


def multi_text(
    logits: jax.Array, positive: jax.Array | int, *, valid: jax.Array | None = None
) -> jax.Array:
    """Returns the sum over all images and texts; all texts belong to one image.

    TTDL divides it by the number of texts and of images.

    Args:
      logits: [N, T] of N images and T texts.
      positive: int, index of the image.
      valid: bool [T], whether the text exists.

    Returns:
      A float32 scalar.
    """
    positives = jnp.arange(len(logits))[:, None] == positive
    valid = _all_valid(valid, logits.shape[1])
    return _masked_sum(jnp.where(positives, -logits, logits), valid).sum()


def variable_text(
    logits: jax.Array,
    text_image: jax.Array,
    *,
    valid: jax.Array | None = None,
    image_valid: jax.Array | None = None,
    excluded: jax.Array | None = None,
    aggregation: Aggregation = "sum",
    ignore_empty: bool = True,
) -> jax.Array:
    """Returns the mean over images of: the mean over own texts + the aggregate over all others.

    Args:
      logits: [N, T] of N images and T texts.
      text_image: int [T], the image of each text.
      valid: bool [T], whether the text exists.
      image_valid: bool [N], whether the image exists.
      excluded: bool [N, T], pairs that are no negatives.
      aggregation: 'sum' or 'mean' over the negatives of an image.
      ignore_empty: Whether images without texts have the loss 0. They count in the mean anyway.

    Returns:
      A float32 scalar.

    Raises:
      UserError: An unknown `aggregation`.
    """
    check_choice("aggregation", aggregation, get_args(Aggregation))
    own, valid, image_valid = _own_texts(logits, text_image, valid, image_valid)
    negative = valid & image_valid[:, None] & ~own
    if excluded is not None:
        negative &= ~excluded
    losses = _masked_sum(logits, negative)
    if aggregation == "mean":
        losses /= _at_least_one(negative.sum(axis=1))
    if ignore_empty:
        losses = jnp.where(own.any(axis=1), losses, 0.0)
    return masked_mean(_mean_over_own(logits, own) + losses, image_valid)


def paired_negative(
    logits: jax.Array,
    text_image: jax.Array,
    negatives: jax.Array,
    *,
    valid: jax.Array | None = None,
    image_valid: jax.Array | None = None,
    negative_valid: jax.Array | None = None,
    ignore_empty: bool = False,
) -> jax.Array:
    """Returns the mean over images of: the mean over own texts + the sum over own negatives.

    Args:
      logits: [N, T] of N images and T texts.
      text_image: int [T], the image of each text.
      negatives: Logits [N, M] of images with their negatives.
      valid: bool [T], whether the text exists.
      image_valid: bool [N], whether the image exists.
      negative_valid: bool [N, M], whether the negative exists.
      ignore_empty: Whether images without texts have the loss 0. TTDL's published code ignores this
        option. They count in the mean anyway.

    Returns:
      A float32 scalar.
    """
    own, _, image_valid = _own_texts(logits, text_image, valid, image_valid)
    losses = _masked_sum(negatives, _all_valid(negative_valid, negatives.shape))
    if ignore_empty:
        losses = jnp.where(own.any(axis=1), losses, 0.0)
    return masked_mean(_mean_over_own(logits, own) + losses, image_valid)


def grouped(
    logits: jax.Array,
    groups: jax.Array,
    *,
    valid: jax.Array | None = None,
    has_text: jax.Array | None = None,
    excluded: jax.Array | None = None,
    negative_weight: float = 1.0,
    ignore_empty: bool = True,
) -> jax.Array:
    """Returns the mean over groups of the mean over their pairs; other texts are negatives.

    Pair p costs softplus(−s_pp) + negative_weight · Σ_{q ≠ p} softplus(s_pq). Texts of the same
    image are negatives, unless `excluded` is `same_group(groups)`.

    Args:
      logits: [P, P]; the image vector and the text of pair p have the same index.
      groups: int [P], the image of each pair.
      valid: bool [P], whether the pair exists.
      has_text: bool [P], False for images without text: they have only negatives, and each of them
        is a group of its own.
      excluded: bool [P, P], pairs that are no negatives.
      negative_weight: Factor of the sum over negatives.
      ignore_empty: Whether images without text have the loss 0. They count in the mean anyway.

    Returns:
      A float32 scalar.
    """
    valid, has_text = _pairs(len(logits), valid, has_text)
    negatives = _masked_sum(logits, _in_batch(valid, has_text, excluded))
    if ignore_empty:
        negatives = jnp.where(has_text, negatives, 0.0)
    losses = _positives(jnp.diagonal(logits), has_text) + negative_weight * negatives
    return _group_mean(losses, groups, valid, has_text)


def grouped_paired_negative(
    logits: jax.Array,
    groups: jax.Array,
    negatives: jax.Array,
    *,
    valid: jax.Array | None = None,
    has_text: jax.Array | None = None,
    negative_valid: jax.Array | None = None,
    negative_weight: float = 1.0,
    ignore_empty: bool = True,
) -> jax.Array:
    """Returns the mean over groups of the mean over their pairs; negatives are texts of each pair.

    Args:
      logits: [P, P] as for `grouped`, of which only the diagonal is used; or the diagonal, [P].
      groups: int [P], the image of each pair.
      negatives: Logits [P, M] of pairs with their negatives; M may be 0.
      valid: bool [P], whether the pair exists.
      has_text: See `grouped`.
      negative_valid: bool [P, M], whether the negative exists.
      negative_weight: Factor of the sum over negatives.
      ignore_empty: See `grouped`.

    Returns:
      A float32 scalar.
    """
    valid, has_text = _pairs(len(logits), valid, has_text)
    own = jnp.diagonal(logits) if logits.ndim == 2 else logits
    losses = _masked_sum(negatives, _all_valid(negative_valid, negatives.shape))
    if ignore_empty:
        losses = jnp.where(has_text, losses, 0.0)
    losses = _positives(own, has_text) + negative_weight * losses
    return _group_mean(losses, groups, valid, has_text)


def grouped_slacked_negative(
    logits: jax.Array,
    groups: jax.Array,
    negatives: jax.Array,
    *,
    num_negatives: int,
    valid: jax.Array | None = None,
    has_text: jax.Array | None = None,
    excluded: jax.Array | None = None,
    negative_weight: float = 1.0,
    ignore_empty: bool = True,
) -> jax.Array:
    """Returns `grouped` with so many negatives of each pair that it has at least a given number.

    A pair with n other texts uses the first max(0, num_negatives − n) of its own negatives, and all
    others. `excluded` texts do not count in n.

    Args:
      logits: As for `grouped`.
      groups: int [P], the image of each pair.
      negatives: Logits [P, M] of pairs with their negatives.
      num_negatives: The number to reach.
      valid: bool [P], whether the pair exists.
      has_text: See `grouped`.
      excluded: See `grouped`.
      negative_weight: Factor of the sum over all negatives.
      ignore_empty: See `grouped`.

    Returns:
      A float32 scalar.
    """
    valid, has_text = _pairs(len(logits), valid, has_text)
    in_batch = _in_batch(valid, has_text, excluded)
    slack = num_negatives - in_batch.sum(axis=1, keepdims=True)
    used = jnp.arange(negatives.shape[1]) < slack
    sums = _masked_sum(logits, in_batch) + _masked_sum(negatives, used)
    if ignore_empty:
        sums = jnp.where(has_text, sums, 0.0)
    losses = _positives(jnp.diagonal(logits), has_text) + negative_weight * sums
    return _group_mean(losses, groups, valid, has_text)


# --------------------------------------------------------------------------------------------------
# Masks and means.


def _all_valid(mask: jax.Array | None, shape: int | tuple[int, ...]) -> jax.Array:
    return jnp.ones(shape, bool) if mask is None else mask > 0


def _at_least_one(count: jax.Array) -> jax.Array:
    return jnp.maximum(count, 1).astype(jnp.float32)


def _masked_sum(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns Σ softplus(logit) along the last axis, where the mask is True."""
    losses = jax.nn.softplus(jnp.where(mask, logits, 0.0).astype(jnp.float32))
    return jnp.where(mask, losses, 0.0).sum(axis=-1)


def _own_texts(
    logits: jax.Array,
    text_image: jax.Array,
    valid: jax.Array | None,
    image_valid: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns bool masks: texts of each image [N, T], valid texts [T], and valid images [N]."""
    num_images, num_texts = logits.shape
    valid, image_valid = _all_valid(valid, num_texts), _all_valid(image_valid, num_images)
    own = (text_image[None] == jnp.arange(num_images)[:, None]) & valid & image_valid[:, None]
    return own, valid, image_valid


def _mean_over_own(logits: jax.Array, own: jax.Array) -> jax.Array:
    """Returns the mean of softplus(−logit) over the texts of each image, [N]; 0 without texts."""
    return _masked_sum(-logits, own) / _at_least_one(own.sum(axis=1))


def _pairs(
    count: int, valid: jax.Array | None, has_text: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Returns bool [P] masks of the pairs that exist, and of those of them that have a text."""
    valid = _all_valid(valid, count)
    return valid, _all_valid(has_text, count) & valid


def _in_batch(valid: jax.Array, has_text: jax.Array, excluded: jax.Array | None) -> jax.Array:
    """Returns bool [P, P]: whether text q is a negative of pair p."""
    negative = valid[:, None] & has_text[None] & ~jnp.eye(len(valid), dtype=bool)
    return negative if excluded is None else negative & ~excluded


def _positives(own: jax.Array, has_text: jax.Array) -> jax.Array:
    """Returns softplus(−logit) of each pair, [P]; 0 without text."""
    return _masked_sum(-own[:, None], has_text[:, None])


def _group_mean(
    losses: jax.Array, groups: jax.Array, valid: jax.Array, has_text: jax.Array
) -> jax.Array:
    """Returns the mean over groups of the mean over the pairs of a group."""
    same = same_group(groups) & has_text[:, None] & has_text[None]
    sizes = same.sum(axis=1)
    weights = jnp.where(valid, 1.0 / _at_least_one(sizes), 0.0)  # of a group, they sum to 1
    return masked_mean(losses, weights)
