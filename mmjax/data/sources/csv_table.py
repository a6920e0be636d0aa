"""The source `csv:FILE`: a table of image paths and labels.

Columns: `path`, relative to the table; `label`; and optionally `split` (default: train). Others are
listed in a warning and not read. The table and its labels follow the rules of all tables, see
`mmjax.data.storage.tables` and `class_labels`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os

from absl import logging

from mmjax.data.sources.image_list import ImageListSource, image_info, numbered_class_names
from mmjax.data.sources.split_slicing import match_split
from mmjax.data.storage import class_labels, directories, tables
from mmjax.errors import UserError

_REQUIRED = ("path", "label")
_EXPECTED = "Expected one row per image with the columns path and label, and optionally split"


@dataclasses.dataclass(frozen=True)
class _Row:
    path: str
    label: str
    split: str
    line: int


def open_csv(path: str, *, split: str) -> ImageListSource:
    """Opens a split of a table of images.

    Args:
      path: The table.
      split: Name of the split, or a synonym of it.

    Raises:
      UserError: A missing file, column or split, or a row without a path or label.
    """
    path, rows = _read_table(path)
    splits: dict[str, list[_Row]] = {}
    for row in rows:
        splits.setdefault(row.split, []).append(row)
    name = match_split(split, splits)
    if name is None:
        raise UserError(f"{path} has no split {split!r}. Its splits: {', '.join(splits)}.")
    first = {row.label: f"{path}, line {row.line}" for row in reversed(rows)}
    names = class_labels.class_names(first)
    if names is None:
        index = {label: class_labels.class_number(label) for label in first}
        names = numbered_class_names(max(index.values()) + 1, path)
    else:
        index = {label: n for n, label in enumerate(names)}
    directory = os.path.dirname(path)
    images = [
        (directories.existing_path(os.path.join(directory, row.path)), index[row.label])
        for row in splits[name]
    ]
    lines = [f"{path}, line {row.line}" for row in splits[name]]
    counts = {key: len(rows) for key, rows in splits.items()}
    return ImageListSource(image_info(path, counts, names), split, images, lines=lines)


def csv_splits(path: str) -> list[str]:
    """Returns the splits of a table of images, in the order in which they occur."""
    return list(dict.fromkeys(row.split for row in _read_table(path)[1]))


def _read_table(path: str) -> tuple[str, list[_Row]]:
    """Returns the expanded path and the rows of a table."""
    path = os.path.expanduser(path)
    rows: list[_Row] = []
    ignored: set[str] = set()
    for line, cells in tables.cells(path):
        names = tables.column_names((column for column, _ in cells), *_REQUIRED, "split")
        _check_columns(path, [column for column, _ in cells], names)
        row = dict(reversed(cells))  # of equal names, the first
        ignored |= {name or "''" for name in row if name not in names.values()}
        values = {key: row[name] for key, name in names.items() if row[name] is not None}
        for name in _REQUIRED:
            if values.get(name, "") == "":
                raise UserError(f"{path}, line {line}, has no {name}.")
            if isinstance(values[name], list | dict):
                raise UserError(
                    f"{path}, line {line}: the {name} must be one text or number; got "
                    f"{type(values[name]).__name__}."
                )
        split = str(values.get("split", "")).strip() or "train"
        label = class_labels.clean(values["label"])
        rows.append(_Row(str(values["path"]).strip(), label, split, line))
    if not rows:
        raise UserError(f"{path} has no rows below its header. {_EXPECTED}.")
    if ignored:
        _warn_of_ignored(path, ", ".join(sorted(ignored)))
    return path, rows


@functools.cache  # the same table is opened for each split and evaluator
def _warn_of_ignored(path: str, columns: str) -> None:
    logging.warning(
        "%s has columns that are not read: %s. A table of images has the columns path, label and "
        "split. For captions, audio, video or parts of files, use `mmjax build --csv`.",
        path,
        columns,
    )


def _check_columns(path: str, columns: list[str], names: dict[str, str]) -> None:
    """Raises UserError if a column is missing, or misspelled so that it would be ignored."""
    existing = ", ".join(columns) or "none"
    for name in _REQUIRED:
        if name not in names:
            raise UserError(f"{path} has no column {name!r}. Its columns: {existing}. {_EXPECTED}.")
    lower = [column.lower() for column in columns]
    if "split" not in names and (near := difflib.get_close_matches("split", lower, 1, 0.8)):
        raise UserError(f"{path} has a column {near[0]!r}. Did you mean 'split'? Rename it.")
