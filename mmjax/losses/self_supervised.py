"""Self-supervised losses between views of the same example: SimCLR, SimSiam, NNCLR and SwAV.

Arrays are global, as in `mmjax.losses.contrastive`: under `jax.jit` on a mesh, the negatives and
SwAV's assignments are those of the whole batch. Embeddings are L2-normalized here. All computations
are in float32, whatever the input dtype.

Values equal those of LGSSL's published code (El Banani et al. 2023, Learning Visual Representations
via Language-Guided Sampling, arXiv 2302.12248). Each function names the paper that introduced it.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from mmjax.errors import check_choice
from mmjax.losses.similarity import EXCLUDED, map_chunks, normalize, products, weighted_mean


def nt_xent(
    anchor: jax.Array,
    positive: jax.Array,
    *,
    temperature: float = 0.1,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns SimCLR's loss: each of 2B embeddings has one positive among the other 2B − 1.

    Args:
      anchor: [B, D], one view.
      positive: [B, D], another view of the same examples.
      temperature: Divisor of the cosine similarities.
      mask: [B], 1 where both exist. Other examples are neither positives nor negatives.
      chunk_size: Number of the 2B embeddings per chunk; must divide 2B. None compares all at once.

    Returns:
      A float32 scalar, or 0 if no example is valid.

    Raises:
      UserError: `chunk_size` does not divide 2B.

    Source: Chen et al. 2020, arXiv 2002.05709 (SimCLR).
    """
    count = len(anchor)
    z = jnp.concatenate([normalize(anchor), normalize(positive)])  # [2B, D]
    valid = jnp.tile(_valid(mask, count), 2)

    def compare(block):
        query, index = block
        scores = products(query, z) / temperature
        itself = index[:, None] == jnp.arange(2 * count)
        scores = jnp.where(itself | ~valid, EXCLUDED, scores)
        positive_index = (index + count) % (2 * count)
        own = jnp.take_along_axis(scores, positive_index[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(scores, axis=1) - own

    losses = map_chunks(compare, (z, jnp.arange(2 * count)), chunk_size)
    return _mean(losses, valid)


def one_way_nce(
    anchor: jax.Array,
    positive: jax.Array,
    *,
    temperature: float = 0.1,
    mask: jax.Array | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Returns the cross entropy of finding each anchor's positive among all positives of the batch.

    NNCLR uses predictions as anchors, and nearest neighbors of the other view as positives.

    Args:
      anchor: [B, D].
      positive: [B, D]; `positive[b]` belongs to `anchor[b]`, all others are negatives.
      temperature: Divisor of the cosine similarities.
      mask: [B], 1 where both exist. Other examples are neither positives nor negatives.
      chunk_size: Number of anchors per chunk; must divide B. None compares all at once.

    Returns:
      A float32 scalar, or 0 if no example is valid.

    Raises:
      UserError: `chunk_size` does not divide B.

    Source: Dwibedi et al. 2021, arXiv 2104.14548 (NNCLR).
    """
    anchor, positive, valid = normalize(anchor), normalize(positive), _valid(mask, len(anchor))

    def compare(block):
        query, index = block
        scores = jnp.where(valid, products(query, positive) / temperature, EXCLUDED)
        own = jnp.take_along_axis(scores, index[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(scores, axis=1) - own

    return _mean(map_chunks(compare, (anchor, jnp.arange(len(anchor))), chunk_size), valid)


def negative_cosine(
    prediction: jax.Array, target: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Returns SimSiam's loss of one direction: the mean of −cos(prediction, target).

    Args:
      prediction: [B, D].
      target: [B, D]; no gradient flows into it.
      mask: [B], 1 where both exist.

    Returns:
      A float32 scalar, or 0 if no example is valid.

    Source: Chen & He 2021, arXiv 2011.10566 (SimSiam).
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
    """Returns soft assignments of examples to prototypes in which all prototypes are used equally.

    The Sinkhorn-Knopp algorithm starts with exp(scores / epsilon) and normalizes columns and rows
    in turn.

    Args:
      scores: [N, K], cosine similarities of embeddings and prototypes.
      epsilon: Regularization; smaller values make assignments harder.
      iterations: Number of times that both are normalized.
      mask: [N], 1 for valid examples. Other examples get zeros.

    Returns:
      float32 [N, K]; assignments of a valid example sum to 1.

    Source: Caron et al. 2020, arXiv 2006.09882 (SwAV).
    """
    scores = scores.astype(jnp.float32)
    valid = _valid(mask, len(scores))[:, None]
    # Logarithms, because all values of a row may underflow float32 if epsilon is small.
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
    axis: Literal["prototypes", "batch"] = "prototypes",
    mask: jax.Array | None = None,
) -> jax.Array:
    """Returns SwAV's loss of one direction: one view predicts the assignments of the other.

    Args:
      scores: [B, K], cosine similarities of this view's embeddings and the prototypes.
      codes: [B, K], assignments of the other view; no gradient flows into them.
      temperature: Divisor of the scores.
      axis: Axis of the softmax: 'prototypes', or 'batch' as in LGSSL's published code.
      mask: [B], 1 for valid examples.

    Returns:
      A float32 scalar, or 0 if no example is valid.

    Raises:
      UserError: Another axis.
    """
    check_choice("softmax_axis", axis, ("prototypes", "batch"))
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
    """Returns the mean over valid examples, or 0 if no example is valid."""
    return weighted_mean(losses, valid / jnp.maximum(valid.sum(), 1))
