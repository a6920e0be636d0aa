"""Embeddings of earlier batches that are part of the train state: memory banks and queues.

They are plain arrays in `extra`: saved with every checkpoint, global under a mesh, and sharded by
path rules such as `('extra/banks/.*/rows', ('data', None))`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.losses.similarity import normalize, products


class Memory(nnx.Variable):
    """A state array that is not trained."""


class Bank(nnx.Module):
    """A memory bank: recent embeddings, and nearest neighbor search among them.

    The bank starts with random unit vectors. Batches overwrite it in turn. The batch that reaches
    the end fills it, its remaining embeddings are discarded, and the next batch starts at the
    beginning.

    Args:
      size: Number of embeddings.
      features: Width of an embedding.
      size_key: Config key that sets the size, for error messages.
      rngs: Random number generators for the initial vectors.

    Source: Dwibedi et al. 2021, arXiv 2104.14548 (NNCLR), as implemented in lightly.
    """

    def __init__(self, *, size: int, features: int, size_key: str = "size", rngs: nnx.Rngs):
        self._size_key = size_key
        if size < 1:
            raise UserError(f"{size_key} must be at least 1; got {size}.")
        initial = jax.random.normal(rngs.params(), (size, features))
        self.rows = Memory(normalize(initial))
        self.next = Memory(jnp.int32(0))

    def nearest(self, queries: jax.Array) -> jax.Array:
        """Returns, for each query [B, D], the embedding with the highest cosine similarity, [B, D].

        No gradient flows through the result.
        """
        stored = self.rows[...]
        cosines = products(normalize(jax.lax.stop_gradient(queries)), normalize(stored))
        return stored[jnp.argmax(cosines, axis=1)]

    def add(self, embeddings: jax.Array, mask: jax.Array | None = None) -> None:
        """Stores a batch of embeddings.

        Args:
          embeddings: [B, D].
          mask: [B], 1 for the embeddings to store. None stores all.

        Raises:
          UserError: The batch is larger than the bank.
        """
        size, batch = len(self.rows[...]), len(embeddings)
        if batch > size:
            raise UserError(
                f"A batch of {batch} examples does not fit in a memory bank of {size}. Set "
                f"{self._size_key} to at least {batch}, or reduce config.batch_size."
            )
        valid = jnp.ones(batch, jnp.int32) if mask is None else (mask > 0).astype(jnp.int32)
        start = self.next[...]
        index = jnp.where(valid > 0, start + jnp.cumsum(valid) - 1, size)
        embeddings = jax.lax.stop_gradient(embeddings).astype(jnp.float32)
        self.rows[...] = self.rows[...].at[index].set(embeddings, mode="drop")
        end = start + valid.sum()
        self.next[...] = jnp.where(end >= size, 0, end)


class Queues(nnx.Module):
    """First-in first-out queues with the most recent embeddings of several views.

    Args:
      views: Number of queues.
      size: Number of embeddings per queue.
      features: Width of an embedding.
      start: Number of initial calls of `push` that store nothing.
      size_key: Config key that sets the size, for error messages.

    Source: Caron et al. 2020, arXiv 2006.09882 (SwAV).
    """

    def __init__(self, *, views: int, size: int, features: int, start: int, size_key: str = "size"):
        self.start = start
        self._size_key = size_key
        self.rows = Memory(jnp.zeros((views, size, features), jnp.float32))
        self.calls = Memory(jnp.int32(0))

    def full(self) -> jax.Array:
        """Returns bool [views]: whether the queue has been filled completely."""
        return jnp.any(self.rows[...][:, -1] != 0, axis=-1)

    def push(self, embeddings: jax.Array, mask: jax.Array | None = None) -> None:
        """Adds a batch to the front of the queues and discards the oldest embeddings.

        Args:
          embeddings: [views, B, D].
          mask: [B], 1 for the embeddings to store. None stores all.

        Raises:
          UserError: The batch is larger than the queues.
        """
        size, batch = self.rows[...].shape[1], embeddings.shape[1]
        if batch > size:
            raise UserError(
                f"A batch of {batch} examples does not fit in a queue of {size}. Set "
                f"{self._size_key} to at least {batch}, or reduce config.batch_size."
            )
        embeddings = jax.lax.stop_gradient(embeddings).astype(jnp.float32)
        pushed = jnp.concatenate([embeddings, self.rows[...]], axis=1)
        if mask is not None:  # a stable sort moves invalid embeddings to the end
            kept = jnp.concatenate([mask > 0, jnp.ones(size, bool)])
            pushed = pushed[:, jnp.argsort(~kept, stable=True)]
        pushed = pushed[:, :size]
        started = self.calls[...] >= self.start
        self.rows[...] = jnp.where(started, pushed, self.rows[...])
        self.calls[...] = self.calls[...] + 1
