"""Contrastive losses between two sets of embeddings, over the global batch.

Arrays are global: under `jax.jit` on a mesh the batch may be sharded, and negatives come from all
of it without an explicit collective. With `chunk_size` the anchors are compared in chunks, so that
the matrix of all similarities never exists at once, forward or backward; values and gradients stay
those of the whole matrix.

Embeddings are L2-normalized here. Everything is computed in float32, whatever comes in.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.losses.similarity import (
    EXCLUDED,
    chunks,
    map_chunks,
    normalize,
    products,
    weighted_mean,
)


def asymmetric_nce(
    anchor: jax.Array,
    other: jax.Array,
    *,
    mask: jax.Array | None = None,
    candidate_mask: jax.Array | None = None,
    anchor_mask: jax.Array | None = None,
    temperature: float = 0.07,
    double_positive: bool = True,
    mask_groups: int = 1,
    chunk_size: int | None = None,
) -> jax.Array:
    """VATT's NCE; MIL-NCE (Miech et al. 2020, arXiv 1912.06430) when there are several candidates.

    Example b contrasts its anchor with all candidates of the batch, and its candidates with all
    anchors:

        loss_b = log(Σ_{c,l} exp(s(b; c,l)) + Σ_{c,l} exp(s(c; b,l))) − log Σ_l exp(s(b; b,l))

    with s(b; c,l) = anchor_b · other_{c,l} / temperature. The result is the mean over valid
    examples.

    Args:
      anchor: [B, D], for example videos, or several of each example, [B, N, D].
      other: [B, L, D], candidates (captions), or [B, D].
      mask: [B], 1 where the example has `other`; an example without is neither a positive nor, as
        `other`, a negative. Its anchor is still a negative for others.
      candidate_mask: [B, L], 1 where a candidate exists; one that does not is neither positive nor
        negative.
      anchor_mask: [B] or [B, N], 1 where the anchor exists; one that does not is neither positive
        nor negative.
      temperature: divides the similarities.
      double_positive: count c = b in both sums of the denominator, as VATT's published code does:
        the loss then cannot fall below log 2. False counts it once, the standard denominator.
      mask_groups: take the mean within each of so many equal, consecutive parts of the batch before
        the mean over the parts, as data-parallel VATT does on so many replicas. It differs only
        where parts have different numbers of valid examples.
      chunk_size: anchors compared at a time; must divide B. None compares all at once.

    Returns:
      A float32 scalar, 0 when no example is valid.

    Raises:
      UserError: `chunk_size` or `mask_groups` does not divide B.
    """
    first, second, first_valid, second_valid = _prepare(
        anchor, other, mask, candidate_mask, anchor_mask
    )
    rows, columns, own = _log_sums(
        first / temperature,
        second,
        first_valid,
        second_valid,
        own_in_columns=double_positive,
        chunk_size=chunk_size,
    )
    weights = _weights(first_valid, second_valid, mask_groups)
    return weighted_mean(jnp.logaddexp(rows, columns) - own, weights)


def symmetric_nce(
    anchor: jax.Array,
    other: jax.Array,
    *,
    mask: jax.Array | None = None,
    candidate_mask: jax.Array | None = None,
    anchor_mask: jax.Array | None = None,
    temperature: float = 0.07,
    mask_groups: int = 1,
    chunk_size: int | None = None,
) -> jax.Array:
    """VATT's symmetric NCE: the sum of one loss per direction, each with its own denominator.

        loss_b = log Σ_{c,n,l} exp(s(b,n; c,l)) + log Σ_{c,n,l} exp(s(c,n; b,l)) − 2 log Σ_{n,l}
        exp(s(b,n; b,l))

    Both sides may have several candidates: `anchor` is [B, N, D] or [B, D]. Arguments, result and
    errors are otherwise those of `asymmetric_nce`.
    """
    first, second, first_valid, second_valid = _prepare(
        anchor, other, mask, candidate_mask, anchor_mask
    )
    rows, columns, own = _log_sums(
        first / temperature, second, first_valid, second_valid, chunk_size=chunk_size
    )
    weights = _weights(first_valid, second_valid, mask_groups)
    return weighted_mean(rows + columns - 2.0 * own, weights)


def info_nce(
    first: jax.Array,
    second: jax.Array,
    *,
    logit_scale: jax.Array | float,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """CLIP's loss (Radford et al. 2021, arXiv 2103.00020): the mean of both cross entropies.

    Args:
      first, second: [B, D] each; row b of one belongs to row b of the other.
      logit_scale: multiplies the cosines: 1 / temperature. Differentiable; CLIP learns its
        logarithm.
      mask: [B], 1 where both exist; other examples are neither positives nor negatives.
      chunk_size: rows of `first` compared at a time; must divide B. None compares all at once.

    Returns:
      A float32 scalar, 0 when no example is valid.

    Raises:
      UserError: `chunk_size` does not divide B.
    """
    first, second, first_valid, second_valid = _prepare(first, second, mask, None, mask)
    rows, columns, own = _log_sums(
        first * logit_scale, second, first_valid, second_valid, chunk_size=chunk_size
    )
    weights = _weights(first_valid, second_valid, 1)
    return weighted_mean(0.5 * (rows + columns) - own, weights)


def soft_nce(
    first: jax.Array,
    second: jax.Array,
    *,
    logit_scale: jax.Array | float,
    mask: jax.Array | None = None,
    target_temperature: float = 0.05,
    chunk_size: int | None = None,
) -> jax.Array:
    """TVL's soft loss (Fu et al. 2024, arXiv 2402.13232): captions say who resembles whom.

    Cross entropies, averaged over both directions, between the softmax of the scaled cosines of
    `first` with `second` and the softmax of the cosines of `second` with itself, divided by
    `target_temperature`. No gradient flows into these targets.

    Args:
      first: [B, D], for example touch.
      second: [B, D], captions.
      logit_scale, mask, chunk_size: as of `info_nce`.
      target_temperature: of the targets; small ones leave the example itself alone.

    Returns:
      A float32 scalar, 0 when no example is valid.

    Raises:
      UserError: `chunk_size` does not divide B, or `target_temperature` is not above 0.
    """
    if target_temperature <= 0:
        raise UserError(f"target_temperature={target_temperature} must be above 0.")
    first, second, valid, _ = _prepare(first, second, mask, None, mask)
    first, second, valid = first[:, 0], second[:, 0], valid[:, 0]
    captions = jax.lax.stop_gradient(second)

    def one_way(queries, keys):
        def compare(block):
            query, caption = block
            scores = jnp.where(valid, products(query, keys), EXCLUDED)
            likeness = products(caption, captions) / target_temperature
            targets = jax.nn.softmax(jnp.where(valid, likeness, EXCLUDED), axis=1)
            expected = jnp.sum(targets * jnp.where(valid, scores, 0.0), axis=1)
            return jax.nn.logsumexp(scores, axis=1) - expected

        return map_chunks(compare, (queries, captions), chunk_size)

    losses = one_way(first * logit_scale, second) + one_way(second * logit_scale, first)
    return weighted_mean(0.5 * losses, _weights(valid[:, None], valid[:, None], 1))


def sigmoid_loss(
    first: jax.Array,
    second: jax.Array,
    *,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float = 0.0,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Every pair of the batch as a yes-or-no question (SigLIP, Zhai et al. 2023, arXiv 2303.15343).

    The sum over all pairs of -log sigmoid(± (scale · cosine + bias)), + for the pair of one
    example, divided by the number of valid examples. Arguments, result and errors otherwise as of
    `info_nce`.
    """
    first, second, valid, _ = _prepare(first, second, mask, None, mask)
    first, second, valid = first[:, 0], second[:, 0], valid[:, 0]

    def compare(block):
        query, index, query_valid = block
        logits = logit_scale * products(query, second) + logit_bias
        sign = jnp.where(index[:, None] == jnp.arange(len(second)), 1.0, -1.0)
        losses = -jax.nn.log_sigmoid(sign * logits)
        return jnp.sum(jnp.where(valid & query_valid[:, None], losses, 0.0), axis=1)

    rows = (first, jnp.arange(len(first)), valid)
    return map_chunks(compare, rows, chunk_size).sum() / jnp.maximum(valid.sum(), 1)


def clamped_scale(log_scale: jax.Array, maximum: float) -> jax.Array:
    """exp(log_scale), at most `maximum` (0: no limit).

    At the limit a gradient that would raise the scale is dropped and one that lowers it passes, so
    that a learned scale stays there and can come back.
    """
    return jnp.exp(_clamp(log_scale, math.log(maximum)) if maximum else log_scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _clamp(x, limit):
    return jnp.minimum(x, limit)


_clamp.defvjp(
    lambda x, limit: (jnp.minimum(x, limit), x),
    # Descent subtracts the gradient: a positive one leads back below the limit.
    lambda limit, x, g: (jnp.where((x < limit) | (g > 0), g, jnp.zeros_like(g)),),
)


def batch_top1(
    anchor: jax.Array,
    other: jax.Array,
    *,
    mask: jax.Array | None = None,
    candidate_mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`(hits, count)`: valid examples whose anchor is nearest to a candidate of their own.

    Arguments and errors are those of `asymmetric_nce`.
    """
    first, second, first_valid, second_valid = _prepare(anchor, other, mask, candidate_mask, None)

    def nearest(block):
        similarity = _similarity(block, second)[:, 0]  # [K, B, L]
        similarity = jnp.where(second_valid, similarity, EXCLUDED)
        return similarity.max(axis=-1).argmax(axis=-1)

    found = map_chunks(nearest, first, chunk_size)
    valid = _valid(first_valid, second_valid)
    hits = (found == jnp.arange(len(valid))) & valid
    return hits.sum().astype(jnp.float32), valid.sum().astype(jnp.float32)


def _prepare(anchor, other, mask, candidate_mask, anchor_mask):
    """Normalized [B, N, D] and [B, L, D], and which of them exist: bool [B, N] and [B, L]."""
    first = normalize(anchor if anchor.ndim == 3 else anchor[:, None])
    second = normalize(other if other.ndim == 3 else other[:, None])
    first_valid = jnp.ones(first.shape[:2], bool)
    second_valid = jnp.ones(second.shape[:2], bool)
    if anchor_mask is not None:
        first_valid &= anchor_mask.reshape(len(first), -1) > 0
    if mask is not None:
        second_valid &= mask[:, None] > 0
    if candidate_mask is not None:
        second_valid &= candidate_mask > 0
    return first, second, first_valid, second_valid


def _similarity(first: jax.Array, second: jax.Array) -> jax.Array:
    """[K, N, B, L]."""
    # Accelerators multiply float32 in fewer bits by default: too few at 1 / 0.07.
    return jnp.einsum("knd,bld->knbl", first, second, precision=jax.lax.Precision.HIGHEST)


def _log_sums(
    first: jax.Array,
    second: jax.Array,
    first_valid: jax.Array,
    second_valid: jax.Array,
    *,
    own_in_columns: bool = True,
    chunk_size: int | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-sum-exps of similarities: `rows` (b, all), `columns` (all, b) and `own` (b, b), [B] each.

    A chunk of `first` meets all of `second`: its rows are then complete, and the columns are
    gathered from chunk to chunk. The backward pass computes each chunk again instead of keeping it.
    """
    count = first.shape[0]

    def compare(columns, block):
        block, block_valid, index = block
        similarity = _similarity(block, second)
        valid = block_valid[:, :, None, None] & second_valid
        similarity = jnp.where(valid, similarity, EXCLUDED)
        rows = jax.nn.logsumexp(similarity, axis=(1, 2, 3))
        if not own_in_columns:
            own = index[:, None] == jnp.arange(count)
            similarity = jnp.where(own[:, None, :, None], EXCLUDED, similarity)
        part = jax.nn.logsumexp(similarity, axis=(0, 1, 3))
        return jnp.logaddexp(columns, part), rows

    nothing = jnp.full(count, 10 * EXCLUDED, jnp.float32)
    blocks = chunks((first, first_valid, jnp.arange(count)), chunk_size)
    if blocks is None:
        columns, rows = compare(nothing, (first, first_valid, jnp.arange(count)))
    else:
        compare = jax.checkpoint(compare, prevent_cse=False)
        columns, rows = jax.lax.scan(compare, nothing, blocks)
        rows = rows.reshape(-1)
    own = jnp.einsum("bnd,bld->bnl", first, second, precision=jax.lax.Precision.HIGHEST)
    own = jnp.where(first_valid[:, :, None] & second_valid[:, None, :], own, EXCLUDED)
    return rows, columns, jax.nn.logsumexp(own, axis=(1, 2))


def _valid(first_valid: jax.Array, second_valid: jax.Array) -> jax.Array:
    """bool [B]: the example has something on both sides."""
    return first_valid.any(axis=1) & second_valid.any(axis=1)


def _weights(first_valid: jax.Array, second_valid: jax.Array, groups: int) -> jax.Array:
    """[B]; they sum to the fraction of groups that have a valid example."""
    valid = _valid(first_valid, second_valid).astype(jnp.float32)
    if groups < 1 or len(valid) % groups:
        raise UserError(f"mask_groups={groups} does not divide the batch of {len(valid)} examples.")
    valid = valid.reshape(groups, -1)
    weights = valid / jnp.maximum(valid.sum(axis=1, keepdims=True), 1.0) / groups
    return weights.reshape(-1)
