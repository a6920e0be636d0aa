"""Groups of records within which neighbors are looked for: `mmjax neighbors --scope`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.data.storage import tables
from mmjax.errors import UserError, unknown

if TYPE_CHECKING:  # which imports TensorFlow
    from mmjax.data.sources.base import Source

# Folders of RedCaps are called <subreddit>_<year>_<number>; a subreddit may contain underscores.
_FOLDERS: dict[str, Callable[[str, str], str]] = {
    "subreddit": lambda subreddit, year: subreddit,
    "year": lambda subreddit, year: year,
    "subreddit-year": lambda subreddit, year: f"{subreddit}_{year}",
}
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
        names = [_directory_group(scope, name, number) for number, name in enumerate(filenames)]
    elif tables.suffix_of(scope.rpartition(":")[0]):
        names = _column(*scope.rpartition(":")[::2], filenames)
    else:
        raise unknown("--scope", scope, ("label", *_FOLDERS, "TABLE.csv:COLUMN"))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    without = numbers.get(None, -1)
    found = np.array([numbers[name] for name in names], np.int64)
    alone = np.flatnonzero(found == without)
    found[alone] = len(numbers) + np.arange(len(alone))
    return found


def directory_of(filename: str) -> str:
    """The name of the folder that a record's file lies in."""
    return os.path.basename(os.path.dirname(filename))


def _directory_group(scope: str, filename: str, number: int) -> str:
    parts = directory_of(filename).rsplit("_", 2)
    if len(parts) < 3 or not parts[1].isdigit():
        raise UserError(
            f"--scope {scope}: record {number} is of {filename or 'no file'}, whose folder is not "
            "called <subreddit>_<year>_<number>."
        )
    return _FOLDERS[scope](parts[0], parts[1])


def _labels(source: Source) -> list[int | None]:
    """The first label of each record."""
    labels = [None if label < 0 else label for label in source.labels().tolist()]
    if not any(label is not None for label in labels):
        raise UserError(f"--scope label: {source.name} has no labels.")
    return labels


def _column(path: str, column: str, filenames: Sequence[str]) -> list[Any]:
    """The values of a column in the rows that name the records' files."""
    values: dict[str, Any] = {}
    columns: dict[str, None] = {}  # lines of JSON need not have all
    key = None
    for _, row in tables.rows(path):
        columns |= dict.fromkeys(row)
        key = key or next((name for name in _NAMES if name in row), None)
        if key in row:
            value = row.get(column)
            values[str(row[key])] = None if value is None or value == "" else str(value)
    if key is None or column not in columns:
        wanted = column if column not in columns else " or ".join(_NAMES)
        raise UserError(
            f"--scope {path}:{column}: there is no column {wanted}; columns are "
            f"{', '.join(map(str, columns)) or 'none'}."
        )
    found = [values.get(name) for name in filenames]
    if all(value is None for value in found):
        raise UserError(
            f"--scope {path}:{column}: none of its rows names a file of the dataset, such as "
            f"{filenames[0] if filenames else '(there are no records)'!r}."
        )
    return found
