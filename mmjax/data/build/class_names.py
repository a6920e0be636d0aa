"""Class names and numbers in the records of a dataset, and whether its splits agree on them.

DMVR's example script numbers the classes of each table from an unordered set, so its training and
test shards give the same name different numbers.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmjax.data.sources import record_contexts
from mmjax.data.sources.shards import ShardSource
from mmjax.data.storage import schema

_JSON = "dataset.json"
_SHOWN = 5  # names of each message


class ClassNames:
    """Collects the numbers of each class name.

    Args:
      names: Names by number according to `dataset.json`.

    Attributes:
      num_classes: The highest number of a record, plus 1.
    """

    def __init__(self, names: Sequence[str] = ()):
        self.num_classes = 0
        # {name: {split, or dataset.json: its numbers there}}
        self._numbers: dict[str, dict[str, set[int]]] = collections.defaultdict(dict)
        for number, name in enumerate(names):
            self._numbers[name].setdefault(_JSON, set()).add(number)

    def add(self, split: str, labels: Sequence[int], names: Sequence[str]) -> None:
        """Adds a record: its class numbers, and its class names in the same order if it has any."""
        self.num_classes = max(self.num_classes, *(label + 1 for label in labels), 0)
        if len(labels) == len(names):
            for name, number in zip(names, labels, strict=True):
                self._numbers[name].setdefault(split, set()).add(number)

    def conflicts(self) -> list[str]:
        """Returns a description of each class name with other numbers in another split.

        Classes may share a name, as two cranes in ImageNet, so a name may have several numbers.
        """
        found = []
        for name, places in sorted(self._numbers.items()):
            pairs = itertools.combinations(places.values(), 2)
            if any(not (a <= b or b <= a) for a, b in pairs):
                listed = [
                    f"{', '.join(map(str, sorted(numbers)))} in {place}"
                    for place, numbers in places.items()
                ]
                found.append(f"{name!r} is {'; '.join(listed)}")
        return found

    def by_number(self) -> list[str]:
        """Returns the names by class number; [] if a number has no name, or several."""
        names: dict[int, set[str]] = collections.defaultdict(set)
        for name, places in self._numbers.items():
            for number in set().union(*places.values()):
                names[number].add(name)
        complete = set(names) == set(range(self.num_classes))
        if self.conflicts() or not complete or any(len(n) > 1 for n in names.values()):
            return []
        return [min(names[number]) for number in range(self.num_classes)]


def read_class_names(path: str, splits: Iterable[str]) -> ClassNames:
    """Returns the classes in the records of an indexed dataset; only their contexts are read."""
    found = ClassNames()
    for split in splits:
        source = ShardSource.open(path, split=split)
        records = record_contexts.read(
            source,
            range(source.num_examples),
            from_context=_labels,
            from_example=lambda example: (example.labels, example.label_texts),
            damaged=([], []),
        )
        for labels, names in records:
            found.add(split, labels, names)
    return found


def advice(conflicts: Sequence[str]) -> str:
    """Returns a message about class names with other numbers in another split."""
    more = f", and {len(conflicts) - _SHOWN} more" if len(conflicts) > _SHOWN else ""
    return (
        f"{len(conflicts)} class names have different numbers: {' | '.join(conflicts[:_SHOWN])}"
        f"{more}. A classifier trained on one split is scored on wrong numbers in the other. "
        "DMVR's generate_from_file.py numbers the classes of each table anew: write the shards "
        "from one table, or build the dataset with `mmjax build`, which numbers classes by name."
    )


def _labels(context: Mapping[str, Any]) -> tuple[list[int], list[str]] | None:
    """Returns the labels and their names of a context; None if it is empty."""
    if not context:
        return None
    labels = _values(context, schema.LABELS, "int64_list")
    names = _values(context, schema.LABEL_TEXTS, "bytes_list")
    return labels, [name.decode(errors="replace") for name in names]


def _values(context: Mapping[str, Any], keys: Sequence[str], list_type: str) -> list:
    lists = (list(getattr(context[key], list_type).value) for key in keys if key in context)
    return next(filter(None, lists), [])
