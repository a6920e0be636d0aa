"""The source that reads TFRecord shards: of dataset directories, worlds and converted TFDS sets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.sources import record_contexts, split_slicing
from mmjax.data.sources.base import Source
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import DatasetDir, DatasetInfo, Split

_MAX_CACHED_LABELS = 16  # splits


class ShardSource(Source):
    """The records of a split of a dataset directory.

    Args:
      split: The shards and their index.
      info: Description of the dataset.
      directory: Path of the dataset directory.
      check_crc: Whether to check the CRC of each record when it is read.
    """

    def __init__(self, split: Split, *, info: DatasetInfo, directory: str, check_crc: bool = True):
        self._split, self._check_crc = split, check_crc
        self.directory, self.info = directory, info
        self.name = f"{self.info.name}/{split.name}"
        self.num_examples = len(split)
        self.files, self.index = split.files, split.index

    @classmethod
    def open(cls, path: str, *, split: str, check_crc: bool = True) -> ShardSource:
        """Opens a split of the dataset directory at `path`; synonyms of its name are accepted."""
        dataset = DatasetDir(path)
        if not dataset.info.stored_splits(split.partition("@")[0]):
            split = split_slicing.match_split(split, dataset.info.split_sizes()) or split
        shards = dataset.split(split)
        return cls(shards, info=dataset.info, directory=dataset.path, check_crc=check_crc)

    @classmethod
    def concatenate(cls, sources: Sequence[ShardSource]) -> ShardSource:
        """Returns a source with the records of all `sources`, in order."""
        num_files = [len(source.files) for source in sources]
        file_offsets = np.cumsum([0, *num_files[:-1]])
        record_offsets = np.cumsum([0, *(s.num_examples for s in sources[:-1])])
        first = [s._split.first + n for s, n in zip(sources, record_offsets, strict=True)]
        index = [s.index + [[n, 0, 0]] for s, n in zip(sources, file_offsets, strict=True)]
        split = Split(
            name="+".join(source._split.name for source in sources),
            files=[file for source in sources for file in source.files],
            index=np.concatenate(index),
            first=np.concatenate(first),
        )
        head = sources[0]
        return cls(split, info=head.info, directory=head.directory, check_crc=head._check_crc)

    def fetch(self, record: int) -> bytes:
        return self._split.read(record, check_crc=self._check_crc)

    def fetch_without(self, key: str, record: int) -> bytes:
        return self._split.read_without(key, record, check_crc=self._check_crc)

    def resolve(self, values: list[bytes]) -> list[bytes]:
        return self._split.resolve(values)

    def where(self, record: int) -> str:
        return self._split.where(record)

    def labels(self) -> np.ndarray:
        # Cached because the slices of one split (training, validation, test) are opened in turn.
        key = tuple((file, os.stat(file).st_mtime_ns) for file in self.files)
        if key not in _label_cache:
            if len(_label_cache) >= _MAX_CACHED_LABELS:
                _label_cache.clear()
            _label_cache[key] = self._read_labels()
        return _label_cache[key]

    def _read_labels(self) -> np.ndarray:
        # A damaged record counts as unlabeled. `config.data.corrupt` applies when it is fetched.
        labels = record_contexts.read(
            self,
            range(self.num_examples),
            from_context=_first_label,
            from_example=lambda example: (example.labels or [-1])[0],
            damaged=-1,
        )
        return np.fromiter(labels, np.int64, self.num_examples)


_label_cache: dict[tuple, np.ndarray] = {}  # by the paths and modification times of the shards


def _first_label(context: Mapping[str, Any]) -> int | None:
    """Returns the first label of a context, or -1; None if the context is empty."""
    keys = (key for key in schema.LABELS if key in context)
    values = (value for key in keys for value in context[key].int64_list.value)
    return next(values, -1 if context else None)
