"""Training and evaluation batches from features on disk: the specification `features:DIRECTORY`.

    DIRECTORY/features.json         the dataset, its number of classes, and how it was made
    DIRECTORY/train/embedding.npy   float16 [N, R, D]: R variants of the features of each example
    DIRECTORY/train/label.npy       int32 [N]

`mmjax.benchmark.encode` writes such directories. Their files are mapped into memory, so that memory
does not grow with the number of examples.
"""

from __future__ import annotations

import collections
import concurrent.futures
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from mmjax.data.pipeline import precomputed_features
from mmjax.data.pipeline.config import DataConfig
from mmjax.data.pipeline.order import HostBatch
from mmjax.data.pipeline.stream import Batch, padded
from mmjax.data.sources import split_slicing
from mmjax.data.sources.base import Source
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.errors import UserError
from mmjax.formats import npy

PREFIX = "features:"
FEATURES, LABEL = "embedding", "label"  # names of the arrays


def is_table(spec: str) -> bool:
    """Returns whether a specification of training data names features on disk."""
    return spec.startswith(PREFIX)


class TableSource(Source):
    """The features of one complete split.

    Attributes:
      features: float16 [N, R, D], mapped into memory.

    Raises:
      UserError: The directory has no such split, or its arrays do not fit together.
    """

    def __init__(self, directory: str, split: str):
        directory = os.path.expanduser(directory)
        content = precomputed_features.read_description(directory)
        if content is None:
            raise UserError(
                f"{PREFIX}{directory} is not a directory of features: it has no "
                f"{precomputed_features.FILE}."
            )
        counts: Mapping[str, int] = content["num_examples"]
        if split not in counts:
            raise UserError(
                f"{PREFIX}{directory} has no split {split!r}. Its splits: {', '.join(counts)}."
            )
        self.directory, self._split, self.num_examples = directory, split, counts[split]
        self.features = self._open(FEATURES, np.floating, 3)
        self._labels = self._open(LABEL, np.integer, 1)
        self.name = f"{content['dataset']}/{split}"
        self.info = DatasetInfo(
            name=content["dataset"],
            num_classes=content.get("num_classes", 0),
            class_names=content.get("class_names", []),
        )

    def _open(self, name: str, dtype: Any, ndim: int) -> np.ndarray:
        path = precomputed_features.features_path(self.directory, self._split, name)
        array = npy.open_array(path)
        fits = array.ndim == ndim and len(array) == self.num_examples
        if not fits or not np.issubdtype(array.dtype, dtype):
            raise UserError(
                f"{path} contains {array.dtype} {list(array.shape)}; expected {ndim} axes and "
                f"{self.num_examples} examples. Delete {self.directory} to compute the features "
                "again."
            )
        return array

    def fetch(self, record: int) -> bytes:
        """Returns the bytes of the features of a record."""
        return self.features[record].tobytes()

    def where(self, record: int) -> str:
        path = precomputed_features.features_path(self.directory, self._split, FEATURES)
        return f"{path}, record {record}"

    def identity(self, record: int) -> tuple[str, str, int]:
        return os.path.realpath(self.directory), self._split, record

    def labels(self) -> np.ndarray:
        return np.asarray(self._labels, np.int64)


def open_table(directory: str, *, split: str) -> tuple[TableSource, np.ndarray]:
    """Returns the source of a split, and the indices of its records, int64 [N].

    Args:
      directory: The directory of features.
      split: A split or slices of one, for example 'train[:90%:stratified]'.

    Raises:
      UserError: An invalid split or directory, or a sum of several splits.
    """
    sources, _, records = split_slicing.select(split, lambda name: TableSource(directory, name))
    if len(sources) > 1:
        raise UserError(f"{PREFIX}{directory}: {split!r} adds several splits; name one of them.")
    return sources[0], np.arange(sources[0].num_examples) if records is None else records


class HeadOrder:
    """The order in which the heads of several seeds see the examples.

    Update u of seed s sees the examples at positions u · B to (u + 1) · B - 1 of an endless
    sequence of permutations of all examples, one per pass, as a function of (seed, s, pass).

    Args:
      num_examples: Number of examples N.
      size: Examples per update B; at most N are used.
      seeds: Number of seeds S.
      drop_last: Whether each pass omits its last N mod B examples, as pyVTAB does.
      seed: Seed of the permutations.
    """

    def __init__(self, num_examples: int, *, size: int, seeds: int, drop_last: bool, seed: int):
        self._num_examples, self.size, self.seeds, self._seed = num_examples, size, seeds, seed
        self._length = num_examples // size * size if drop_last else num_examples
        self._permutations: collections.OrderedDict = collections.OrderedDict()

    def __call__(self, update: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns `(examples, passes)` of an update, int64 [S, B] each."""
        positions = update * self.size + np.arange(self.size)
        passes, index = positions // self._length, positions % self._length
        examples = np.empty((self.seeds, self.size), np.int64)
        for s in range(self.seeds):
            for one in np.unique(passes):
                at = passes == one
                examples[s, at] = self._permutation(s, int(one))[index[at]]
        return examples, np.broadcast_to(passes, examples.shape)

    def _permutation(self, s: int, one: int) -> np.ndarray:
        key = (s, one)
        if key not in self._permutations:
            generator = np.random.default_rng((self._seed, s, one))
            self._permutations[key] = generator.permutation(self._num_examples)
            while len(self._permutations) > 2 * self.seeds:
                self._permutations.popitem(last=False)
        return self._permutations[key]


class _Table:
    """The part that training and evaluation share; see `mmjax.data.pipeline.loader`."""

    tokenizer = sample_rate = None
    corrupt = 0

    def __init__(self, spec: str, split: str, host: HostBatch):
        self._source, self._records = open_table(spec.removeprefix(PREFIX), split=split)
        self._labels = self._source.labels()
        sliced = split_slicing.SlicedSource(self._source, self._records, name=self._source.name)
        self.sources, self.info = [sliced], self._source.info
        self.num_classes = self.info.num_classes or None
        self.host, self.batch_size = host, host.batch_size

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the batches of one host."""
        size, features = self.host.size, self._source.features
        return {
            FEATURES: jax.ShapeDtypeStruct((size, features.shape[-1]), features.dtype),
            LABEL: jax.ShapeDtypeStruct((size,), np.int32),
            "example_id": jax.ShapeDtypeStruct((size,), np.int32),
        }

    def _batch(self, examples: np.ndarray, variants: np.ndarray | int = 0) -> Batch:
        """Returns some examples, given by their index in the split, int64 [n]."""
        records = self._records[examples]
        return {
            FEATURES: self._source.features[records, variants],
            LABEL: self._labels[records].astype(np.int32),
            "example_id": examples.astype(np.int32),
        }


class TableTrainData(_Table):
    """Endless training batches for several heads; batch n is a function of (config, seed, n).

    A batch consists of K updates of S seeds with B examples each. Example p of the batch belongs to
    update p % K; see `config.updates_per_step`. Within an update, the B examples of each seed are
    consecutive.

    Args:
      cfg: The section `data`.
      spec: `features:DIRECTORY`.
      seed: Seed of the order.
      host: The part of the global batch to read.

    Attributes:
      num_examples: Number of examples of the split.

    Raises:
      UserError: The batch size is not a multiple of the examples of an update.
    """

    def __init__(self, cfg: DataConfig, *, spec: str, seed: int, host: HostBatch):
        super().__init__(spec, cfg.split, host)
        self.num_examples = len(self._records)
        options = cfg.end_task
        seeds, size = options.seeds, options.examples_per_update or host.batch_size
        if size > self.num_examples or host.batch_size % (seeds * size):
            raise UserError(
                f"config.batch_size={host.batch_size} must be a multiple of "
                f"config.data.end_task.seeds={seeds} times "
                f"config.data.end_task.examples_per_update={size}, which must be at most the "
                f"number of examples, {self.num_examples}."
            )
        self._order = HeadOrder(
            self.num_examples, size=size, seeds=seeds, drop_last=options.drop_last, seed=seed
        )
        self._updates = host.batch_size // (seeds * size)

    def iterate(self, first_step: int = 0) -> Iterator[Batch]:
        """Yields this host's part of the batches of steps `first_step`, `first_step` + 1, …"""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            step = first_step
            upcoming = pool.submit(self._read, step)
            while True:
                batch = upcoming.result()
                step += 1
                upcoming = pool.submit(self._read, step)
                yield batch

    def batch_ids(self, step: int) -> dict[str, np.ndarray]:
        """Returns `position` and `record` of the examples of a step, int64 [batch_size] each."""
        positions = step * self.batch_size + np.arange(self.batch_size)
        return {"position": positions, "record": self._records[self._examples(step)[0]]}

    def _examples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns `(examples, passes)` of the global batch of a step, int64 [batch_size] each."""
        updates = [self._order(step * self._updates + k) for k in range(self._updates)]
        return tuple(
            np.stack([part.ravel() for part in parts], 1).ravel()
            for parts in zip(*updates, strict=True)
        )

    def _read(self, step: int) -> Batch:
        examples, passes = (part[self.host.slice] for part in self._examples(step))
        return self._batch(examples, passes % self._source.features.shape[1])


class TableEvalData(_Table):
    """Every example once, in order, padded to whole batches on every host.

    Args:
      spec: `features:DIRECTORY`.
      split: A split or slices of one.
      host: The part of the global batch to read.
      max_examples: If positive, only this many examples, the first ones.

    Attributes:
      num_examples: Number of examples.
      num_batches: Number of batches.
    """

    def __init__(self, *, spec: str, split: str, host: HostBatch, max_examples: int = 0):
        super().__init__(spec, split, host)
        count = len(self._records)
        self.num_examples = min(count, max_examples or count)
        self.num_batches = math.ceil(self.num_examples / self.batch_size)

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the batches of one host."""
        return super().spec | {"mask": jax.ShapeDtypeStruct((self.host.size,), np.float32)}

    def iterate(self) -> Iterator[Batch]:
        """Yields this host's part of each batch; `mask` is 0 for padding."""
        for index in range(self.num_batches):
            positions = index * self.batch_size + np.arange(self.batch_size)[self.host.slice]
            examples = positions[positions < self.num_examples]
            batch = self._batch(examples)
            yield padded(batch | {"mask": np.ones(len(examples), np.float32)}, self.host.size)
