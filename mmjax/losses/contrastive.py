"""Contrastive losses between two sets of embeddings, over the global batch.

Arrays are global: under `jax.jit` on a mesh the batch may be sharded, and the negatives are those
of the whole batch without an explicit collective. With `chunk_size`, anchors are compared chunk by
chunk, so that the complete similarity matrix is never in memory, forward or backward. Values and
gradients are the same.

Embeddings are L2-normalized here. All computations are in float32, whatever the input dtype.
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
    candidates: jax.Array,
    *,
    mask: jax.Array | None = None,
    candidate_mask: jax.Array | None = None,
    anchor_mask: jax.Array | None = None,
    temperature: float = 0.07,
    double_positive: bool = True,
    mask_groups: int = 1,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns VATT's NCE loss, which is MIL-NCE if examples have several candidates.

    Example b contrasts its anchor with all candidates of the batch, and its candidates with all
    anchors:

        loss_b = log(Σ_{c,l} exp(s(b; c,l)) + Σ_{c,l} exp(s(c; b,l))) − log Σ_l exp(s(b; b,l))

    with s(b; c,l) = anchor_b · candidate_{c,l} / temperature. The result is the mean over valid
    examples.

    Args:
      anchor: [B, D], for example videos; or several per example, [B, N, D].
      candidates: [B, L, D], for example captions; or one per example, [B, D].
      mask: [B], 1 where the example has candidates. Candidates of other examples are neither
        positives nor negatives, but their anchors are still negatives.
      candidate_mask: [B, L], 1 where a candidate exists. Others are neither positives nor
        negatives.
      anchor_mask: [B] or [B, N], 1 where an anchor exists. Others are neither positives nor
        negatives.
      temperature: Divisor of the similarities.
      double_positive: Whether both sums of the denominator include c = b, as in VATT's published
        code. The loss is then at least log 2. False includes it once, the standard denominator.
      mask_groups: Number of equal, consecutive parts of the batch. The result is the mean over
        parts of the mean within each part, as in data-parallel VATT with one part per replica.
        It matters only if parts have different numbers of valid examples.
      chunk_size: Number of anchors per chunk; must divide B. None compares all at once.

    Returns:
      A float32 scalar, or 0 if no example is valid.

    Raises:
      UserError: `chunk_size` or `mask_groups` does not divide B.

    Source: Miech et al. 2020, arXiv 1912.06430 (MIL-NCE); Akbari et al. 2021 (VATT).
    """
    anchors, candidates, anchor_valid, candidate_valid = _prepare(
        anchor, candidates, mask, candidate_mask, anchor_mask
    )
    rows, columns, own = _log_sums(
        anchors / temperature,
        candidates,
        anchor_valid,
        candidate_valid,
        own_in_columns=double_positive,
        chunk_size=chunk_size,
    )
    weights = _weights(anchor_valid, candidate_valid, mask_groups)
    return weighted_mean(jnp.logaddexp(rows, columns) - own, weights)


def symmetric_nce(
    anchor: jax.Array,
    candidates: jax.Array,
    *,
    mask: jax.Array | None = None,
    candidate_mask: jax.Array | None = None,
    anchor_mask: jax.Array | None = None,
    temperature: float = 0.07,
    mask_groups: int = 1,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns VATT's symmetric NCE loss: the sum of one loss per direction.

    Each direction has its own denominator:

        loss_b = log Σ_{c,n,l} exp(s(b,n; c,l)) + log Σ_{c,n,l} exp(s(c,n; b,l))
                 − 2 log Σ_{n,l} exp(s(b,n; b,l))

    Args, result and errors are those of `asymmetric_nce`.
    """
    anchors, candidates, anchor_valid, candidate_valid = _prepare(
        anchor, candidates, mask, candidate_mask, anchor_mask
    )
    rows, columns, own = _log_sums(
        anchors / temperature, candidates, anchor_valid, candidate_valid, chunk_size=chunk_size
    )
    weights = _weights(anchor_valid, candidate_valid, mask_groups)
    return weighted_mean(rows + columns - 2.0 * own, weights)


def info_nce(
    anchor: jax.Array,
    positive: jax.Array,
    *,
    logit_scale: jax.Array | float,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns CLIP's loss: the mean of the cross entropies of both directions.

    Args:
      anchor: [B, D].
      positive: [B, D]; `positive[b]` belongs to `anchor[b]`, all others are negatives.
      logit_scale: Factor of the cosine similarities, 1 / temperature. The loss is differentiable
        in it; CLIP learns its logarithm.
      mask: [B], 1 where both exist. Other examples are neither positives nor negatives.
      chunk_size: Number of anchors per chunk; must divide B. None compares all at once.

    Returns:
      A float32 scalar, or 0 if no example is valid.

    Raises:
      UserError: `chunk_size` does not divide B.

    Source: Radford et al. 2021, arXiv 2103.00020 (CLIP).
    """
    anchors, candidates, anchor_valid, candidate_valid = _prepare(
        anchor, positive, mask, None, mask
    )
    rows, columns, own = _log_sums(
        anchors * logit_scale, candidates, anchor_valid, candidate_valid, chunk_size=chunk_size
    )
    weights = _weights(anchor_valid, candidate_valid, 1)
    return weighted_mean(0.5 * (rows + columns) - own, weights)


def soft_nce(
    anchor: jax.Array,
    positive: jax.Array,
    *,
    logit_scale: jax.Array | float,
    mask: jax.Array | None = None,
    target_temperature: float = 0.05,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns TVL's loss, with the similarities between captions as targets.

    It is a cross entropy, averaged over both directions, between the softmax of the scaled cosines
    of anchors with captions, and the softmax of the cosines of captions with captions divided by
    `target_temperature`. No gradient flows into these targets.

    Args:
      anchor: [B, D], for example touch.
      positive: [B, D], the captions.
      logit_scale: Factor of the cosine similarities, 1 / temperature.
      mask: [B], 1 where both exist. Other examples are neither positives nor negatives.
      target_temperature: Divisor of the caption similarities. As it approaches 0, the targets
        become one-hot and the loss approaches `info_nce`.
      chunk_size: Number of anchors per chunk; must divide B. None compares all at once.

    Returns:
      A float32 scalar, or 0 if no example is valid.

    Raises:
      UserError: `chunk_size` does not divide B, or `target_temperature` is not positive.

    Source: Fu et al. 2024, arXiv 2402.13232 (TVL).
    """
    if target_temperature <= 0:
        raise UserError(
            f"target_temperature of soft_nce must be positive; got {target_temperature}. The limit "
            "of 0 is the loss 'info_nce'."
        )
    anchors, candidates, valid, _ = _prepare(anchor, positive, mask, None, mask)
    anchors, candidates, valid = anchors[:, 0], candidates[:, 0], valid[:, 0]
    captions = jax.lax.stop_gradient(candidates)

    def one_way(queries, keys):
        def compare(block):
            query, caption = block
            logits = jnp.where(valid, products(query, keys), EXCLUDED)
            similarity = products(caption, captions) / target_temperature
            targets = jax.nn.softmax(jnp.where(valid, similarity, EXCLUDED), axis=1)
            expected = jnp.sum(targets * jnp.where(valid, logits, 0.0), axis=1)
            return jax.nn.logsumexp(logits, axis=1) - expected

        return map_chunks(compare, (queries, captions), chunk_size)

    losses = one_way(anchors * logit_scale, candidates) + one_way(candidates * logit_scale, anchors)
    return weighted_mean(0.5 * losses, _weights(valid[:, None], valid[:, None], 1))


def sigmoid_loss(
    anchor: jax.Array,
    positive: jax.Array,
    *,
    logit_scale: jax.Array | float,
    logit_bias: jax.Array | float = 0.0,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns SigLIP's loss: every pair of the batch is one binary classification.

    It is the sum over all pairs of -log sigmoid(±(scale · cosine + bias)), with + for pairs of the
    same example, divided by the number of valid examples.

    Args:
      anchor: [B, D].
      positive: [B, D]; `positive[b]` belongs to `anchor[b]`.
      logit_scale: Factor of the cosine similarities.
      logit_bias: Added to the scaled similarities.
      mask: [B], 1 where both exist. Pairs with other examples are excluded.
      chunk_size: Number of anchors per chunk; must divide B. None compares all at once.

    Returns:
      A float32 scalar, or 0 if no example is valid.

    Raises:
      UserError: `chunk_size` does not divide B.

    Source: Zhai et al. 2023, arXiv 2303.15343 (SigLIP).
    """
    anchors, candidates, valid, _ = _prepare(anchor, positive, mask, None, mask)
    anchors, candidates, valid = anchors[:, 0], candidates[:, 0], valid[:, 0]

    def compare(block):
        query, index, query_valid = block
        logits = logit_scale * products(query, candidates) + logit_bias
        sign = jnp.where(index[:, None] == jnp.arange(len(candidates)), 1.0, -1.0)
        losses = -jax.nn.log_sigmoid(sign * logits)
        return jnp.sum(jnp.where(valid & query_valid[:, None], losses, 0.0), axis=1)

    arrays = (anchors, jnp.arange(len(anchors)), valid)
    return map_chunks(compare, arrays, chunk_size).sum() / jnp.maximum(valid.sum(), 1)


def clamped_scale(log_scale: jax.Array, maximum: float, minimum: float = 0.0) -> jax.Array:
    """Returns exp(log_scale), limited to `maximum` and `minimum`; 0 means no limit.

    At the limit, a gradient that would exceed it further is replaced by 0 and one that leads back
    passes, so that a learned scale does not get stuck there.
    """
    if maximum:
        log_scale = _clamp(log_scale, math.log(maximum))
    if minimum:
        log_scale = -_clamp(-log_scale, -math.log(minimum))
    return jnp.exp(log_scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _clamp(x, limit):
    return jnp.minimum(x, limit)


_clamp.defvjp(
    lambda x, limit: (jnp.minimum(x, limit), x),
    # Gradient descent subtracts the gradient: a positive one decreases the scale.
    lambda limit, x, g: (jnp.where((x < limit) | (g > 0), g, jnp.zeros_like(g)),),
)


def batch_top1(
    anchor: jax.Array,
    candidates: jax.Array,
    *,
    mask: jax.Array | None = None,
    candidate_mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns `(hits, count)` of retrieval within the batch.

    A valid example is a hit if the candidate nearest to its anchors is one of its own. Args and
    errors are those of `asymmetric_nce`.
    """
    anchors, candidates, anchor_valid, candidate_valid = _prepare(
        anchor, candidates, mask, candidate_mask, None
    )

    def nearest(block):
        similarity = _similarity(block, candidates)[:, 0]  # [K, B, L]
        similarity = jnp.where(candidate_valid, similarity, EXCLUDED)
        return similarity.max(axis=-1).argmax(axis=-1)

    nearest_index = map_chunks(nearest, anchors, chunk_size)
    valid = _valid(anchor_valid, candidate_valid)
    hits = (nearest_index == jnp.arange(len(valid))) & valid
    return hits.sum().astype(jnp.float32), valid.sum().astype(jnp.float32)


def _prepare(anchor, candidates, mask, candidate_mask, anchor_mask):
    """Returns normalized anchors [B, N, D] and candidates [B, L, D], and bool masks of both."""
    anchors = normalize(anchor if anchor.ndim == 3 else anchor[:, None])
    candidates = normalize(candidates if candidates.ndim == 3 else candidates[:, None])
    anchor_valid = jnp.ones(anchors.shape[:2], bool)
    candidate_valid = jnp.ones(candidates.shape[:2], bool)
    if anchor_mask is not None:
        anchor_valid &= anchor_mask.reshape(len(anchors), -1) > 0
    if mask is not None:
        candidate_valid &= mask[:, None] > 0
    if candidate_mask is not None:
        candidate_valid &= candidate_mask > 0
    return anchors, candidates, anchor_valid, candidate_valid


def _similarity(anchors: jax.Array, candidates: jax.Array) -> jax.Array:
    """Returns the cosines [K, N, B, L] of anchors [K, N, D] and candidates [B, L, D]."""
    # By default, accelerators multiply float32 in lower precision; see `similarity.products`.
    return jnp.einsum("knd,bld->knbl", anchors, candidates, precision=jax.lax.Precision.HIGHEST)


def _log_sums(
    anchors: jax.Array,
    candidates: jax.Array,
    anchor_valid: jax.Array,
    candidate_valid: jax.Array,
    *,
    own_in_columns: bool = True,
    chunk_size: int | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns three log-sum-exps of similarities per example, [B] each.

    `rows` is over all pairs with an anchor of b, `columns` over all pairs with a candidate of b,
    and `own` over the pairs within b. Anchors are compared with all candidates chunk by chunk:
    each chunk completes its `rows`, and `columns` accumulates over chunks. The backward pass
    recomputes each chunk instead of keeping its similarities in memory.
    """
    count = anchors.shape[0]

    def compare(columns, block):
        block, block_valid, index = block
        similarity = _similarity(block, candidates)
        valid = block_valid[:, :, None, None] & candidate_valid
        similarity = jnp.where(valid, similarity, EXCLUDED)
        rows = jax.nn.logsumexp(similarity, axis=(1, 2, 3))
        if not own_in_columns:
            own = index[:, None] == jnp.arange(count)
            similarity = jnp.where(own[:, None, :, None], EXCLUDED, similarity)
        part = jax.nn.logsumexp(similarity, axis=(0, 1, 3))
        return jnp.logaddexp(columns, part), rows

    empty = jnp.full(count, 10 * EXCLUDED, jnp.float32)
    blocks = chunks((anchors, anchor_valid, jnp.arange(count)), chunk_size)
    if blocks is None:
        columns, rows = compare(empty, (anchors, anchor_valid, jnp.arange(count)))
    else:
        compare = jax.checkpoint(compare, prevent_cse=False)
        columns, rows = jax.lax.scan(compare, empty, blocks)
        rows = rows.reshape(-1)
    own = jnp.einsum("bnd,bld->bnl", anchors, candidates, precision=jax.lax.Precision.HIGHEST)
    own = jnp.where(anchor_valid[:, :, None] & candidate_valid[:, None, :], own, EXCLUDED)
    return rows, columns, jax.nn.logsumexp(own, axis=(1, 2))


def _valid(anchor_valid: jax.Array, candidate_valid: jax.Array) -> jax.Array:
    """Returns bool [B]: whether the example has both an anchor and a candidate."""
    return anchor_valid.any(axis=1) & candidate_valid.any(axis=1)


def _weights(anchor_valid: jax.Array, candidate_valid: jax.Array, groups: int) -> jax.Array:
    """Returns example weights [B]; their sum is the fraction of groups with a valid example."""
    valid = _valid(anchor_valid, candidate_valid).astype(jnp.float32)
    if groups < 1 or len(valid) % groups:
        raise UserError(f"mask_groups={groups} must divide the batch size, {len(valid)}.")
    valid = valid.reshape(groups, -1)
    weights = valid / jnp.maximum(valid.sum(axis=1, keepdims=True), 1.0) / groups
    return weights.reshape(-1)
