"""Functions shared by losses that compare embeddings: normalization, inner products and chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.errors import UserError

# The value of an excluded similarity: exp(-1e9) is 0, and a log-sum-exp over only excluded values
# stays finite.
EXCLUDED = -1e9


def normalize(x: jax.Array) -> jax.Array:
    """Returns float32 vectors of unit length along the last axis.

    A zero vector stays zero and has a finite gradient.
    """
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def products(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the inner products [K, B] of vectors [K, D] and [B, D]."""
    # By default, accelerators multiply float32 in lower precision, which is not accurate enough
    # for logits that are divided by a temperature of 0.07.
    return jnp.matmul(first, second.T, precision=jax.lax.Precision.HIGHEST)


def chunks(arrays: Any, chunk_size: int | None) -> Any:
    """Returns every array [B, …] as [B / chunk_size, chunk_size, …], or None if one chunk suffices.

    Raises:
      UserError: `chunk_size` does not divide B.
    """
    count = jax.tree.leaves(arrays)[0].shape[0]
    if chunk_size is None or chunk_size >= count:
        return None
    if chunk_size < 1 or count % chunk_size:
        raise UserError(
            f"chunk_size={chunk_size} must divide the number of embeddings that are compared, "
            f"{count}. Set it to a divisor, or to None to compare all at once."
        )
    return jax.tree.map(lambda x: x.reshape(-1, chunk_size, *x.shape[1:]), arrays)


def map_chunks(
    function: Callable[[Any], jax.Array], arrays: Any, chunk_size: int | None
) -> jax.Array:
    """Applies a function to arrays [B, …] chunk by chunk.

    The backward pass recomputes each chunk instead of keeping its similarities in memory.

    Args:
      function: Maps arrays [K, …] to one value per example, [K].
      arrays: A pytree of arrays [B, …].
      chunk_size: Number of examples K per call; None passes all B at once.

    Returns:
      The values, [B].

    Raises:
      UserError: `chunk_size` does not divide B.
    """
    blocks = chunks(arrays, chunk_size)
    if blocks is None:
        return function(arrays)
    return jax.lax.map(jax.checkpoint(function), blocks).reshape(-1)


def weighted_mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the sum of weight · loss.

    Losses of weight 0 may be NaN: they affect neither the value nor the gradient.
    """
    return jnp.sum(jnp.where(weights > 0, losses, 0.0) * weights)
