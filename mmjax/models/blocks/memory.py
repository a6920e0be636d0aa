"""Embeddings of earlier batches, kept in the train state: memory banks and queues.

They are plain arrays of `extra`: saved with every checkpoint, global under a mesh, and split over
it by a path rule such as `('extra/banks/.*/rows', ('data', None))`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.losses.similarity import normalize, products


class Memory(nnx.Variable):
    """An array that is kept and not learned."""


class Bank(nnx.Module):
    """The last embeddings that were added, and which of them is nearest to another.

    Filled in turn: a batch that would reach the end fills it, what is beyond is dropped, and the
    next one starts again at the beginning (NNCLR's bank as in lightly, Dwibedi et al. 2021, arXiv
    2104.14548). It begins with random unit vectors.

    Args:
      size: embeddings.
      features: of each.
      rngs: for the first vectors.
    """

    def __init__(self, *, size: int, features: int, rngs: nnx.Rngs):
        if size < 1:
            raise UserError(f"A memory bank has at least one row, not {size}.")
        rows = jax.random.normal(rngs.params(), (size, features))
        self.rows = Memory(normalize(rows))
        self.next = Memory(jnp.int32(0))

    def nearest(self, queries: jax.Array) -> jax.Array:
        """The row of the highest cosine with each query, [B, D] → [B, D], without gradient."""
        rows = self.rows[...]
        cosines = products(normalize(jax.lax.stop_gradient(queries)), normalize(rows))
        return rows[jnp.argmax(cosines, axis=1)]

    def add(self, rows: jax.Array, mask: jax.Array | None = None) -> None:
        """Keeps [B, D] rows, of which `mask` [B] says which exist.

        Raises:
          UserError: there are more of them than the bank has rows.
        """
        size, batch = len(self.rows[...]), len(rows)
        if batch > size:
            raise UserError(
                f"A batch of {batch} examples does not fit a memory bank of {size}: raise its size."
            )
        valid = jnp.ones(batch, jnp.int32) if mask is None else (mask > 0).astype(jnp.int32)
        start = self.next[...]
        at = jnp.where(valid > 0, start + jnp.cumsum(valid) - 1, size)
        rows = jax.lax.stop_gradient(rows).astype(jnp.float32)
        self.rows[...] = self.rows[...].at[at].set(rows, mode="drop")
        end = start + valid.sum()
        self.next[...] = jnp.where(end >= size, 0, end)


class Queues(nnx.Module):
    """The newest embeddings of several views, the newest batch first (SwAV, Caron et al. 2020).

    Args:
      views: how many queues.
      size: embeddings in each.
      features: of each embedding.
      start: pushes before the first so many do nothing.
    """

    def __init__(self, *, views: int, size: int, features: int, start: int):
        self.start = start
        self.rows = Memory(jnp.zeros((views, size, features), jnp.float32))
        self.calls = Memory(jnp.int32(0))

    def full(self) -> jax.Array:
        """bool [views]: the queue has been filled to its end."""
        return jnp.any(self.rows[...][:, -1] != 0, axis=-1)

    def push(self, rows: jax.Array, mask: jax.Array | None = None) -> None:
        """Puts [views, B, D] in front, of which `mask` [B] says which exist, unless it is too
        early; what falls off the end is gone.

        Raises:
          UserError: there are more rows than a queue has.
        """
        size, batch = self.rows[...].shape[1], rows.shape[1]
        if batch > size:
            raise UserError(
                f"A batch of {batch} examples does not fit a queue of {size}: raise queue_length."
            )
        rows = jax.lax.stop_gradient(rows).astype(jnp.float32)
        pushed = jnp.concatenate([rows, self.rows[...]], axis=1)
        if mask is not None:  # those that exist move up, in their order
            kept = jnp.concatenate([mask > 0, jnp.ones(size, bool)])
            pushed = pushed[:, jnp.argsort(~kept, stable=True)]
        pushed = pushed[:, :size]
        started = self.calls[...] >= self.start
        self.rows[...] = jnp.where(started, pushed, self.rows[...])
        self.calls[...] = self.calls[...] + 1
