"""Linear classifiers, and the matrix products that fit them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 512  # examples per block in `transposed_product`


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear classifier.

    Attributes:
      kernel: float32 [D, C].
      bias: float32 [C].
    """

    kernel: np.ndarray
    bias: np.ndarray

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Returns logits [..., C] of features [..., D]."""
        return np.asarray(x, np.float32) @ self.kernel + self.bias


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a @ b without rounding the factors to TF32 or bfloat16, as accelerators do."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def transposed_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns xᵀ y, [D, C], for x [N, D] and y [N, C].

    On CPUs this product is slow, because its inner dimension is by far the longest. In blocks with
    the narrow matrix first it takes 40 % of the time.
    """
    size = len(x)
    if jax.default_backend() != "cpu" or size <= _BLOCK:
        return matmul(x.T, y)

    def add(block, total):
        first = jnp.minimum(block * _BLOCK, size - _BLOCK)  # the last block overlaps the previous
        new = first + jnp.arange(_BLOCK) >= block * _BLOCK
        part = jax.lax.dynamic_slice_in_dim(y, first, _BLOCK)
        part = jnp.where(new[:, None], part, 0.0)
        return total + matmul(part.T, jax.lax.dynamic_slice_in_dim(x, first, _BLOCK))

    zeros = jnp.zeros((y.shape[1], x.shape[1]), x.dtype)
    return jax.lax.fori_loop(0, -(-size // _BLOCK), add, zeros).T
