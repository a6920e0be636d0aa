"""Embedding lookups, and the gradient norms of single looked-up rows.

TensorFlow represents the gradient of an embedding as one row per looked-up id. Its global norm
counts these rows before rows of the same id are added. JAX adds them in the backward pass, so
`rows` measures them there: within `probing`, the derivative with respect to the probe of a table
is the sum of squares of the gradients of its looked-up rows.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

_PATH = "lookup_path"  # metadata of a parameter: its path in the model

# {path of a table: its probe} and the paths that were looked up, while a loss is traced
_active: contextvars.ContextVar[tuple[Mapping[str, jax.Array], set[str]] | None] = (
    contextvars.ContextVar("probes", default=None)
)


@contextlib.contextmanager
def probing(probes: Mapping[str, jax.Array]) -> Iterator[set[str]]:
    """Lets `rows` measure gradients of looked-up rows.

    Args:
      probes: {path of a parameter: float32 [], any value}. Differentiate with respect to them.

    Yields:
      The paths that were looked up; complete when the context ends.
    """
    used: set[str] = set()
    token = _active.set((probes, used))
    try:
        yield used
    finally:
        _active.reset(token)


def name_parameters(module: nnx.Module) -> None:
    """Tells the parameters of a module their paths, if probes are active."""
    if _active.get() is not None:
        for path, variable in nnx.iter_graph(module):
            if isinstance(variable, nnx.Param):
                variable.set_metadata(**{_PATH: "/".join(map(str, path))})


def is_probed(table: nnx.Param) -> bool:
    """Returns whether the gradients of looked-up rows of a table are measured."""
    active = _active.get()
    return active is not None and table.get_metadata(_PATH, None) in active[0]


def rows(table: nnx.Param, ids: jax.Array | np.ndarray, *, dtype: Any = None) -> jax.Array:
    """Returns the rows of a table [N, D] with these ids, [..., D].

    Args:
      table: An embedding.
      ids: int [...].
      dtype: Dtype to which the table is converted before; None for its own.
    """
    values = table[...] if dtype is None else table[...].astype(dtype)
    if not is_probed(table):
        return jnp.take(values, ids, axis=0)
    probes, used = _active.get()  # type: ignore[misc]
    path = table.get_metadata(_PATH)
    used.add(path)
    return _take(values, ids, probes[path])


def axis_rows(
    table: nnx.Param, axis: int, lengths: Sequence[int], *, dtype: Any = None
) -> jax.Array:
    """Returns the rows of a table of positions on one axis for all tokens, [*lengths, D]."""
    shape = [1] * len(lengths)
    shape[axis] = lengths[axis]
    ids = np.arange(lengths[axis]).reshape(shape)
    return rows(table, np.broadcast_to(ids, lengths), dtype=dtype)


@jax.custom_vjp
def _take(table: jax.Array, ids: jax.Array, probe: jax.Array) -> jax.Array:
    del probe
    return jnp.take(table, ids, axis=0)


def _forward(table: jax.Array, ids: jax.Array, probe: jax.Array) -> tuple[jax.Array, Any]:
    return _take(table, ids, probe), (table, ids)


def _backward(residual: Any, gradient: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    table, ids = residual
    _, transpose = jax.vjp(lambda t: jnp.take(t, ids, axis=0), table)
    return *transpose(gradient), None, jnp.sum(jnp.square(gradient.astype(jnp.float32)))


_take.defvjp(_forward, _backward)
