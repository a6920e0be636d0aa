"""What losses that compare examples share: unit vectors, their products, and chunks of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.errors import UserError

# What an excluded similarity is set to: e^-1e9 is 0, and sums over nothing but excluded ones stay
# finite.
EXCLUDED = -1e9


def normalize(x: jax.Array) -> jax.Array:
    """Unit length along the last axis; zero stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))


def products(first: jax.Array, second: jax.Array) -> jax.Array:
    """[K, B] inner products of [K, D] and [B, D]."""
    # Accelerators multiply float32 in fewer bits by default: too few at 1 / 0.07.
    return jnp.matmul(first, second.T, precision=jax.lax.Precision.HIGHEST)


def chunks(arrays: Any, chunk_size: int | None) -> Any:
    """[B, …] → [B / chunk_size, chunk_size, …] of every array, or None when all fits one chunk.

    Raises:
      UserError: `chunk_size` does not divide B.
    """
    count = jax.tree.leaves(arrays)[0].shape[0]
    if chunk_size is None or chunk_size >= count:
        return None
    if chunk_size < 1 or count % chunk_size:
        raise UserError(f"chunk_size={chunk_size} does not divide the batch of {count} examples.")
    return jax.tree.map(lambda x: x.reshape(-1, chunk_size, *x.shape[1:]), arrays)


def map_chunks(
    function: Callable[[Any], jax.Array], rows: Any, chunk_size: int | None
) -> jax.Array:
    """[B] numbers, one for each row of arrays [B, …], by a function of [K, …] → [K].

    Chunk after chunk; the backward pass computes each again instead of keeping what it compared.
    """
    blocks = chunks(rows, chunk_size)
    if blocks is None:
        return function(rows)
    return jax.lax.map(jax.checkpoint(function), blocks).reshape(-1)


def weighted_mean(losses: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ weight · loss; what weighs nothing is left out of the gradient too."""
    return jnp.sum(jnp.where(weights > 0, losses, 0.0) * weights)
