"""Groups of records within which neighbours are looked for: `mmjax neighbours --scope`."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.errors import UserError, unknown

if TYPE_CHECKING:  # which imports TensorFlow
    from mmjax.data.sources import Source

# Folders of RedCaps are called <subreddit>_<year>_<number>; a subreddit may contain underscores.
_FOLDERS: dict[str, Callable[[str, str], str]] = {
    "subreddit": lambda subreddit, year: subreddit,
    "year": lambda subreddit, year: year,
    "subreddit-year": lambda subreddit, year: f"{subreddit}_{year}",
}
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_NAMES = ("path", "filename", "file", "image")  # columns that name the record


def groups_of(scope: str, source: Source, filenames: Sequence[str]) -> np.ndarray:
    """int64 [N]: the number of each record's group; those without one are alone in theirs.

    Args:
      scope: 'label', 'subreddit', 'year', 'subreddit-year', or TABLE:COLUMN.
      source: the records.
      filenames: of them.

    Raises:
      UserError: an unknown scope, folders that are not called so, or a table that does not fit.
    """
    if scope == "label":
        names = _labels(source)
    elif scope in _FOLDERS:
        names = [_folder_group(scope, name, number) for number, name in enumerate(filenames)]
    elif scope.rpartition(":")[0].lower().endswith(_TABLES):
        names = _column(*scope.rpartition(":")[::2], filenames)
    else:
        raise unknown("--scope", scope, ("label", *_FOLDERS, "TABLE.csv:COLUMN"))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    without = numbers.get(None, -1)
    found = np.array([numbers[name] for name in names], np.int64)
    alone = np.flatnonzero(found == without)
    found[alone] = len(numbers) + np.arange(len(alone))
    return found


def folder_of(filename: str) -> str:
    """The name of the folder that a record's file lies in."""
    return os.path.basename(os.path.dirname(filename))


def _folder_group(scope: str, filename: str, number: int) -> str:
    parts = folder_of(filename).rsplit("_", 2)
    if len(parts) < 3 or not parts[1].isdigit():
        raise UserError(
            f"--scope {scope}: record {number} is of {filename or 'no file'}, whose folder is not "
            "called <subreddit>_<year>_<number>."
        )
    return _FOLDERS[scope](parts[0], parts[1])


def _labels(source: Source) -> list[int | None]:
    """The first label of each record."""
    import tensorflow as tf

    from mmjax.data import schema
    from mmjax.data.captions import context_of

    labels = []
    for record in range(source.num_examples):
        context = tf.train.Features.FromString(context_of(source.fetch(record))).feature
        values = [
            v for key in schema.LABELS if key in context for v in context[key].int64_list.value
        ]
        labels.append(values[0] if values else None)
    if not any(label is not None for label in labels):
        raise UserError(f"--scope label: {source.name} has no labels.")
    return labels


def _column(path: str, column: str, filenames: Sequence[str]) -> list[Any]:
    """The values of a column in the rows that name the records' files."""
    values: dict[str, Any] = {}
    key = None
    for row in _rows(path):
        key = key or next((name for name in _NAMES if name in row), None)
        if key is None or column not in row:
            wanted = column if column not in row else " or ".join(_NAMES)
            raise UserError(
                f"--scope {path}:{column}: there is no column {wanted}; columns are "
                f"{', '.join(map(str, row))}."
            )
        value = row[column]
        values[str(row[key])] = None if value is None or value == "" else str(value)
    found = [values.get(name) for name in filenames]
    if all(value is None for value in found):
        raise UserError(
            f"--scope {path}:{column}: none of its rows names a file of the dataset, such as "
            f"{filenames[0] if filenames else '(there are no records)'!r}."
        )
    return found


def _rows(path: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a table."""
    if not os.path.exists(path):
        raise UserError(f"There is no table {path}.")
    suffix = os.path.splitext(path)[1].lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet

            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(4096):
                yield from batch.to_pylist()
            return
        with open(path, encoding="utf-8-sig", newline="") as file:
            if suffix == ".jsonl":
                yield from (json.loads(line) for line in file if line.strip())
            else:
                yield from csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",")
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs `pip install pyarrow`.") from error
    except (ValueError, csv.Error, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
