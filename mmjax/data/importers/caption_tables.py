"""Reads images with captions from one table, or from LGSSL's dictionary (.json)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax.data.build import manifest, splits
from mmjax.data.importers.annotations import iterate_json, location
from mmjax.data.importers.caption_files import (
    EMPTY_CAPTION,
    CaptionedImage,
    normalize_captions,
    table_values,
)
from mmjax.data.storage import tables
from mmjax.errors import UserError

# Usual column names in order of precedence, in lower case.
PATH_COLUMNS = (
    *("path", "image_path", "image", "file_name", "filename", "filepath", "file_path", "file"),
    *("img_path", "img", "image_file", "relative_path", "key"),
)
CAPTION_COLUMNS = (
    *("caption", "text", "sentence", "title", "captions", "raw_caption", "description"),
)


def read_table(
    path: str,
    *,
    split: str,
    path_column: str | None = None,
    caption_column: str | None = None,
    keep: Sequence[str] | None = None,
) -> Iterator[CaptionedImage]:
    """Yields the images of a table or of LGSSL's dictionary, including unusable ones.

    Args:
      path: .csv, .tsv, .jsonl, .parquet, or .json for LGSSL's dictionary.
      split: Split of images for which the table defines none.
      path_column: Column of the image path; None to find it by its name.
      caption_column: Column of the caption; None to find it by its name.
      keep: Columns to keep as additional columns; None for all.

    Raises:
      UserError: The file is missing or malformed, has another suffix, or lacks a column.
    """
    if not os.path.isfile(path):
        raise UserError(f"--table {path}: no such file.")
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".json":
        yield from _read_dictionary(path, split)
        return
    if suffix not in tables.SUFFIXES:
        raise UserError(
            f"--table {path}: the file must end in {', '.join(tables.SUFFIXES)}, or in .json for "
            "LGSSL's dictionary."
        )
    columns = None
    for number, row in tables.rows(path):
        if columns is None:
            columns = _Columns(
                path,
                list(row),
                split=split,
                path_column=path_column,
                caption_column=caption_column,
                keep=keep,
            )
        yield columns.parse(number, row)


class _Columns:
    """Assigns meanings to the columns of a table. For the arguments see `read_table`."""

    def __init__(
        self,
        file: str,
        names: Sequence[str],
        *,
        split: str,
        path_column: str | None,
        caption_column: str | None,
        keep: Sequence[str] | None,
    ):
        self._file, self._default_split = file, split
        self._path = _find_column(file, names, path_column, PATH_COLUMNS, "path")
        others = [name for name in names if name != self._path]
        self._caption = _find_column(file, others, caption_column, CAPTION_COLUMNS, "caption")
        for name in keep or ():
            if name not in names:
                raise UserError(f"--keep {name}: no such column in {file}: {', '.join(names)}.")
        used = {self._path, self._caption, "split"}
        kept = (name for name in (names if keep is None else keep) if name not in used)
        self._kept = {name: manifest.unreserved_column(name) for name in kept}

    def parse(self, number: int, row: Mapping[str, Any]) -> CaptionedImage:
        """Returns the image of a row."""
        path, line = row.get(self._path), location(self._file, number)
        if path is not None and not isinstance(path, str):
            raise UserError(
                f"{line}: the column {self._path!r} must contain the path of an image; got "
                f"{type(path).__name__}. Choose another column with --path-column. Images in "
                "the table itself must be written to files first."
            )
        captions = normalize_captions(row.get(self._caption))
        directory, file = os.path.split(path or "")
        try:
            split = splits.check_splits(str(row.get("split") or self._default_split))
        except ValueError as error:
            raise UserError(f"{line}: {error}.") from error
        problem = "" if captions else EMPTY_CAPTION
        return CaptionedImage(
            name=path or location(os.path.basename(self._file), number),
            path=path or "",
            directory=directory.replace(os.sep, "/"),
            instance=os.path.splitext(file)[0],
            captions=captions,
            split=split,
            location=location(os.path.basename(self._file), number),
            extra=table_values({new: row.get(name) for name, new in self._kept.items()}),
            problem=problem if path else "rows without a path",
        )


def _find_column(
    file: str, names: Sequence[str], name: str | None, usual: Sequence[str], role: str
) -> str:
    """Returns the name of the column for a path or a caption."""
    if name:
        if name not in names:
            raise UserError(
                f"--{role}-column {name}: no such column in {file}: {', '.join(names)}."
            )
        return name
    by_lower_case = {name.lower(): name for name in reversed(names)}
    for candidate in usual:
        if candidate in by_lower_case:
            return by_lower_case[candidate]
    raise UserError(
        f"{file} has no column with a usual name of a {role} ({', '.join(usual)}). Columns found: "
        f"{', '.join(names) or 'none'}. Choose one with --{role}-column NAME."
    )


def _read_dictionary(path: str, split: str) -> Iterator[CaptionedImage]:
    """Yields the images of {directory: {instance: [path, caption]}}."""
    for directory, instances in iterate_json(path):
        if not isinstance(instances, dict):
            raise UserError(
                f"{path}: the value of {directory!r} must be an object {{instance: [path, "
                f"caption]}}; got {type(instances).__name__}."
            )
        for instance, pair in instances.items():
            entry = f"{os.path.basename(path)}, {directory}/{instance}"
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
                raise UserError(f"{entry}: expected [path, caption].")
            captions = normalize_captions(pair[1])
            yield CaptionedImage(
                name=pair[0],
                path=pair[0],
                directory=directory,
                instance=instance,
                captions=captions,
                split=split,
                location=entry,
                problem="" if captions else EMPTY_CAPTION,
            )
