"""Groups of records within which neighbors are searched: `mmjax neighbors --scope`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.data.storage import tables
from mmjax.errors import UserError, unknown

if TYPE_CHECKING:  # imports TensorFlow
    from mmjax.data.sources.base import Source

# Directories of RedCaps are named <subreddit>_<year>_<number>; subreddits may have underscores.
_DIRECTORY_SCOPES: dict[str, Callable[[str, str], str]] = {
    "subreddit": lambda subreddit, year: subreddit,
    "year": lambda subreddit, year: year,
    "subreddit-year": lambda subreddit, year: f"{subreddit}_{year}",
}
_FILE_COLUMNS = ("path", "filename", "file", "image")  # columns with the file name of a record


def groups_of(scope: str, source: Source, filenames: Sequence[str]) -> np.ndarray:
    """Returns the group of each record as int64 [N]. A record without one is in a group by itself.

    Args:
      scope: 'label', 'subreddit', 'year', 'subreddit-year', or TABLE:COLUMN.
      source: The source of the records.
      filenames: File name of each record.

    Raises:
      UserError: An unknown scope, directories with other names, or a table that does not fit.
    """
    table, _, column = scope.rpartition(":")
    if scope == "label":
        names = _labels(source)
    elif scope in _DIRECTORY_SCOPES:
        names = [_directory_group(scope, name, record) for record, name in enumerate(filenames)]
    elif tables.suffix_of(table):
        names = _column(table, column, filenames)
    else:
        raise unknown("--scope", scope, ("label", *_DIRECTORY_SCOPES, "TABLE.csv:COLUMN"))
    index = {name: group for group, name in enumerate(dict.fromkeys(names))}
    groups = np.array([index[name] for name in names], np.int64)
    ungrouped = np.flatnonzero(groups == index.get(None, -1))
    groups[ungrouped] = len(index) + np.arange(len(ungrouped))
    return groups


def directory_of(filename: str) -> str:
    """Returns the name of the directory that contains a record's file."""
    return os.path.basename(os.path.dirname(filename))


def _directory_group(scope: str, filename: str, record: int) -> str:
    parts = directory_of(filename).rsplit("_", 2)
    if len(parts) < 3 or not parts[1].isdigit():
        raise UserError(
            f"--scope {scope} needs files in directories named <subreddit>_<year>_<number>, but "
            f"record {record} has the file name {filename!r}."
        )
    return _DIRECTORY_SCOPES[scope](parts[0], parts[1])


def _labels(source: Source) -> list[int | None]:
    """Returns the first label of each record."""
    labels = [None if label < 0 else label for label in source.labels().tolist()]
    if not any(label is not None for label in labels):
        raise UserError(f"--scope label needs labels, but {source.name} has none.")
    return labels


def _column(path: str, column: str, filenames: Sequence[str]) -> list[Any]:
    """Returns the value of a column for each record, joined by its file name."""
    values: dict[str, Any] = {}
    columns: dict[str, None] = {}  # JSON lines may lack some
    key = None
    for _, row in tables.rows(path):
        columns |= dict.fromkeys(row)
        key = key or next((name for name in _FILE_COLUMNS if name in row), None)
        if key in row:
            value = row.get(tables.column_names(row, column.lower()).get(column.lower()))
            values[str(row[key])] = None if value is None or value == "" else str(value)
    if key is None or column not in columns:
        missing = column if column not in columns else " or ".join(_FILE_COLUMNS)
        raise UserError(
            f"--scope {path}:{column}: the table has no column {missing}. Its columns: "
            f"{', '.join(map(str, columns)) or 'none'}."
        )
    groups = [values.get(name) for name in filenames]
    if all(value is None for value in groups):
        example = repr(filenames[0]) if filenames else "none, it has no records"
        raise UserError(
            f"--scope {path}:{column}: no row names a file of the dataset in the column {key}. "
            f"First file of the dataset: {example}."
        )
    return groups
