"""Parts of a split and sums of them, in TFDS's words: 'train[:80%]', 'train[5000:]+valid'.

    train[:80%]               the first 80 % of the records, rounded to the closest as in TFDS
    train[-500:]              the last 500
    train[:80%:stratified]    80 % of every class
    train[:80%]+valid         both, one after the other

Stratified parts are those of another order, in which the k-th of n records of a class has place
(k - 1/2) / n, and the records of a part then come in the order in which they lie. So every part has
its share of each class, to one record, parts that meet have no record in common, and nothing is
drawn.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmjax.errors import UserError

if TYPE_CHECKING:
    from mmjax.data.sources.registry import Source

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
SPLIT_WORDS = tuple(word for words in _SYNONYMS for word in words)


@dataclasses.dataclass(frozen=True)
class Part:
    """A split or a slice of one.

    Attributes:
      name: of the split.
      start, stop: as they are written ('80%', '-500'), or '' for the ends.
      stratified: of every class.
      sliced: False if all of it is meant.
    """

    name: str
    start: str = ""
    stop: str = ""
    stratified: bool = False
    sliced: bool = False

    def __str__(self) -> str:
        how = ":stratified" if self.stratified else ""
        return f"{self.name}[{self.start}:{self.stop}{how}]" if self.sliced else self.name

    def bounds(self, count: int) -> tuple[int, int]:
        """(start, stop) among `count` records.

        Raises:
          UserError: a bound beyond the records, or nothing between the two.
        """
        start = _place(self.start, count) if self.start else 0
        stop = _place(self.stop, count) if self.stop else count
        if not 0 <= start < stop <= count:
            what = "has no records" if start >= stop else "reaches beyond the data"
            raise UserError(
                f"The split {str(self)!r} {what}: {self.name} has {count} records, and these would "
                f"be numbers {start} to {stop} of them."
            )
        return start, stop


def parse(split: str) -> list[Part]:
    """The parts of a sum.

    Raises:
      UserError: anything else, with an example of what is meant.
    """
    parts = []
    for text in re.split(r"\s*\+\s*", split.strip()):
        match = _PART.fullmatch(text)
        if not match:
            raise UserError(
                f"The split {split!r} is not understood. Splits are names or slices such as "
                "'train[:80%]', 'train[5000:10000]', 'train[80%::stratified]', or sums of them "
                "with +."
            )
        start, stop = match["start"] or "", match["stop"] or ""
        flags = dict(stratified=bool(match["stratified"]), sliced=bool(match["slice"]))
        parts.append(Part(match["name"], start, stop, **flags))
    return parts


def is_plain(split: str) -> bool:
    """Whether a split is a name alone."""
    return "[" not in split and "+" not in split


def same_split(name: str, there: Iterable[str]) -> str | None:
    """The one of `there` that is meant by `name`: itself, else another word for it ('val' for
    'validation'), else None."""
    there = list(there)
    if name in there:
        return name
    words = next((words for words in _SYNONYMS if name in words), ())
    return next((word for word in words if word in there), None)


def open_split(split: str, opener: Callable[[str], Source], joiner: Callable) -> Source:
    """The records of a split of which `opener` gives the whole ones by name.

    Args:
      split: see the module.
      opener: a split's name → its source.
      joiner: sources of one dataset → one with the records of all.

    Raises:
      UserError: see `parse` and `Part.bounds`; a sum that has a record twice.
    """
    parts = parse(split)
    names = list(dict.fromkeys(part.name for part in parts))
    opened = {name: opener(name) for name in names}
    if len(parts) == 1 and not parts[0].sliced:
        return opened[names[0]]
    counts = [source.num_examples for source in opened.values()]
    first = dict(zip(names, np.cumsum([0, *counts]), strict=False))
    records = np.concatenate([first[p.name] + _records(p, opened[p.name]) for p in parts])
    whole = joiner(list(opened.values())) if len(opened) > 1 else opened[names[0]]
    result = Sliced(whole, records, name=f"{whole.info.name}/{split}")
    if len(parts) > 1:
        _check_once(result, split)
    return result


class Sliced:
    """Some records of a source, as a source.

    Args:
      source: where they are.
      records: int64 [N]: their numbers there.
      name: for messages.
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

    def labels(self) -> np.ndarray:
        return self._source.labels()[self._records]


class Joined:
    """The records of several sources without shards, one after the other, as a source."""

    files = index = None

    def __init__(self, sources: Sequence[Source]):
        self._sources = list(sources)
        self._ends = np.cumsum([source.num_examples for source in sources])
        self.info, self.directory = sources[0].info, sources[0].directory
        self.name = "+".join(source.name for source in sources)
        self.num_examples = int(self._ends[-1])

    def fetch(self, record: int) -> bytes:
        source, number = self._place(record)
        return source.fetch(number)

    def where(self, record: int) -> str:
        source, number = self._place(record)
        return source.where(number)

    def labels(self) -> np.ndarray:
        return np.concatenate([source.labels() for source in self._sources])

    def _place(self, record: int) -> tuple[Source, int]:
        which = int(np.searchsorted(self._ends, record, side="right"))
        source = self._sources[which]
        return source, int(record - (self._ends[which] - source.num_examples))


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """int64 [N]: the records in an order in which classes take turns in proportion to their
    sizes."""
    labels = np.asarray(labels)
    by_class = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    place = (2 * rank + 1) / (2 * np.repeat(counts, counts))
    return by_class[np.argsort(place, kind="stable")]


def _place(bound: str, count: int) -> int:
    # As in TFDS: a half is rounded to the even number, and '-1%' of few is 0, not all of them.
    place = round(float(bound[:-1]) * count / 100) if bound.endswith("%") else int(bound)
    return place + count if place < 0 else place


def _records(part: Part, source: Source) -> np.ndarray:
    """int64 [n]: the numbers in `source` of the records of a part, ascending."""
    count = source.num_examples
    start, stop = part.bounds(count)
    if not part.sliced:
        return np.arange(count)
    labels = source.labels() if source.info.num_classes else np.full(count, -1)
    if part.stratified:
        if (labels < 0).all():
            raise UserError(f"{source.name} has no labels: {str(part)!r} has no classes to go by.")
        return np.sort(stratified_order(labels)[start:stop])
    whole, left = (set(np.unique(some[some >= 0])) for some in (labels, labels[start:stop]))
    if len(left) < len(whole):
        stratified = str(dataclasses.replace(part, stratified=True))
        _warn(source.name, str(part), stratified, len(whole) - len(left), len(whole))
    return np.arange(start, stop)


@functools.cache  # each evaluator opens its data anew: once is enough
def _warn(name: str, part: str, stratified: str, missing: int, count: int) -> None:
    log.warning(
        "%s: %d of its %d classes have no record in %r. %r has a part of every class.",
        name,
        missing,
        count,
        part,
        stratified,
    )


def _check_once(source: Sliced, split: str) -> None:
    """Raises if a record is there twice: evaluation counts every example once."""
    if source.index is None:
        places = [source.where(record) for record in range(source.num_examples)]
        unique = len(set(places))
    else:
        numbers = {file: number for number, file in enumerate(dict.fromkeys(source.files))}
        file = np.array([numbers[name] for name in source.files])[source.index[:, 0]]
        unique = len(np.unique(np.stack([file, source.index[:, 1]], 1), axis=0))
    if unique < source.num_examples:
        raise UserError(
            f"The split {split!r} of {source.info.name} has {source.num_examples - unique} of its "
            f"{source.num_examples} records twice: its parts overlap."
        )
