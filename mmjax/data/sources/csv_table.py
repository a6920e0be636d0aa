"""The source `csv:FILE`: a table of image paths and labels.

Columns: `path`, relative to the table; `label`; and optionally `split` (default: train). Labels are
class indices if all of them are whole numbers, else class names, which are indexed alphabetically.
"""

from __future__ import annotations

import csv
import dataclasses
import os

from mmjax.data.sources.image_list import ImageListSource, image_info, numbered_class_names
from mmjax.data.sources.split_slicing import match_split
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
    labels = {row.label for row in rows}
    if all(label.isdecimal() for label in labels):
        index = {label: int(label) for label in labels}
        names = numbered_class_names(max(index.values()) + 1, path)
    else:
        names = sorted(labels)
        index = {label: n for n, label in enumerate(names)}
    directory = os.path.dirname(path)
    images = [(os.path.join(directory, row.path), index[row.label]) for row in splits[name]]
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
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file, skipinitialspace=True)
            columns = table.fieldnames or []
            for name in _REQUIRED:
                if name not in columns:
                    existing = ", ".join(columns) or "none"
                    raise UserError(
                        f"{path} has no column {name!r}. Its columns: {existing}. {_EXPECTED}."
                    )
            for cells in table:
                values = {key: (cells.get(key) or "").strip() for key in (*_REQUIRED, "split")}
                for name in _REQUIRED:
                    if not values[name]:
                        raise UserError(f"{path}, line {table.line_num}, has no {name}.")
                split = values["split"] or "train"
                rows.append(_Row(values["path"], values["label"], split, table.line_num))
    except OSError as error:
        raise UserError(f"csv:{path} cannot be read: {error}. {_EXPECTED}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a CSV table in UTF-8: {error}.") from error
    if not rows:
        raise UserError(f"{path} has a header but no rows. {_EXPECTED}.")
    return path, rows
