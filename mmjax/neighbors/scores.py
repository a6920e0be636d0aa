"""Scores of pairs of vectors on a device, and bounds on their rounding errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def dot_products(queries: jax.Array, candidates: jax.Array) -> jax.Array:
    """Returns the cosines [Q, C] of unit vectors [Q, D] and [C, D], accumulated in float32."""
    return jax.lax.dot_general(
        queries,
        candidates,
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def masked_scores(
    scores: jax.Array,
    query_group: jax.Array,
    query_tag: jax.Array,
    group: jax.Array,
    tag: jax.Array,
) -> jax.Array:
    """Returns the scores, with -inf for pairs that must not be neighbors.

    Vectors may be neighbors if they are of one group and have different tags.

    Args:
      scores: float [Q, C].
      query_group, query_tag: int [Q].
      group, tag: int [C], of the candidates.
    """
    allowed = (query_group[:, None] == group) & (query_tag[:, None] != tag)
    return jnp.where(allowed, scores, -jnp.inf)


def error_bound(dtype: str, width: int, rounding_error: float = 0.0) -> float:
    """Returns the largest difference between a score and the cosine in float64.

    A float32 sum over D products of unit vectors, in any order, is off by at most D · 2^-24; some
    devices lose one more bit. If rounding moves each vector by at most r, a product changes by at
    most 2 r + r².

    Args:
      dtype: Type of the products.
      width: Number of values of a vector, D.
      rounding_error: The largest distance r between a vector and its rounded value in bfloat16.
    """
    accumulation = (width + 17) * 2.0**-23
    if dtype == "float32":
        return accumulation
    return 2 * accumulation + 2 * rounding_error + rounding_error**2
