"""The way of an example through tf.data: five phases of named functions, and which example comes at
which position.

parse → sample → decode → preprocess work on one example, postprocess on a batch. Every function
takes a dict of tensors and returns one; each has a name by which a user can replace or remove it.
Keys that begin with '_' are private to the pipeline and do not reach the batch.

Nothing here has state. What comes at position i is a function of (seed, i), and so is every random
choice, made by `tf.random.stateless_*` with `seed_of`. So any step can be started at directly, on
any number of hosts.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from mmjax.errors import UserError, choose, unknown

Features = dict[str, tf.Tensor]
Function = Callable[[Features], Features]

PHASES = ("parse", "sample", "decode", "preprocess", "postprocess")
_BLOCK = 10_000  # positions over which the weights of a mixture hold exactly


def hide_accelerators() -> None:
    """Keeps TensorFlow away from GPUs and TPUs: it would take their memory from JAX."""
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError:  # TensorFlow was already used in this process: then it has what it has
            pass


hide_accelerators()


def seed_of(features: Features, name: str) -> tf.Tensor:
    """int64 [2]: the seed of the random choice `name` for this example."""
    return features["_seed"] + tf.constant([zlib.crc32(name.encode()), 0], tf.int64)


class Pipeline:
    """Five phases of named functions.

    The parse phase begins with the function 'record', which reads everything asked for with
    `context` and `sequence` from the serialized record `_serialized` into `_context/KEY` and
    `_sequence/KEY`.

    Attributes:
      resolve: a function (source [], values [n]) → values [n], which 'video' of the sample phase
        calls with the images it has chosen: see `resolver`.
    """

    def __init__(self):
        self._phases: dict[str, dict[str, Function]] = {phase: {} for phase in PHASES}
        self._context: dict[str, tf.io.RaggedFeature] = {}
        self._sequence: dict[str, tf.io.RaggedFeature] = {}
        self.resolve: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = lambda source, values: values
        self.add("parse", "record", self._parse_record)

    def context(self, key: str, dtype: tf.DType) -> None:
        """Asks for a feature of the record's context: 1-D, empty where it is absent."""
        self._context[key] = tf.io.RaggedFeature(dtype)

    def sequence(self, key: str, dtype: tf.DType) -> None:
        """Asks for a feature list: ragged, [features, values], empty where it is absent."""
        self._sequence[key] = tf.io.RaggedFeature(dtype)

    def add(self, phase: str, name: str, function: Function, *, before: str | None = None) -> None:
        """Adds a function at the end of a phase, or before another one.

        Raises:
          UserError: an unknown phase or `before`, or a name the phase already has.
        """
        functions = choose("phase", phase, self._phases)
        if name in functions:
            raise UserError(f"The phase {phase!r} already has {name!r}; use replace().")
        if before is not None and before not in functions:
            raise unknown(f"function of the phase {phase!r}", before, functions)
        items = list(functions.items())
        at = list(functions).index(before) if before is not None else len(items)
        self._phases[phase] = dict(items[:at] + [(name, function)] + items[at:])

    def replace(self, phase: str, name: str, function: Function) -> None:
        """Puts another function in the place of the one called `name`."""
        choose(f"function of the phase {phase!r}", name, choose("phase", phase, self._phases))
        self._phases[phase][name] = function

    def remove(self, phase: str, name: str) -> None:
        """Removes the function called `name`."""
        choose(f"function of the phase {phase!r}", name, choose("phase", phase, self._phases))
        del self._phases[phase][name]

    def names(self) -> dict[str, tuple[str, ...]]:
        """The names of the functions of each phase, in order."""
        return {phase: tuple(functions) for phase, functions in self._phases.items()}

    def functions(self, *phases: str) -> list[Function]:
        """The functions of some phases, in order."""
        return [function for phase in phases for function in self._phases[phase].values()]

    def example(self, features: Features) -> Features:
        """The first four phases: `_serialized`, `_seed` and what the caller adds → one example."""
        for phase in PHASES[:-1]:
            for function in self._phases[phase].values():
                features = function(features)
        return {key: value for key, value in features.items() if not key.startswith("_")}

    def batch(self, features: Features) -> Features:
        """The last phase, on a batch of examples."""
        for function in self._phases["postprocess"].values():
            features = function(features)
        return {key: value for key, value in features.items() if not key.startswith("_")}

    def _parse_record(self, features: Features) -> Features:
        # Ragged features copy values as they are; sparse ones would add an index per audio sample.
        context, sequence = tf.io.parse_single_sequence_example(
            features["_serialized"], self._context or None, self._sequence or None
        )
        return (
            features
            | {f"_context/{key}": value for key, value in context.items()}
            | {f"_sequence/{key}": value for key, value in sequence.items()}
        )


class Order:
    """Which record of which source comes at a position: a function of (seed, position).

    Each source is gone through again and again, each time in a new order, every record once.
    Sources of a mixture take turns at random such that of every 10 000 positions each has exactly
    its share.

    Args:
      sizes: number of records of each source.
      weights: share of each source, in any unit; None is equal shares.
      seed: of the shuffling.
      shuffle: False goes through the records in order.

    Raises:
      UserError: weights that do not fit the sources.
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
                "one for each source "
                "of data.train. To leave a source out, remove it."
            )
        shares = weights / weights.sum() * _BLOCK
        counts = np.maximum(np.floor(shares), 1).astype(np.int64)
        for source in np.argsort(counts - shares)[: max(0, _BLOCK - counts.sum())]:
            counts[source] += 1
        counts[np.argmax(counts)] += (
            _BLOCK - counts.sum()
        )  # only if many shares below 1 were raised to 1
        self._sizes = tf.constant(sizes, tf.int64)
        self._counts = tf.constant(counts)
        self._ends = tf.constant(np.cumsum(counts))
        self._seed, self._shuffle, self._single = seed, shuffle, len(sizes) == 1

    def __call__(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """int64 [n] positions → int64 [n] source numbers, int64 [n] record numbers in them."""
        if self._single:
            source, number = tf.zeros_like(positions), positions
        else:
            block, slot = positions // _BLOCK, positions % _BLOCK
            slot = permuted(slot, tf.constant(_BLOCK, tf.int64), self._seed, -1, block)
            source = tf.searchsorted(self._ends, slot, side="right", out_type=tf.int64)
            count = tf.gather(self._counts, source)
            number = block * count + slot - (tf.gather(self._ends, source) - count)
        size = tf.gather(self._sizes, source)
        record = number % size
        if self._shuffle:
            record = permuted(record, size, self._seed, source, number // size)
        return source, record


def permuted(index: tf.Tensor, size: tf.Tensor, *key: tf.Tensor | int) -> tf.Tensor:
    """`index` [n] in a pseudorandom permutation of `size` numbers; another for each `key`."""
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


def examples_per_host(batch_size: int, process_count: int) -> int:
    """Rows of a global batch that each host makes.

    Raises:
      UserError: the batch does not split evenly over the hosts.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} must be a positive multiple of the number of hosts "
            f"({process_count})."
        )
    return batch_size // process_count


def host_positions(step: tf.Tensor, *, batch_size: int, process_index: int, process_count: int):
    """int64 [batch_size / process_count]: positions of a host's rows of the batch of `step`."""
    rows = batch_size // process_count
    return step * batch_size + process_index * rows + tf.range(rows, dtype=tf.int64)


def reader(
    sources: Sequence, *, without: str | None = None
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A function (source [n], record [n]) → serialized records, string [n].

    It makes one call into Python, which reads with `os.preadv` and checks CRCs: the fastest way
    where files are local. The call itself costs as much as reading a small record, hence the
    vectors. The values of the feature list `without` become references, for `resolver`.
    """

    def fetch(numbers, records):
        found = [
            sources[number].fetch_without(without, record)
            if without
            else sources[number].fetch(record)
            for number, record in zip(numbers.tolist(), records.tolist(), strict=True)
        ]
        return np.array(found, object)

    def fetched(number, record):
        serialized = tf.numpy_function(fetch, [number, record], tf.string, stateful=False)
        return tf.ensure_shape(serialized, number.shape)

    return fetched


def resolver(sources: Sequence) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A function (source [], values [n]) → what references refer to; string [n]."""

    def resolve(number, values):
        return np.array(sources[int(number)].resolve(values.tolist()), object)

    def resolved(number, values):
        found = tf.numpy_function(resolve, [number, values], tf.string, stateful=False)
        return tf.ensure_shape(found, values.shape)

    return resolved


def pure_reader(sources: Sequence) -> Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]:
    """A function (source [], record []) → Dataset of one serialized record, in TensorFlow alone.

    For TensorFlow's remote file systems (gs://, s3://). CRCs are not checked.

    Raises:
      UserError: a source that is not made of shards.
    """
    for source in sources:
        if source.index is None:
            raise UserError(
                f"data.read='tf' needs shards, which {source.name} does not have; use 'pread'."
            )
    files = [file for source in sources for file in source.files]
    first_file = np.cumsum([0] + [len(source.files) for source in sources])
    index = np.concatenate(
        [source.index + [[first, 0, 0]] for source, first in zip(sources, first_file, strict=False)]
    )
    first_record = tf.constant(np.cumsum([0] + [s.num_examples for s in sources])[:-1], tf.int64)
    sizes = tf.constant([tf.io.gfile.stat(file).length for file in files], tf.int64)
    files, index = tf.constant(files), tf.constant(index)

    def opened(number, record):
        file, offset, length = tf.unstack(index[first_record[number] + record])
        return tf.data.FixedLengthRecordDataset(
            files[file][None],
            record_bytes=length,
            header_bytes=offset,
            footer_bytes=sizes[file] - offset - length,
            buffer_size=length,
        )

    return opened
