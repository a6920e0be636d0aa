"""Parameter initializers that several towers use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

glorot_uniform = nnx.initializers.glorot_uniform()


def token_init(width: int) -> Callable[..., jax.Array]:
    """Returns the initializer of a learned token [width]: truncated normal, std width^-1/2."""
    truncated_std = 0.87962566103423978  # of a unit normal truncated at ±2
    return nnx.initializers.truncated_normal(width**-0.5 / truncated_std)


def fan_in_uniform(fan_in: int) -> Callable[..., jax.Array]:
    """Returns an initializer uniform in ±fan_in^-1/2, PyTorch's default for dense layers."""

    def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init
