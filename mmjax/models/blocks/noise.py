"""Randomness in training: keys, dropout and stochastic depth (Huang et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError


def check_rate(name: str, rate: float) -> None:
    """Raises UserError unless `rate` is a probability below 1."""
    if not 0 <= rate < 1:
        raise UserError(f"{name} must be in [0, 1), not {rate}.")


def split_key(key: jax.Array | None, count: int):
    """`count` keys, or as many Nones: modules take None for 'no randomness'."""
    return [None] * count if key is None else jax.random.split(key, count)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a `rate` of the elements and scales up the rest; nothing without a key or rate."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def drop_path(
    x: jax.Array,
    rate: jax.Array | float,
    key: jax.Array | None,
    *,
    segments: Sequence[tuple[int, int]],
) -> jax.Array:
    """Zeroes a `rate` of the sequences in rows [B, T, D] and scales up the rest; nothing without a
    key. `segments` are (sequences in a row, their length), in order."""
    if key is None:
        return x
    counts, lengths = zip(*segments, strict=True)
    keep = jax.random.bernoulli(key, 1 - rate, (len(x), sum(counts)))
    parts = jnp.split(keep, np.cumsum(counts)[:-1], axis=1)
    spread = [jnp.repeat(part, n, axis=1) for part, n in zip(parts, lengths, strict=True)]
    keep = jnp.concatenate(spread, axis=1)[..., None]  # [B, T, 1]
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))
