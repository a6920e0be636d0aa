"""Where examples come from: a dataset folder, the built-in world, TFDS, images in folders, tables
and arrays.

Each gives any record at any time as a serialized SequenceExample, which is what makes a batch a
function of (seed, step), and parts of its splits as `mmjax.data.sources.split_slicing` says. DMVR factories are
streams and have a module of their own, `mmjax.data.pipeline.dmvr`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmjax.data.sources import captions_and_labels, image_folder, npz, split_slicing, tfds
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import DatasetDir, DatasetInfo, Split
from mmjax.data.world import build as world
from mmjax.errors import UserError


class Source(Protocol):
    """Records at random.

    Attributes:
      name: for messages.
      info: what the dataset holds.
      num_examples: number of records.
      folder: where the dataset lies, or '' if it is not a dataset folder.
      files, index: shards and int64 [N, 3] (file number, offset, length), or None if there are no
        shards.
    """

    name: str
    info: DatasetInfo
    num_examples: int
    directory: str
    files: list[str] | None
    index: np.ndarray | None

    def fetch(self, record: int) -> bytes:
        """A serialized SequenceExample; UserError if it cannot be read. Thread safe."""

    def fetch_without(self, key: str, record: int) -> bytes:
        """As `fetch`, with references in place of the values of a feature list, if there are
        shards."""

    def resolve(self, values: list[bytes]) -> list[bytes]:
        """What references of `fetch_without` refer to; other values as they are."""

    def where(self, record: int) -> str:
        """File and number of a record, for messages."""

    def labels(self) -> np.ndarray:
        """int64 [num_examples]: the class of each record, its first if it has several, or -1."""


class ShardSource:
    """Records in shards.

    Args:
      split: the records.
      info: what the dataset holds.
      folder: where it lies.
      check_crc: check each record's CRC as it is read.
    """

    def __init__(self, split: Split, *, info: DatasetInfo, directory: str, check_crc: bool = True):
        self._split, self._check_crc = split, check_crc
        self.directory, self.info = directory, info
        self.name = f"{self.info.name}/{split.name}"
        self.num_examples = len(split)
        self.files, self.index = split.files, split.index

    @classmethod
    def open(cls, path: str, *, split: str, check_crc: bool = True) -> ShardSource:
        """A split of a dataset folder (see `mmjax.data.storage.dataset`), or another word for it."""
        dataset = DatasetDir(path)
        if not dataset.info.stored(split.partition("@")[0]):
            split = split_slicing.same_split(split, dataset.info.split_sizes()) or split
        found = dataset.split(split)
        return cls(found, info=dataset.info, directory=dataset.path, check_crc=check_crc)

    @classmethod
    def joined(cls, sources: Sequence[ShardSource]) -> ShardSource:
        """All records of several, one after the other."""
        files = [len(source.files) for source in sources]
        shifts = (
            np.cumsum([0, *files[:-1]]),
            np.cumsum([0, *(s.num_examples for s in sources[:-1])]),
        )
        parts = list(zip(sources, *shifts, strict=True))
        split = Split(
            name="+".join(source._split.name for source in sources),
            files=[file for source in sources for file in source.files],
            index=np.concatenate([source.index + [[shift, 0, 0]] for source, shift, _ in parts]),
            first=np.concatenate([source._split.first + shift for source, _, shift in parts]),
        )
        first = sources[0]
        return cls(split, info=first.info, directory=first.directory, check_crc=first._check_crc)

    def fetch(self, record: int) -> bytes:
        return self._split.read(record, check_crc=self._check_crc)

    def fetch_without(self, key: str, record: int) -> bytes:
        """As `fetch`, with references in place of the values of a feature list."""
        return self._split.read_without(key, record, check_crc=self._check_crc)

    def resolve(self, values: list[bytes]) -> list[bytes]:
        """What references of `fetch_without` refer to; other values as they are."""
        return self._split.resolve(values)

    def where(self, record: int) -> str:
        file = int(self.index[record, 0])
        return f"{self.files[file]}, record {record - int(self._split.first[file])}"

    def labels(self) -> np.ndarray:
        # Training, validation and test parts of one split are opened one after the other.
        key = tuple((file, os.stat(file).st_mtime_ns) for file in self.files)
        if key not in _labels:
            if len(_labels) >= 16:
                _labels.clear()
            # Whoever reads a damaged record finds it, and `data.corrupt` decides.
            labels = captions_and_labels.read(
                self,
                range(self.num_examples),
                _label,
                lambda whole: (whole.labels or [-1])[0],
                damaged=-1,
            )
            _labels[key] = np.fromiter(labels, np.int64, self.num_examples)
        return _labels[key]


_labels: dict[tuple, np.ndarray] = {}


def _label(context: Mapping[str, Any]) -> int | None:
    """The first label that a context has, or -1; None if there is no context at the beginning."""
    keys = (key for key in schema.LABELS if key in context)
    values = (value for key in keys for value in context[key].int64_list.value)
    return next(values, -1 if context else None)


def open_source(spec: str, *, split: str, check_crc: bool = True) -> Source:
    """The source of a specification.

    Args:
      spec: `world` or `world:NAME`; a dataset folder; `tfds:NAME`; `images:DIRECTORY`; `csv:FILE`;
        `npz:FILE` or `npz:DIRECTORY`.
      split: which part: a split's name, slices or sums, see `mmjax.data.sources.split_slicing`. A dataset that has
        no `validation` but `val` or `valid` gives that, and so on.
      check_crc: check each record's CRC as it is read.

    Raises:
      UserError: what is wrong with the specification, or with the dataset.
    """
    if not spec:
        raise UserError(
            "config.data.train is empty: this recipe is for a dataset of yours. Give its folder, "
            "--config.data.train=FOLDER; `mmjax build` makes one."
        )
    kind, rest = _parsed(spec)
    if kind == "dmvr":
        raise UserError(
            f"{spec} is a stream and cannot be part of a mixture: make it the only source."
        )
    if kind in _PICTURES:
        opener = functools.partial(_PICTURES[kind][0], rest)
        return split_slicing.open_split(
            split, lambda name: opener(split=name), split_slicing.Joined
        )
    shards = functools.partial(ShardSource.open, check_crc=check_crc)
    if split_slicing.is_plain(split):
        directory, name = _directory(spec, split=split)
        return shards(directory, split=name)
    if kind == "tfds":
        if earlier := tfds.earlier_slice(rest, split):
            return shards(earlier, split=split)
    elif DatasetDir(directory := _directory(spec, split=split)[0]).info.stored(split):
        return shards(directory, split=split)  # a name with '+', as of shards in two splits

    def whole(name: str) -> ShardSource:
        directory, known = _directory(spec, split=name, whole=False)
        return shards(directory, split=known)

    return split_slicing.open_split(split, whole, ShardSource.joined)


def split_names(spec: str) -> list[str]:
    """The splits that a specification has; [] if any name will do, or it is not known yet.

    Raises:
      UserError: what is wrong with the specification, or with the dataset.
    """
    kind, rest = _parsed(spec)
    if kind in _PICTURES:
        return _PICTURES[kind][1](rest)
    if kind == "tfds":
        return tfds.tfds_splits(rest)
    return list(DatasetDir(_directory(spec, split="")[0]).info.split_sizes())


def dataset_dir(spec: str, *, split: str) -> str:
    """The dataset folder of a specification; the world and TFDS sets are written if need be."""
    return _directory(spec, split=split)[0]


def vocabulary(spec: str, *, split: str) -> str:
    """The file of words that a dataset brings; UserError if it brings none."""
    if _parsed(spec)[0] not in (*_PICTURES, "tfds", "dmvr"):
        dataset = DatasetDir(dataset_dir(spec, split=split))
        if dataset.info.vocabulary:
            return os.path.join(dataset.path, dataset.info.vocabulary)
    raise UserError(
        f"data.text.vocab is not set, and {spec} brings no vocabulary. Make one of its captions "
        "with "
        "`mmjax vocab`, or name a file."
    )


# {kind: (opens a split, lists the splits)} of what is not in shards.
_PICTURES = {
    "images": (image_folder.open_directory, image_folder.directory_splits),
    "csv": (image_folder.open_csv, image_folder.csv_splits),
    "npz": (npz.NpzSource, npz.npz_splits),
}


def _parsed(spec: str) -> tuple[str, str]:
    """(kind, what comes after the colon); ('', folder) for dataset folders."""
    kind, colon, rest = spec.partition(":")
    if kind == "world" or colon and kind in (*_PICTURES, "tfds", "dmvr"):
        return kind, rest
    return "", spec


def _directory(spec: str, *, split: str, whole: bool = True) -> tuple[str, str]:
    """(dataset folder, name of the split in it), written if need be."""
    kind, rest = _parsed(spec)
    if kind == "world":
        return world.ensure_world(spec), split
    if kind == "tfds":
        return tfds.tfds_dir(rest, split=split, whole=whole)
    return spec, split
