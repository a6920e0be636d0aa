"""Randomness in training: random keys, dropout and stochastic depth (Huang et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.sharding import per_device


def check_rate(name: str, rate: float) -> None:
    """Raises UserError unless `rate` is at least 0 and less than 1."""
    if not 0 <= rate < 1:
        raise UserError(f"{name} must be in [0, 1); got {rate}.")


def split_key(key: jax.Array | None, count: int) -> jax.Array | list[None]:
    """Returns `count` random keys, or `count` Nones if `key` is None (no randomness)."""
    return [None] * count if key is None else jax.random.split(key, count)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Sets a fraction `rate` of the elements to 0 and scales the others by 1 / (1 - rate).

    Returns `x` unchanged if `key` is None or the rate is 0. The mask depends on how many devices
    share the batch; see `random_bits`. Rates are rounded to multiples of 2^-16.

    Args:
      x: [B, …].
      rate: Dropout rate.
      key: Random key.
    """
    if key is None or rate == 0:
        return x
    keep = random_bits(key, x.shape) < keep_threshold(rate)
    return jnp.where(keep, x / (1 - rate), jnp.zeros((), x.dtype))


def keep_threshold(rate: float) -> np.uint16:
    """Returns the number below which uniform random 16 bits have the probability 1 - rate."""
    return np.uint16(min(round((1 - rate) * 2**16), 2**16 - 1))


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns uniform random uint16 from the generator of the hardware.

    XLA's partitioner does not split this generator: every device would draw the bits of the whole
    batch. So each device that shares the batch draws those of its own examples with its own key.
    The result is the same in every run on the same kind of device and mesh, but not on others.

    Args:
      key: Random key.
      shape: (B, …).
    """

    def draw(num_examples, data):
        state = jnp.concatenate([data, data])
        return (jax.lax.rng_bit_generator(state, (num_examples, *shape[1:]), jnp.uint16)[1],)

    (bits,) = per_device(draw, shape[0], jax.random.key_data(key))
    return bits


def drop_path(
    x: jax.Array,
    rate: jax.Array | float,
    key: jax.Array | None,
    *,
    segments: Sequence[tuple[int, int]],
) -> jax.Array:
    """Sets a fraction `rate` of the sequences to 0 and scales the others by 1 / (1 - rate).

    Args:
      x: [B, T, D]; each of the B rows may contain several sequences.
      rate: Probability that a sequence is dropped.
      key: Random key; None returns `x` unchanged.
      segments: Pairs (number of sequences, length of each) that partition the T tokens, in order.
    """
    if key is None:
        return x
    counts, lengths = zip(*segments, strict=True)
    keep = jax.random.bernoulli(key, 1 - rate, (len(x), sum(counts)))
    parts = jnp.split(keep, np.cumsum(counts)[:-1], axis=1)
    repeated = [jnp.repeat(part, n, axis=1) for part, n in zip(parts, lengths, strict=True)]
    keep = jnp.concatenate(repeated, axis=1)[..., None]  # [B, T, 1]
    return jnp.where(keep, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))
