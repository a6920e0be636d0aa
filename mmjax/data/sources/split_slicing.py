"""Slices and sums of splits, in the syntax of TFDS: 'train[:80%]', 'train[5000:]+valid'.

    train[:80%]               the first 80% of the records, rounded as in TFDS
    train[-500:]              the last 500 records
    train[:80%:stratified]    80% of every class
    train[:80%]+valid         the records of both, in this order

Stratified slices first order the records so that the k-th of the n records of a class is at
(k - 1/2) / n of the total, and apply their bounds in that order. Each slice therefore contains the
expected number of records of every class, up to one record. Adjacent slices do not overlap, and
nothing is random. The records of a slice keep their original order.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmjax.data.sources import identity
from mmjax.errors import UserError

if TYPE_CHECKING:  # imports TensorFlow
    from mmjax.data.sources.base import Source

log = logging.getLogger(__name__)

_BOUND = r"-?(?:\d+(?:\.\d+)?%|\d+)"
_PART = re.compile(
    rf"(?P<name>[^\[\]+]*[^\[\]+\s])"
    rf"(?P<slice>\[(?P<start>{_BOUND})?:(?P<stop>{_BOUND})?(?P<stratified>:stratified)?\])?"
)
_SYNONYMS = (
    ("validation", "valid", "val", "dev"),
    ("train", "training"),
    ("test", "testing"),
)
SPLIT_NAMES = tuple(name for names in _SYNONYMS for name in names)


@dataclasses.dataclass(frozen=True)
class Part:
    """A split, or a slice of one.

    Attributes:
      name: Name of the split.
      start: Start as it is written, for example '80%' or '-500'; '' for the first record.
      stop: Stop as it is written; '' for the end.
      stratified: Whether the slice is taken from every class.
      sliced: False for the complete split.
    """

    name: str
    start: str = ""
    stop: str = ""
    stratified: bool = False
    sliced: bool = False

    def __str__(self) -> str:
        suffix = ":stratified" if self.stratified else ""
        return f"{self.name}[{self.start}:{self.stop}{suffix}]" if self.sliced else self.name

    def bounds(self, count: int) -> tuple[int, int]:
        """Returns `(start, stop)` as indices of a split with `count` records.

        Raises:
          UserError: A bound is beyond the records, or the slice is empty.
        """
        start = _resolve_bound(self.start, count) if self.start else 0
        stop = _resolve_bound(self.stop, count) if self.stop else count
        if not 0 <= start < stop <= count:
            problem = "is empty" if start >= stop else "exceeds the data"
            raise UserError(
                f"The split {str(self)!r} {problem}: its bounds are {start} and {stop}, but "
                f"{self.name} has {count} records. Change the bounds of the slice."
            )
        return start, stop


def parse(split: str) -> list[Part]:
    """Returns the parts of a sum of splits.

    Raises:
      UserError: The syntax is invalid.
    """
    parts = []
    for text in re.split(r"\s*\+\s*", split.strip()):
        match = _PART.fullmatch(text)
        if not match:
            raise UserError(
                f"Invalid split {split!r}. Expected a name, a slice such as 'train[:80%]', "
                "'train[5000:10000]' or 'train[80%::stratified]', or a sum of these with +."
            )
        start, stop = match["start"] or "", match["stop"] or ""
        flags = dict(stratified=bool(match["stratified"]), sliced=bool(match["slice"]))
        parts.append(Part(match["name"], start, stop, **flags))
    return parts


def is_plain(split: str) -> bool:
    """Returns whether a split is only a name, not a slice or a sum."""
    return "[" not in split and "+" not in split


def match_split(name: str, available: Iterable[str]) -> str | None:
    """Returns the available split that `name` refers to: the same name or a synonym, or None.

    Synonyms are, for example, 'validation', 'valid', 'val' and 'dev'.
    """
    available = list(available)
    if name in available:
        return name
    synonyms = next((names for names in _SYNONYMS if name in names), ())
    return next((synonym for synonym in synonyms if synonym in available), None)


def open_split(
    split: str, opener: Callable[[str], Source], concatenate: Callable[[list], Source]
) -> Source:
    """Returns the source of a split, which may be a slice or a sum.

    Args:
      split: The split, in the syntax of the module docstring.
      opener: Opens a complete split by its name.
      concatenate: Joins several sources of one dataset.

    Raises:
      UserError: An invalid split (see `parse`, `Part.bounds`), or a sum whose parts overlap.
    """
    sources, parts, records = select(split, opener)
    if records is None:
        return sources[0]
    combined = concatenate(sources) if len(sources) > 1 else sources[0]
    result = SlicedSource(combined, records, name=f"{combined.info.name}/{split}")
    if parts > 1:
        _check_unique(result, split)
    return result


def select(
    split: str, opener: Callable[[str], Source]
) -> tuple[list[Source], int, np.ndarray | None]:
    """Returns the sources that a split consists of, and which of their records it contains.

    Args:
      split: The split, in the syntax of the module docstring.
      opener: Opens a complete split by its name.

    Returns:
      `(sources, number of parts, records)`. `records`, int64 [N], are indices of the records of all
      sources, one source after the other; None for a complete split.

    Raises:
      UserError: An invalid split (see `parse`, `Part.bounds`).
    """
    parts = parse(split)
    names = list(dict.fromkeys(part.name for part in parts))
    sources = {name: opener(name) for name in names}
    if len(parts) == 1 and not parts[0].sliced:
        return list(sources.values()), 1, None
    counts = [source.num_examples for source in sources.values()]
    offset = dict(zip(names, np.cumsum([0, *counts]), strict=False))
    records = np.concatenate([offset[p.name] + _records(p, sources[p.name]) for p in parts])
    return list(sources.values()), len(parts), records


class SlicedSource:
    """A source with some of the records of another source.

    Args:
      source: The source to take records from.
      records: int64 [N]: indices of the records in `source`.
      name: Name for messages.
    """

    def __init__(self, source: Source, records: np.ndarray, *, name: str):
        self._source, self._records, self.name = source, records, name
        self.info, self.directory, self.files = source.info, source.directory, source.files
        self.num_examples = len(records)
        self.index = None if source.index is None else source.index[records]

    def fetch(self, record: int) -> bytes:
        return self._source.fetch(int(self._records[record]))

    def fetch_without(self, key: str, record: int) -> bytes:
        return self._source.fetch_without(key, int(self._records[record]))

    def resolve(self, values: list[bytes]) -> list[bytes]:
        return self._source.resolve(values)

    def where(self, record: int) -> str:
        return self._source.where(int(self._records[record]))

    def identity(self, record: int) -> Hashable:
        return identity.key_of(self._source, int(self._records[record]))

    def labels(self) -> np.ndarray:
        return self._source.labels()[self._records]


class ConcatSource:
    """A source with the records of several sources without shards, in order."""

    files = index = None

    def __init__(self, sources: Sequence[Source]):
        self._sources = list(sources)
        self._ends = np.cumsum([source.num_examples for source in sources])
        self.info, self.directory = sources[0].info, sources[0].directory
        self.name = "+".join(source.name for source in sources)
        self.num_examples = int(self._ends[-1])

    def fetch(self, record: int) -> bytes:
        source, index = self._locate(record)
        return source.fetch(index)

    def where(self, record: int) -> str:
        source, index = self._locate(record)
        return source.where(index)

    def identity(self, record: int) -> Hashable:
        return identity.key_of(*self._locate(record))

    def labels(self) -> np.ndarray:
        return np.concatenate([source.labels() for source in self._sources])

    def _locate(self, record: int) -> tuple[Source, int]:
        """Returns the source of a record, and its index there."""
        n = int(np.searchsorted(self._ends, record, side="right"))
        source = self._sources[n]
        return source, int(record - (self._ends[n] - source.num_examples))


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """Returns an order of the records in which every class is evenly distributed.

    Args:
      labels: int [N]: one label per record.

    Returns:
      int64 [N]: record indices. The k-th of the n records of a class is at about (k - 1/2) N / n.
    """
    labels = np.asarray(labels)
    by_class = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    position = (2 * rank + 1) / (2 * np.repeat(counts, counts))
    return by_class[np.argsort(position, kind="stable")]


def _resolve_bound(bound: str, count: int) -> int:
    # As in TFDS: halves are rounded to even, and '-1%' of a few records is 0, not all of them.
    index = round(float(bound[:-1]) * count / 100) if bound.endswith("%") else int(bound)
    return index + count if index < 0 else index


def _records(part: Part, source: Source) -> np.ndarray:
    """Returns the ascending indices, in `source`, of the records of a part; int64 [n]."""
    count = source.num_examples
    start, stop = part.bounds(count)
    if not part.sliced:
        return np.arange(count)
    labels = source.labels() if source.info.num_classes else np.full(count, -1)
    if part.stratified:
        if (labels < 0).all():
            raise UserError(
                f"The split {str(part)!r} cannot be stratified: {source.name} has no labels. "
                "Remove ':stratified'."
            )
        return np.sort(stratified_order(labels)[start:stop])
    num_classes, num_kept = (
        len(np.unique(some[some >= 0])) for some in (labels, labels[start:stop])
    )
    if num_kept < num_classes:
        stratified = str(dataclasses.replace(part, stratified=True))
        _warn_missing_classes(
            source.name, str(part), stratified, num_classes - num_kept, num_classes
        )
    return np.arange(start, stop)


@functools.cache  # each evaluator opens its data again: one warning is enough
def _warn_missing_classes(
    name: str, part: str, stratified: str, missing: int, num_classes: int
) -> None:
    log.warning(
        "%s: %d of its %d classes have no record in %r. Use %r for a slice of every class.",
        name,
        missing,
        num_classes,
        part,
        stratified,
    )


def _check_unique(source: SlicedSource, split: str) -> None:
    """Raises if a record occurs twice, because evaluation counts every example once."""
    if source.index is None:
        unique = len({source.where(record) for record in range(source.num_examples)})
    else:
        numbers = {file: n for n, file in enumerate(dict.fromkeys(source.files))}
        file = np.array([numbers[name] for name in source.files])[source.index[:, 0]]
        unique = len(np.unique(np.stack([file, source.index[:, 1]], 1), axis=0))
    if unique < source.num_examples:
        raise UserError(
            f"The parts of the split {split!r} overlap: {source.num_examples - unique} of "
            f"{source.num_examples} records of {source.info.name} occur twice. Remove the overlap."
        )
