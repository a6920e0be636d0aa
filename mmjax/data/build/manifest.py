"""Reads the list of clips to build from a table of media files."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence

from mmjax import errors
from mmjax.data.build import splits
from mmjax.data.storage import class_labels, tables
from mmjax.errors import UserError

MEDIA = ("path", "video", "image", "audio")  # columns of media files
COLUMNS = (
    *MEDIA,
    *("start", "end", "caption", "label", "split", "touch", "background", "crop", "mask"),
)
_COLUMN = re.compile(rf"({'|'.join(COLUMNS)}|captions|labels)[ _]?\d*")
_MULTIPLE = ("caption", "label", "touch")  # columns whose cells may contain several values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """One example to build: a part of a media file with its annotations.

    Attributes:
      path: File with frames, and audio unless `audio` is set, relative to the media root; '' for an
        example without frames.
      start: Start in seconds; None for the start of the file.
      end: End in seconds; None for the end of the file.
      captions: The best caption first.
      labels: Class names, or class indices as text.
      split: Name of the split, or several joined by '+'.
      line: Line of the table, starting at 1; for a directory of images, the index of the image.
      touch: Touch images, as paths like `path`.
      background: Background of the touch images, that is, an image without contact; '' for none.
      crop: (top, left, height, width) in pixels of the image; None for the whole image.
      audio: File with the audio, if it is not the audio of `path`; '' otherwise.
      mask: Segmentation mask of the image in `path`; see `mmjax.data.build.masks`. '' for none.
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
    audio: str = ""
    mask: str = ""

    @property
    def file(self) -> str:
        """The path or, without one, the audio or the first touch image."""
        return self.path or self.audio or self.touch[0]

    @property
    def files(self) -> tuple[str, ...]:
        """All files of the clip."""
        paths = (self.path, self.audio, *self.touch, self.background, self.mask)
        return tuple(path for path in paths if path)

    def location(self, table: str) -> str:
        """Returns 'TABLE, line N' for messages, or the file of the clip if `table` is ''."""
        return f"{table}, line {self.line}" if table else self.file


def read_table(
    path: str,
    *,
    separator: str = "|",
    split: str = "train",
    ignore_columns: Sequence[str] = (),
) -> list[Clip]:
    """Returns the clips of a table with the columns `COLUMNS`.

    Args:
      path: .csv, .tsv, .jsonl or .parquet. A row needs a file in one of the columns `MEDIA` or in
        `touch`. Captions, labels and touch images may have several columns (caption, caption, or
        caption, caption2).
      separator: Separator of several captions, labels or touch images in one cell; '' for none.
      split: Split of rows that do not specify one.
      ignore_columns: Names of columns to ignore, or patterns (`*`) of unknown columns.

    Raises:
      UserError: The table is missing or malformed, or has an unknown column; the message names the
        line or column.
    """
    if not os.path.exists(path):
        raise UserError(f"--csv {path}: no such file.")
    columns = _Columns(path, ignore_columns)
    clips = []
    spellings: dict[frozenset[str], str] = {}  # a+b and b+a are stored in the same shards
    for number, row in tables.cells(path):
        try:
            clip = _parse_clip(columns.select(row), number, separator, split)
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}, line {number}: {error}.") from error
        name = spellings.setdefault(frozenset(clip.split.split("+")), clip.split)
        clips.append(clip if name == clip.split else dataclasses.replace(clip, split=name))
    if not clips:
        raise UserError(f"--csv {path}: the table has no rows below its header.")
    columns.check_ignored()
    return clips


def number_labels(
    clips: Sequence[Clip], names: Sequence[str] | None = None, *, table: str = ""
) -> tuple[list[Clip], dict[str, int]]:
    """Returns the clips and `{class name: index}`, empty if the labels are class numbers.

    Class numbers are whole in the clips that are returned: '3' instead of '3.0'.

    Args:
      clips: All clips of all splits.
      names: Class names in order. None for the labels that occur; see `class_labels`.
      table: The table, for messages; '' for a directory of images, where labels are names unless
        all are numbers.

    Raises:
      UserError: A label is not one of `names`, or only some labels of a table are numbers.
    """
    used: dict[str, str] = {}
    for clip in clips:
        for label in clip.labels:
            used.setdefault(label, clip.location(table))
    if names is None:
        numbers = all(class_labels.class_number(label) is not None for label in used)
        names = sorted(used) if not (table or numbers) else class_labels.class_names(used)
        if names is not None:
            return list(clips), {name: index for index, name in enumerate(names)}
        as_number = {label: str(class_labels.class_number(label)) for label in used}
        return [
            dataclasses.replace(clip, labels=tuple(as_number[label] for label in clip.labels))
            if clip.labels
            else clip
            for clip in clips
        ], {}
    names = [class_labels.clean(name) for name in names]
    for label, location in used.items():
        if label not in names:
            near = difflib.get_close_matches(label, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"{location}: the label {label!r} is not one of the {len(names)} classes.{hint}"
            )
    return list(clips), {name: index for index, name in enumerate(names)}


def unreserved_column(name: str) -> str:
    """Returns the name of a column, with a prefix if `read_table` would read it."""
    return f"kept_{name}" if _COLUMN.fullmatch(name.lower()) else name


class _Columns:
    """Selects the columns that are read; refuses unknown ones.

    Args:
      path: The table.
      ignored: Names or patterns of columns to ignore.
    """

    def __init__(self, path: str, ignored: Sequence[str]):
        self._path = path
        self._ignored = [pattern.strip().lower() for pattern in ignored]
        self._names: dict[str, str] = {}  # of all columns; '' for those that are ignored
        self._checked: set[tuple[str, ...]] = set()

    def select(self, row: Sequence[tuple[str, object]]) -> list[tuple[str, object]]:
        """Returns (field, cell) of the columns of a row that are read.

        Raises:
          UserError: A column is unknown, or no column has a file.
        """
        columns = tuple(column for column, _ in row)
        if columns not in self._checked:
            self._check(columns, row)
            self._checked.add(columns)
        return [(self._names[column], cell) for column, cell in row if self._names[column]]

    def _check(self, columns: Sequence[str], row: Sequence[tuple[str, object]]) -> None:
        unknown = []
        for n, (column, cell) in enumerate(row, 1):
            name = column.strip().lower() or f"column {n}"
            match = _COLUMN.fullmatch(name)
            ignored = name in self._ignored
            if not match:
                ignored = any(fnmatch.fnmatchcase(name, pattern) for pattern in self._ignored)
            self._names[column] = match[1].removesuffix("s") if match and not ignored else ""
            if not (match or ignored or not column and cell in ("", None)):
                unknown.append(column or name)
        if not {*MEDIA, "touch"} & {self._names[column] for column in columns}:
            names = ", ".join(map(repr, (*MEDIA, "touch")))
            raise UserError(
                f"{self._path} needs a column with files: {names}. Columns "
                f"found: {', '.join(columns) or 'none'}. The first line must name the columns: "
                f"{', '.join(COLUMNS)}."
            )
        if unknown:
            near = _similar(unknown[0].lower())
            hint = f" Did you mean {near[0]!r} instead of {unknown[0]!r}?" if near else ""
            raise UserError(
                f"{self._path} has columns that mmjax does not know: {', '.join(unknown)}.{hint} "
                f"Known columns: {', '.join(COLUMNS)}. Rename the columns, or ignore them with "
                f"--ignore-columns {shlex.quote(','.join(unknown))}."
            )

    def check_ignored(self) -> None:
        """Raises UserError for a name to ignore that no row has."""
        names = [name.strip().lower() or f"column {n}" for n, name in enumerate(self._names, 1)]
        for pattern in self._ignored:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise errors.unknown(
                    f"column in --ignore-columns for {self._path}:", pattern, names
                )


def _similar(column: str) -> list[str]:
    """Returns the column that is most similar to an unknown name, as a list of at most one."""
    return difflib.get_close_matches(column, COLUMNS, 1, 0.75)


def _parse_clip(row: list[tuple[str, object]], line: int, separator: str, split: str) -> Clip:
    """Returns the clip of a row of (field, cell); raises ValueError if a cell is malformed."""
    fields: dict[str, list[str]] = {}
    for name, cell in row:
        values = cell if isinstance(cell, list) else [] if cell is None else [cell]
        if any(isinstance(value, dict | list) for value in values):
            raise ValueError(f"the column {name} must contain text or a list of texts")
        clean = class_labels.clean if name == "label" else lambda value: str(value).strip()
        values = [clean(value) for value in values]
        if name in _MULTIPLE and separator and isinstance(cell, str):
            values = [part.strip() for value in values for part in value.split(separator)]
        fields.setdefault(name, []).extend(value for value in values if value)
    for name in fields:
        if name not in (*_MULTIPLE, "crop") and len(fields[name]) > 1:
            raise ValueError(
                f"the column {name} must have one value; got {', '.join(fields[name])}"
            )
    one = {name: values[0] for name, values in fields.items() if values}
    path, audio = _media_files(one)
    touch = fields.get("touch", [])
    if not (path or audio or touch):
        raise ValueError(" and ".join(n for n in (*MEDIA, "touch") if n in fields) + " are empty")
    if "background" in one and not touch:
        raise ValueError(f"the background {one['background']} has no touch image")
    for name in ("crop", "mask"):
        if name in one and not path:
            raise ValueError(f"the {name} needs a path of an image")
    if "crop" in one and "mask" in one:
        raise ValueError("a row with a crop cannot have a mask")
    start, end = (_parse_seconds(one[name]) if name in one else None for name in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise ValueError(f"the end {end:g} s is not after the start {start or 0:g} s")
    return Clip(
        path=path,
        start=start,
        end=end,
        captions=tuple(fields.get("caption", ())),
        labels=tuple(fields.get("label", ())),
        split=splits.check_splits(one.get("split", split)),
        line=line,
        touch=tuple(touch),
        background=one.get("background", ""),
        crop=_parse_crop(fields["crop"]) if "crop" in one else None,
        audio=audio,
        mask=one.get("mask", ""),
    )


def _media_files(one: Mapping[str, str]) -> tuple[str, str]:
    """Returns the file with frames and that with separate audio, each '' without one.

    A file in `path` or `video` has both, unless another column has a file for one of them.
    """
    path, video, image, audio = (one.get(name, "") for name in MEDIA)
    if video and image:
        raise ValueError(
            f"the video {video} and the image {image} cannot be in one row: an example has one "
            "sequence of frames. Write two rows"
        )
    frames = video or image
    if path and frames and audio:
        raise ValueError(
            f"the path {path} has no use, because the row has separate files for frames "
            f"({frames}) and audio ({audio}). Leave it empty"
        )
    return (frames, path) if path and frames else (path or frames, audio)


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
