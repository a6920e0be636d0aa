"""Initial values that several towers start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

glorot_uniform = nnx.initializers.glorot_uniform()


def token_init(width: int) -> Callable[..., jax.Array]:
    """Initializer of a learned token [width]: a truncated normal with a true std of width^-1/2."""
    cut_at_two_sigma = 0.87962566103423978  # std of a unit normal cut at ±2
    return nnx.initializers.truncated_normal(width**-0.5 / cut_at_two_sigma)


def fan_in_uniform(fan_in: int) -> Callable[..., jax.Array]:
    """Initializer uniform in ±fan_in^-1/2, torch's default of dense layers and convolutions."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init
