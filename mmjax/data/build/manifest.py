"""Reads the list of clips to build: a table of media files, or a directory of images."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Iterable, Sequence

from mmjax.data.build import splits
from mmjax.data.storage import directories, image_files, tables
from mmjax.errors import UserError

COLUMNS = ("path", "start", "end", "caption", "label", "split", "touch", "background", "crop")
_COLUMN = re.compile(r"^(path|start|end|split|captions?|labels?|touch|background|crop)[ _]?\d*$")
_MULTIPLE = ("caption", "label", "touch")  # columns whose cells may contain several values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """One example to build: a part of a media file with its annotations.

    Attributes:
      path: Media file, relative to the media root; '' for an example with only touch images.
      start: Start in seconds; None for the start of the file.
      end: End in seconds; None for the end of the file.
      captions: The best caption first.
      labels: Class names, or class indices as text.
      split: Name of the split, or several joined by '+'.
      line: Line of the table, starting at 1; for a directory of images, the index of the image.
      touch: Touch images, as paths like `path`.
      background: Background of the touch images, that is, an image without contact; '' for none.
      crop: (top, left, height, width) in pixels of the image; None for the whole image.
    """

    path: str
    start: float | None = None
    end: float | None = None
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    split: str = "train"
    line: int = 0
    touch: tuple[str, ...] = ()
    background: str = ""
    crop: tuple[int, int, int, int] | None = None

    @property
    def file(self) -> str:
        """The path or, if only touch images exist, the first of them."""
        return self.path or self.touch[0]

    def location(self, table: str) -> str:
        """Returns 'TABLE, line N' for messages, or the file of the clip if `table` is ''."""
        return f"{table}, line {self.line}" if table else self.file


def read_table(path: str, *, separator: str = "|", split: str = "train") -> list[Clip]:
    """Returns the clips of a table with the columns `COLUMNS`.

    Args:
      path: .csv, .tsv, .jsonl or .parquet. Only `path` or `touch` is required. Captions, labels and
        touch images may have several columns (caption, caption, or caption, caption2).
      separator: Separator of several captions, labels or touch images in one cell; '' for none.
      split: Split of rows that do not specify one.

    Raises:
      UserError: The table is missing or malformed; the message names the line.
    """
    if not os.path.exists(path):
        raise UserError(f"--csv {path}: no such file.")
    clips = []
    spellings: dict[frozenset[str], str] = {}  # a+b and b+a are stored in the same shards
    for number, row in _rows(path):
        try:
            clip = _parse_clip(row, number, separator, split)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}.") from error
        name = spellings.setdefault(frozenset(clip.split.split("+")), clip.split)
        clips.append(clip if name == clip.split else dataclasses.replace(clip, split=name))
    if not clips:
        raise UserError(f"--csv {path}: the table has no rows below its header.")
    return clips


def read_image_directory(directory: str, *, split: str = "train") -> list[Clip]:
    """Returns the images of `DIR/class/**`, `DIR/split/class/**`, or a directory without classes.

    If all subdirectories are named train, val, valid, validation or test, they are splits. A text
    file `x.txt` next to an image `x.jpg` contains its captions, one per line.

    Args:
      directory: The directory.
      split: Split of the images if there are no split directories.

    Raises:
      UserError: The directory does not exist, or contains no images.
    """
    if not os.path.isdir(directory):
        raise UserError(f"--images {directory}: no such directory.")
    images = []
    for root, _, files in directories.walk(directory):
        parts = os.path.relpath(root, directory).split(os.sep) if root != directory else []
        images += [(parts, file) for file in sorted(files) if image_files.is_image(file)]
    if not images:
        suffixes = [s for s in image_files.IMAGE_SUFFIXES if image_files.is_image(f"x{s}")]
        raise UserError(f"--images {directory}: no image files ({', '.join(suffixes)}).")
    by_split = {parts[0] if parts else "" for parts, _ in images} <= set(splits.SPLIT_DIRECTORIES)
    clips = []
    for number, (parts, file) in enumerate(images, 1):
        classes = parts[1:] if by_split else parts
        path = os.path.join(*parts, file)
        clips.append(
            Clip(
                path=path,
                captions=_read_caption_file(os.path.join(directory, path)),
                labels=tuple(classes[:1]),
                split=parts[0] if by_split else split,
                line=number,
            )
        )
    return clips


def class_indices(
    clips: Iterable[Clip], names: Sequence[str] | None = None, *, table: str = ""
) -> dict[str, int]:
    """Returns `{class name: index}`; empty if the labels are class indices themselves.

    Args:
      clips: All clips of all splits.
      names: Class names in order. None for the labels that occur, in alphabetical order, unless all
        of them are whole numbers.
      table: The table, for messages.

    Raises:
      UserError: A label is not one of `names`.
    """
    used: dict[str, Clip] = {}
    for clip in clips:
        for label in clip.labels:
            used.setdefault(label, clip)
    if names is None:
        names = [] if all(label.isdecimal() for label in used) else sorted(used)
        return {name: index for index, name in enumerate(names)}
    for label, clip in used.items():
        if label not in names:
            near = difflib.get_close_matches(label, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{clip.location(table)}: the label {label!r} is not one of the {len(names)} "
                f"classes.{hint}"
            )
    return {name: index for index, name in enumerate(names)}


def unreserved_column(name: str) -> str:
    """Returns the name of a column, with a prefix if `read_table` would read or refuse it."""
    return f"kept_{name}" if _COLUMN.match(name) or _similar(name) else name


def _rows(path: str) -> Iterable[tuple[int, list[tuple[str, object]]]]:
    """Yields `(line number, [(column, cell)])`; a column may occur more than once."""
    checked: set[tuple[str, ...]] = set()
    ignore_case = tables.suffix_of(path) in ("", ".csv", ".tsv")  # headers typed by people
    for number, cells in tables.cells(path):
        if ignore_case:
            cells = [(column.lower(), cell) for column, cell in cells]
        columns = tuple(column for column, _ in cells)
        if columns not in checked:
            _check_columns(path, columns)
            checked.add(columns)
        yield number, cells


def _similar(column: str) -> list[str]:
    """Returns the column that is most similar to an unknown name, as a list of at most one."""
    return difflib.get_close_matches(
        column, ("start", "end", "caption", "label", "split"), 1, 0.75
    ) or difflib.get_close_matches(column, ("touch", "background", "crop"), 1, 0.85)


def _check_columns(path: str, columns: Sequence[str]) -> None:
    if not {"path", "touch"} & set(columns):
        raise UserError(
            f"{path} needs a column 'path' or 'touch'. Columns found: "
            f"{', '.join(columns) or 'none'}. The first line must name the columns: "
            f"{', '.join(COLUMNS)}."
        )
    for column in columns:
        if not _COLUMN.match(column) and (near := _similar(column)):
            raise UserError(
                f"{path}: unknown column {column!r}. Did you mean {near[0]!r}? Otherwise rename it."
            )


def _parse_clip(row: list[tuple[str, object]], line: int, separator: str, split: str) -> Clip:
    """Returns the clip of a row; raises ValueError if a cell is malformed."""
    fields: dict[str, list] = {}
    for column, cell in row:
        if match := _COLUMN.match(column):
            values = cell if isinstance(cell, list) else [] if cell is None else [cell]
            values = [str(value).strip() for value in values]
            name = match[1].rstrip("s")
            if name in _MULTIPLE and separator and isinstance(cell, str):
                values = [part.strip() for value in values for part in value.split(separator)]
            fields.setdefault(name, []).extend(value for value in values if value)
    touch, background = fields.get("touch", []), fields.get("background", [""])
    if not fields.get("path") and not touch:
        raise ValueError("path and touch are empty" if "touch" in fields else "path is empty")
    if any(background) and not touch:
        raise ValueError(f"the background {background[0]} has no touch image")
    if fields.get("crop") and not fields.get("path"):
        raise ValueError("the crop needs a path of an image")
    start, end = (
        _parse_seconds(fields[name][0]) if fields.get(name) else None for name in ("start", "end")
    )
    if end is not None and end <= (start or 0):
        raise ValueError(f"the end {end:g} s is not after the start {start or 0:g} s")
    return Clip(
        path=(fields.get("path") or [""])[0],
        start=start,
        end=end,
        captions=tuple(fields.get("caption", ())),
        labels=tuple(fields.get("label", ())),
        split=splits.check_splits((fields.get("split") or [split])[0]),
        line=line,
        touch=tuple(touch),
        background=(background or [""])[0],
        crop=_parse_crop(fields["crop"]) if fields.get("crop") else None,
    )


def _parse_crop(values: Sequence[str]) -> tuple[int, int, int, int]:
    """Returns four integers from a list, or from text with any separators."""
    numbers = re.split(r"[\s,;]+", " ".join(values).strip("[]() "))
    try:
        top, left, height, width = map(int, numbers)
        if min(height, width) < 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"the crop {', '.join(values)!r} must be top, left, height and width in whole pixels"
        ) from None
    return top, left, height, width


def _parse_seconds(text: str) -> float:
    """Returns the seconds of '12.5' or '[hours:]minutes:seconds'."""
    try:
        value = 0.0
        for part in text.split(":"):
            value = value * 60 + float(part)
    except ValueError:
        raise ValueError(
            f"the time {text!r} must be in seconds (12.5) or hours:minutes:seconds"
        ) from None
    if not 0 <= value < math.inf:
        raise ValueError(f"the time {text!r} must be finite and not negative")
    return value


def _read_caption_file(image: str) -> tuple[str, ...]:
    path = os.path.splitext(image)[0] + ".txt"
    if not os.path.exists(path):
        return ()
    with open(path, encoding="utf-8-sig") as file:
        return tuple(line.strip() for line in file if line.strip())
