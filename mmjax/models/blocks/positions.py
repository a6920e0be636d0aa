"""Learned positions on one or more axes, their resampling to other lengths, and DropToken.

Source: VATT (Akbari et al. 2021), sections 3.1–3.2, and its published code.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.interpolate import CubicSpline

from mmjax.errors import UserError


@functools.lru_cache(maxsize=64)
def spline_matrix(size: int, length: int) -> np.ndarray:
    """The matrix [length, size] (float64) that resamples a table of positions.

    Row k of a table of K rows is a knot at k/K, row q of the result is the value at q/Q of the
    natural cubic spline through the knots, continued by its tangent behind the last one. VATT's
    published code states the same curve as a polyharmonic spline, which float32 cannot solve for
    more than some 50 rows; here the tridiagonal system is solved in float64, and 1200 rows are no
    trouble.
    """
    if size < 1 or length < 1:
        raise UserError(f"Positions cannot be resampled from {size} to {length} rows.")
    if size == 1:
        return np.ones((length, 1))
    last = size - 1.0
    at = np.arange(length) * (size / length)  # in units of knots
    spline = CubicSpline(np.arange(size), np.eye(size), bc_type="natural")
    matrix = spline(np.minimum(at, last))
    matrix += np.maximum(at - last, 0)[:, None] * spline(last, 1)
    matrix.flags.writeable = False  # shared by all callers
    return matrix


def resize_table(table: np.ndarray, length: int) -> np.ndarray:
    """A table of positions [K, D] resampled to [length, D], e.g. when a checkpoint is loaded."""
    table = np.asarray(table)
    if len(table) == length:
        return table
    return (spline_matrix(len(table), length) @ table.astype(np.float64)).astype(table.dtype)


class Positions(nnx.Module):
    """One learned table per axis; a token's embedding is the LayerNorm of the sum of its rows.

    Args:
      width: features of a token.
      axes: {name: number of rows}, outermost axis first; each becomes a parameter of that name.
      epsilon: of the norm.
      param_dtype: of the tables.
      swap_axes: lay two axes out as VATT's spectrogram transformer does, the second outermost
        although tokens are flattened first axis outermost. Only for weights trained that way.
      rngs: for initialization.
    """

    def __init__(
        self,
        *,
        width: int,
        axes: Mapping[str, int],
        epsilon: float,
        param_dtype: Any,
        swap_axes: bool = False,
        rngs: nnx.Rngs,
    ):
        self.axes = tuple(axes)
        self.swap_axes = swap_axes
        init = nnx.initializers.truncated_normal(width**-0.5)
        for name, size in axes.items():
            setattr(self, name, nnx.Param(init(rngs.params(), (size, width), param_dtype)))
        self.norm = nnx.LayerNorm(
            width, epsilon=epsilon, use_fast_variance=False, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, lengths: Sequence[int]) -> jax.Array:
        """Embeddings [prod(lengths), width] in float32, for tokens flattened in row-major order.

        An axis whose length differs from its table's is resampled by `spline_matrix`.
        """
        total = jnp.zeros(())
        for i, (name, length) in enumerate(zip(self.axes, lengths, strict=True)):
            table = getattr(self, name)[...].astype(jnp.float32)
            if len(table) != length:
                matrix = spline_matrix(len(table), length).astype(np.float32)
                table = jnp.matmul(matrix, table, precision="highest")
            shape = [1] * len(lengths)
            shape[i] = length
            total = total + table.reshape(*shape, -1)
        if self.swap_axes:
            total = total.swapaxes(0, 1)
        return self.norm(total.reshape(math.prod(lengths), -1))


def kept_tokens(num_tokens: int, keep: float) -> int:
    """How many tokens DropToken keeps: int(keep · num_tokens), at least one.

    VATT's published code counts from the size of its position tables whatever the input, and stops
    on inputs with fewer tokens than that; for inputs of the size it was configured for both are
    equal.
    """
    return max(1, int(keep * num_tokens))


def drop_tokens(
    key: jax.Array, num_tokens: int, keep: float, *, batch: int | None = None
) -> jax.Array:
    """Indices of the tokens to keep, in random order.

    Args:
      key: randomness.
      num_tokens: to choose from.
      keep: fraction to keep.
      batch: draw for each of so many examples; None draws once for all, as VATT does.

    Returns:
      int32 [kept] or [batch, kept].
    """
    kept = kept_tokens(num_tokens, keep)
    if batch is None:
        return jax.random.permutation(key, num_tokens)[:kept]
    keys = jax.random.split(key, batch)
    return jax.vmap(lambda k: jax.random.permutation(k, num_tokens)[:kept])(keys)
