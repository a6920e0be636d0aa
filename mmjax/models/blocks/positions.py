"""Learned positions on one or more axes, their resampling to other lengths, and DropToken.

Source: VATT (Akbari et al. 2021), sections 3.1 and 3.2, and its published code.
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
from mmjax.lookups import axis_rows, is_probed


@functools.lru_cache(maxsize=64)
def spline_matrix(size: int, length: int) -> np.ndarray:
    """Returns the matrix [length, size] (float64) that resamples a position table.

    Entry k of a table of K positions is a knot at k/K. Position q of Q in the result is the value
    at q/Q of the natural cubic spline through the knots, extrapolated linearly after the last knot.
    VATT's published code computes the same curve as a polyharmonic spline. Its linear system cannot
    be solved in float32 for more than about 50 positions. Here the equivalent tridiagonal system is
    solved in float64, which is accurate for tables of any size.

    Raises:
      UserError: A size less than 1.
    """
    if size < 1 or length < 1:
        raise UserError(
            f"A position table of size {size} cannot be resampled to {length} positions; both must "
            "be at least 1. Check the tower's option `buckets` and the size of its input."
        )
    if size == 1:
        return np.ones((length, 1))
    last = size - 1.0
    query = np.arange(length) * (size / length)  # in units of knots
    spline = CubicSpline(np.arange(size), np.eye(size), bc_type="natural")
    matrix = spline(np.minimum(query, last))
    matrix += np.maximum(query - last, 0)[:, None] * spline(last, 1)
    matrix.flags.writeable = False  # shared by all callers
    return matrix


def resize_table(table: np.ndarray, length: int) -> np.ndarray:
    """Returns a position table [K, D] resampled to [length, D], for loading a checkpoint."""
    table = np.asarray(table)
    if len(table) == length:
        return table
    return (spline_matrix(len(table), length) @ table.astype(np.float64)).astype(table.dtype)


def resize_grid(table: jax.Array | np.ndarray, sizes: tuple[int, int]) -> jax.Array:
    """Returns position embeddings of a class token and a square grid, resized to another grid.

    The grid is resized as in timm and OpenCLIP: bicubic with antialiasing.

    Args:
      table: [1 + n², D].
      sizes: Height and width of the new grid.

    Returns:
      [1 + height · width, D].
    """
    side, width = math.isqrt(len(table) - 1), table.shape[1]
    if (side, side) == tuple(sizes):
        return jnp.asarray(table)
    grid = jnp.reshape(table[1:], (side, side, width))
    grid = jax.image.resize(grid, (*sizes, width), "cubic", antialias=True)
    return jnp.concatenate([table[:1], grid.reshape(-1, width)])


class Positions(nnx.Module):
    """Position embeddings with one learned table per axis.

    The embedding of a token is the LayerNorm of the sum of its entries in all tables.

    Args:
      width: Features of a token.
      axes: {name: number of positions}, outermost axis first. Each table is a parameter of that
        name.
      epsilon: Epsilon of the LayerNorm.
      param_dtype: Dtype of the tables.
      swap_axes: Whether to flatten positions with the second axis outermost, although tokens are
        flattened with the first axis outermost, as VATT's spectrogram transformer does. Use it only
        for weights trained that way.
      rngs: Random number generators for initialization.
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
        """Returns embeddings [prod(lengths), width] in float32, for tokens in row-major order.

        An axis whose length differs from its table is resampled with `spline_matrix`.
        """
        total = jnp.zeros(())
        for i, (name, length) in enumerate(zip(self.axes, lengths, strict=True)):
            variable = getattr(self, name)
            if len(variable[...]) == length and is_probed(variable):
                total = total + axis_rows(variable, i, lengths, dtype=jnp.float32)
                continue
            table = variable[...].astype(jnp.float32)
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
    """Returns the number of tokens that DropToken keeps: int(keep · num_tokens), at least one.

    VATT's published code computes it from the size of its position tables instead of the input and
    fails on inputs with fewer tokens. Both are equal for inputs of the configured size.
    """
    return max(1, int(keep * num_tokens))


def drop_tokens(
    key: jax.Array, num_tokens: int, keep: float, *, batch: int | None = None
) -> jax.Array:
    """Returns the indices of the tokens to keep, in random order.

    Args:
      key: Random key.
      num_tokens: Number of tokens to choose from.
      keep: Fraction of the tokens to keep.
      batch: Number of examples that each get their own choice. None makes one choice for the
        complete batch, as VATT does.

    Returns:
      int32 [kept], or [batch, kept] if `batch` is not None.
    """
    kept = kept_tokens(num_tokens, keep)
    if batch is None:
        return jax.random.permutation(key, num_tokens)[:kept]
    keys = jax.random.split(key, batch)
    return jax.vmap(lambda k: jax.random.permutation(k, num_tokens)[:kept])(keys)
