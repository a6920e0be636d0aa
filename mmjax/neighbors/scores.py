"""Scores of two sets of rows on a device, and how far from the cosines they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def scores_of(queries: jax.Array, candidates: jax.Array) -> jax.Array:
    """Cosines [Q, C] of unit vectors, in float32 whatever they are."""
    return jax.lax.dot_general(
        queries,
        candidates,
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def masked_scores(
    scores: jax.Array, group: jax.Array, tag: jax.Array, others: jax.Array, other_tags: jax.Array
) -> jax.Array:
    """Scores with -inf where the rows must not be neighbors."""
    allowed = (group[:, None] == others) & (tag[:, None] != other_tags)
    return jnp.where(allowed, scores, -jnp.inf)


def bound(dtype: str, width: int, rounding: float = 0.0) -> float:
    """How far scores of unit vectors are from their cosines in float64 at most.

    A sum of D products of unit vectors, in any order, errs by D · 2^-24 at most in float32; some
    devices add with another bit less. With each vector r away from what it was rounded to, a
    product changes by 2 r + r² at most.

    Args:
      dtype: of the products.
      width: D.
      rounding: r, the largest distance of a vector from itself in bfloat16.
    """
    summed = (width + 17) * 2.0**-23
    return summed if dtype == "float32" else 2 * summed + 2 * rounding + rounding**2
