"""Finds records that two splits have in common, whatever names the splits and datasets have."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:  # imports TensorFlow
    from mmjax.data.sources.base import Source

_NUM_COMPARED = 8  # records of a source of the user that are compared byte by byte


class _Location(NamedTuple):
    """A location for messages, which need not be unique."""

    where: str


def count_common(first: Source, second: Source, sizes: tuple[int, int]) -> int:
    """Returns how many records of `second` are also records of `first`.

    Records are the same if they are the same bytes of the same file, which may have several names
    because of symbolic links. A copy of a file is another record.

    Args:
      first, second: Sources.
      sizes: Number of leading records of each source to compare.

    Raises:
      UserError: A record cannot be read.
    """
    if _has_shards(first) and _has_shards(second):
        shards = (set(map(os.path.realpath, source.files)) for source in (first, second))
        if set.isdisjoint(*shards):  # the usual case needs no key of any record
            return 0
    keys, others = _keys(first, sizes[0]), _keys(second, sizes[1])
    position = {key: record for record, key in enumerate(keys)}
    common = [record for record, key in enumerate(others) if key in position]
    unsure = [record for record in common if isinstance(others[record], _Location)]
    for record in unsure[:: 1 + len(unsure) // _NUM_COMPARED]:
        if first.fetch(position[others[record]]) != second.fetch(record):
            return len(common) - len(unsure)
    return len(common)


def key_of(source: Source, record: int) -> Hashable:
    """Returns the key of a record of a source without shards, from `identity` or else `where`."""
    identity = getattr(source, "identity", None)
    key = identity(record) if identity else None
    return _Location(source.where(record)) if key is None else key


def _has_shards(source: Source) -> bool:
    return source.index is not None and source.files is not None


def _keys(source: Source, size: int) -> list[Hashable]:
    """Returns keys of the first records, equal for equal records."""
    if not _has_shards(source):
        return [key_of(source, record) for record in range(size)]
    paths = [os.path.realpath(file) for file in source.files]
    return [(paths[file], offset) for file, offset in np.asarray(source.index)[:size, :2].tolist()]


class RealPaths:
    """Resolves symbolic links of many files; each directory is read only once."""

    def __init__(self):
        self._directories: dict[str, tuple[str, set[str]]] = {}

    def resolve(self, path: str) -> str:
        """Returns the path of a file without symbolic links."""
        directory, name = os.path.split(path)
        if directory not in self._directories:
            self._directories[directory] = _links(directory)
        parent, links = self._directories[directory]
        path = os.path.join(parent, name)
        return os.path.realpath(path) if name in links else os.path.normpath(path)


def _links(directory: str) -> tuple[str, set[str]]:
    """Returns a directory without symbolic links, and those of its entries that are links."""
    parent = os.path.realpath(directory)
    try:
        with os.scandir(parent) as entries:
            return parent, {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return parent, set()
