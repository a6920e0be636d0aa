"""The order of the data: which example is at which position.

Position i is example i % batch_size of step i // batch_size. The example at a position is a
function of (seed, position), so training can start at any step, on any number of hosts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from mmjax.data.pairs.positives import Positives
from mmjax.data.pipeline.phases import Features
from mmjax.errors import UserError

_BLOCK = 10_000  # positions over which the weights of a mixture hold exactly
# Range of the random number that selects one of a few neighbors. It is large enough that the
# remainder of a division by their count is practically uniform.
_RANDOM_RANGE = 2**31 - 1


class Order(Protocol):
    """Which examples are read, in which order.

    The ids of examples are a dict of int64 tensors of one shape: `position`, `source` (index of
    the source), `record` (index of the record in it) and, with `data.pairs`, `positive` (index of
    the paired record in the same source).

    Attributes:
      id_names: Names of the ids.
      num_examples: Number of different examples.
      length: Number of positions; None for an endless order.
      max_attempts: Number of examples tried at one position when records are corrupt.
    """

    id_names: tuple[str, ...]
    num_examples: int
    length: int | None
    max_attempts: int

    def ids(self, positions: tf.Tensor) -> Features:
        """Returns the ids of the examples at some positions, int64 [n]."""
        ...

    def replacement(self, ids: Features, attempt: tf.Tensor) -> Features:
        """Returns the ids of the example to try next instead of a corrupt one.

        Args:
          ids: Ids of the example at a position, int64 [] each.
          attempt: Number of examples that have failed at this position, int64 []; 0 returns `ids`.
        """
        ...


_IDS = ("position", "source", "record")


class TrainOrder:
    """The endless, shuffled order of training examples; implements `Order`.

    Args:
      sizes: Number of records of each source.
      weights: Share of each source; () for equal shares.
      limit: If positive, at most this many records per source, evenly spaced.
      seed: Seed of the shuffling.
      positives: Pairs of records; None without `data.pairs`.

    Raises:
      UserError: The weights do not match the sources.
    """

    length = None
    max_attempts = 16

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        weights: Sequence[float] = (),
        limit: int = 0,
        seed: int,
        positives: Positives | None = None,
    ):
        self.id_names = (*_IDS, "positive") if positives else _IDS
        self._positives, self._seed, self._num_records = positives, seed, list(sizes)
        # With pairs, an index counts only the records that have a positive.
        self._sizes = list(positives.sizes if positives else sizes)
        self._used = [min(size, limit or size) for size in self._sizes]
        self.num_examples = sum(self._used)
        self._shuffle = Shuffle(self._used, weights=weights or None, seed=seed)

    def ids(self, positions: tf.Tensor) -> Features:
        source, index = self._shuffle(positions)
        if self._used != self._sizes:
            size, used = tf.constant(self._sizes, tf.int64), tf.constant(self._used, tf.int64)
            index = index * tf.gather(size, source) // tf.gather(used, source)
        ids = {"position": positions, "source": source, "record": index}
        if self._positives:
            ids |= self._pairs(self._positives.pair, positions, source, index)
        return ids

    def replacement(self, ids: Features, attempt: tf.Tensor) -> Features:
        if not self._positives:
            return _next_record(self._num_records, ids, attempt)
        arguments = [ids["position"], ids["source"], ids["record"], attempt]
        pairs = self._pairs(self._positives.following, *(value[None] for value in arguments))
        return ids | {name: value[0] for name, value in pairs.items()}

    def _pairs(
        self, function: Callable, positions: tf.Tensor, *arguments: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Calls a method of `Positives` with a random number for each position.

        Returns:
          `record` and `positive`, int64 [n] each.
        """
        random = permuted(
            tf.zeros_like(positions),
            tf.constant(_RANDOM_RANGE, tf.int64),
            self._seed,
            -2,
            positions,
        )
        types = [tf.int64, tf.int64]
        pair = tf.numpy_function(function, [*arguments, random], types, stateful=False)
        return {
            name: tf.ensure_shape(value, positions.shape)
            for name, value in zip(("record", "positive"), pair, strict=True)
        }


class EvalOrder:
    """Every record of one source once, in order; implements `Order`.

    Args:
      size: Number of records of the source.
      max_examples: If positive, only this many records, the first ones.
    """

    id_names = _IDS
    max_attempts = 1

    def __init__(self, size: int, *, max_examples: int = 0):
        self._size = size
        self.num_examples = self.length = min(size, max_examples or size)

    def ids(self, positions: tf.Tensor) -> Features:
        return {"position": positions, "source": tf.zeros_like(positions), "record": positions}

    def replacement(self, ids: Features, attempt: tf.Tensor) -> Features:
        return _next_record([self._size], ids, attempt)


def _next_record(sizes: Sequence[int], ids: Features, attempt: tf.Tensor) -> Features:
    """Returns the ids of the record `attempt` places further in the same source."""
    sizes = tf.constant(sizes, tf.int64)
    return ids | {"record": (ids["record"] + attempt) % sizes[ids["source"]]}


class Shuffle:
    """Source and record index at each position, as a function of (seed, position).

    Each source is read again and again, each time in a new order, every record once per pass.
    Sources of a mixture alternate at random, such that each has exactly its share of every 10 000
    positions.

    Args:
      sizes: Number of records of each source.
      weights: Share of each source, in any unit; None for equal shares.
      seed: Seed of the shuffling.
      shuffle: Whether to shuffle the records of a source.

    Raises:
      UserError: The weights do not match the sources.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ):
        weights = np.ones(len(sizes)) if weights is None else np.asarray(weights, np.float64)
        if len(weights) != len(sizes) or not (np.isfinite(weights).all() and (weights > 0).all()):
            raise UserError(
                f"data.weights={tuple(weights.tolist())} must be {len(sizes)} positive numbers, "
                "one for each source of data.train. To exclude a source, remove it from "
                "data.train."
            )
        shares = weights / weights.sum() * _BLOCK
        counts = np.maximum(np.floor(shares), 1).astype(np.int64)
        for source in np.argsort(counts - shares)[: max(0, _BLOCK - counts.sum())]:
            counts[source] += 1
        # Not 0 only if many shares below 1 were raised to 1.
        counts[np.argmax(counts)] += _BLOCK - counts.sum()
        self._sizes = tf.constant(sizes, tf.int64)
        self._counts = tf.constant(counts)
        self._ends = tf.constant(np.cumsum(counts))
        self._seed, self._shuffle, self._single = seed, shuffle, len(sizes) == 1

    def __call__(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `(source, record)`, int64 [n] each, at positions int64 [n]."""
        if self._single:
            source, index = tf.zeros_like(positions), positions
        else:
            block, slot = positions // _BLOCK, positions % _BLOCK
            slot = permuted(slot, tf.constant(_BLOCK, tf.int64), self._seed, -1, block)
            source = tf.searchsorted(self._ends, slot, side="right", out_type=tf.int64)
            count = tf.gather(self._counts, source)
            index = block * count + slot - (tf.gather(self._ends, source) - count)
        size = tf.gather(self._sizes, source)
        record = index % size
        if self._shuffle:
            record = permuted(record, size, self._seed, source, index // size)
        return source, record


def permuted(index: tf.Tensor, size: tf.Tensor, *key: tf.Tensor | int) -> tf.Tensor:
    """Returns the image of each index under a pseudorandom permutation of range(size).

    Args:
      index: int64 [n].
      size: Number of permuted integers, int64 [] or [n].
      *key: Three integers that select the permutation, each an int or int64 [n].
    """
    columns = [
        tf.broadcast_to(tf.constant(k, tf.int64) if isinstance(k, int) else k, tf.shape(index))
        for k in key
    ]
    # The op behind tf.random.experimental.index_shuffle, whose vector form is broken (TF 2.21).
    return tf.raw_ops.RandomIndexShuffle(
        index=index,
        seed=tf.stack(columns, 1),
        max_index=tf.broadcast_to(size - 1, tf.shape(index)),
        rounds=4,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostBatch:
    """The part of each global batch that one host reads.

    Attributes:
      batch_size: Number of examples of the global batch.
      process_index: Index of this host.
      process_count: Number of hosts.

    Raises:
      UserError: The batch size is not a positive multiple of the number of hosts.
    """

    batch_size: int
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.process_count:
            raise UserError(
                f"batch_size={self.batch_size} must be a positive multiple of the number of hosts "
                f"({self.process_count})."
            )

    @property
    def size(self) -> int:
        """Number of examples of this host in each batch."""
        return self.batch_size // self.process_count

    @property
    def slice(self) -> slice:
        """The examples of this host in the global batch."""
        start = self.process_index * self.size
        return slice(start, start + self.size)

    def positions(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the positions of this host's examples at a step, int64 [size]."""
        start = step * self.batch_size + self.slice.start
        return start + tf.range(self.size, dtype=tf.int64)


def as_numpy(ids: Features) -> dict[str, np.ndarray]:
    """Returns ids as NumPy arrays."""
    return {name: value.numpy() for name, value in ids.items()}


def as_tensors(ids: Mapping[str, int]) -> Features:
    """Returns the ids of one example as int64 scalars."""
    return {name: tf.constant(value, tf.int64) for name, value in ids.items()}
