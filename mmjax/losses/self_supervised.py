"""Losses between views of the same thing: SimCLR's, SimSiam's, NNCLR's and SwAV's.

Arrays are global, as in `mmjax.losses.contrastive`: under `jax.jit` on a mesh the negatives, and
the assignments of SwAV, are of the whole batch. Embeddings are L2-normalized here, and everything
is computed in float32, whatever comes in.

Values are those of LGSSL's published code (El Banani et al. 2023, Learning Visual Representations
via Language-Guided Sampling, arXiv 2302.12248); each function names the paper it is from.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mmjax.errors import UserError
from mmjax.losses.similarity import EXCLUDED, map_chunks, normalize, products, weighted_mean


def nt_xent(
    first: jax.Array,
    second: jax.Array,
    *,
    temperature: float = 0.1,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """SimCLR's loss (Chen et al. 2020, arXiv 2002.05709): each of 2B embeddings finds its partner.

    Candidates are all other 2B − 1 embeddings, of both views.

    Args:
      first, second: [B, D], two views; row b of one belongs to row b of the other.
      temperature: divides the cosines.
      mask: [B], 1 where both exist; other examples are neither positives nor negatives.
      chunk_size: of the 2B embeddings, compared at a time; must divide 2B. None compares all at
        once.

    Returns:
      A float32 scalar, 0 when no example is valid.

    Raises:
      UserError: `chunk_size` does not divide 2B.
    """
    count = len(first)
    z = jnp.concatenate([normalize(first), normalize(second)])  # [2B, D]
    valid = jnp.tile(_valid(mask, count), 2)

    def compare(block):
        row, number = block
        scores = products(row, z) / temperature
        itself = number[:, None] == jnp.arange(2 * count)
        scores = jnp.where(itself | ~valid, EXCLUDED, scores)
        positive = (number + count) % (2 * count)
        own = jnp.take_along_axis(scores, positive[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(scores, axis=1) - own

    losses = map_chunks(compare, (z, jnp.arange(2 * count)), chunk_size)
    return _mean(losses, valid)


def one_way_nce(
    query: jax.Array,
    key: jax.Array,
    *,
    temperature: float = 0.1,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """The cross entropy with which each query finds its own key among all of the batch.

    NNCLR (Dwibedi et al. 2021, arXiv 2104.14548) takes predictions and neighbors of the other
    view. Arguments, result and errors otherwise as of `nt_xent`, for B rows.
    """
    query, key, valid = normalize(query), normalize(key), _valid(mask, len(query))

    def compare(block):
        row, number = block
        scores = jnp.where(valid, products(row, key) / temperature, EXCLUDED)
        own = jnp.take_along_axis(scores, number[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(scores, axis=1) - own

    return _mean(map_chunks(compare, (query, jnp.arange(len(query))), chunk_size), valid)


def negative_cosine(
    prediction: jax.Array, target: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """SimSiam's loss of one direction (Chen & He 2021, arXiv 2011.10566): −cos, averaged.

    No gradient flows into `target`.

    Args:
      prediction, target: [B, D].
      mask: [B], 1 where both exist.
    """
    target = jax.lax.stop_gradient(normalize(target))
    losses = -jnp.sum(normalize(prediction) * target, axis=-1)
    return _mean(losses, _valid(mask, len(losses)))


def sinkhorn(
    scores: jax.Array,
    *,
    epsilon: float = 0.05,
    iterations: int = 3,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Soft assignments in which all prototypes get the same share of the rows.

    Sinkhorn-Knopp as in SwAV (Caron et al. 2020, arXiv 2006.09882): exp(scores / epsilon), whose
    columns and rows are scaled in turn.

    Args:
      scores: [N, K], cosines of rows and prototypes.
      epsilon: the smaller, the harder the assignments.
      iterations: how often both are scaled.
      mask: [N], 1 for rows that count; the others get zeros.

    Returns:
      float32 [N, K]; the rows that count sum to 1.
    """
    scores = scores.astype(jnp.float32)
    valid = _valid(mask, len(scores))[:, None]
    # Of logarithms: with a small epsilon, all of a row may be less than the least float32.
    codes = jnp.where(valid, scores / epsilon, EXCLUDED)
    for _ in range(iterations):
        codes = codes - jax.nn.logsumexp(codes, axis=0, keepdims=True)
        codes = codes - jax.nn.logsumexp(codes, axis=1, keepdims=True)
        codes = jnp.where(valid, codes, EXCLUDED)
    return jnp.exp(codes)


def swapped_prediction(
    scores: jax.Array,
    codes: jax.Array,
    *,
    temperature: float = 0.1,
    axis: str = "prototypes",
    mask: jax.Array | None = None,
) -> jax.Array:
    """SwAV's loss of one direction: the cross entropy of one view's scores with the other's codes.

    Args:
      scores: [B, K], cosines of this view's embeddings and the prototypes.
      codes: [B, K], assignments of the other view; no gradient flows into them.
      temperature: divides the scores.
      axis: 'prototypes', over which the softmax is taken, or 'batch', as LGSSL's published code
        takes it.
      mask: [B], 1 for rows that count.

    Raises:
      UserError: another axis.
    """
    if axis not in ("prototypes", "batch"):
        raise UserError(f"softmax_axis={axis!r} must be 'prototypes' or 'batch'.")
    valid = _valid(mask, len(scores))
    logits = scores.astype(jnp.float32) / temperature
    if axis == "batch":
        logits = jnp.where(valid[:, None], logits, EXCLUDED)
    log_p = jax.nn.log_softmax(logits, axis=1 if axis == "prototypes" else 0)
    losses = -jnp.sum(jax.lax.stop_gradient(codes) * log_p, axis=1)
    return _mean(losses, valid)


def _valid(mask: jax.Array | None, count: int) -> jax.Array:
    return jnp.ones(count, bool) if mask is None else mask > 0


def _mean(losses: jax.Array, valid: jax.Array) -> jax.Array:
    """Over the valid ones; 0 if there is none."""
    return weighted_mean(losses, valid / jnp.maximum(valid.sum(), 1))
