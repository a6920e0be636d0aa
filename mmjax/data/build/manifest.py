"""What to build: a table of media files, or a folder of images, as a list of clips.

A clip is a stretch of one file with its captions and labels. Everything here is a pure function of
the table, the options and, where films are cut or split by time, their durations.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import os
import re
from collections.abc import Iterable, Sequence

from mmjax.data.storage import directories, image_files, tables
from mmjax.errors import UserError

_COLUMN = re.compile(r"^(path|start|end|split|captions?|labels?|touch|background|crop)[ _]?\d*$")
_SEVERAL = ("caption", "label", "touch")  # columns whose cells may hold several values
SPLIT_DIRECTORIES = ("train", "val", "valid", "validation", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """One example to be built.

    Attributes:
      path: as in the table, relative to the media root; '' = touch images alone.
      start, end: seconds; None = the start and the end of the file.
      captions: the best first.
      labels: class names, or class numbers as text.
      split: its name, or several joined by '+'.
      row: line of the table (the first is 1), for messages.
      touch: touch images, paths like `path`.
      background: of the touch images: the sensor untouched; '' = none.
      crop: (top, left, height, width) in pixels of the image; None = all of it.
    """

    path: str
    start: float | None = None
    end: float | None = None
    captions: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    split: str = "train"
    row: int = 0
    touch: tuple[str, ...] = ()
    background: str = ""
    crop: tuple[int, int, int, int] | None = None

    @property
    def file(self) -> str:
        """What names the clip: its path or, where touch is all there is, its first image."""
        return self.path or self.touch[0]


def read_table(path: str, *, separator: str = "|", split: str = "train") -> list[Clip]:
    """The rows of a table: path, start, end, caption, label, split, touch, background, crop.

    Args:
      path: .csv, .tsv, .jsonl or .parquet. Only `path` or `touch` is needed. Captions, labels and
        touch may have several columns (caption, caption, or caption, caption2).
      separator: between several captions, labels or touch images in one cell; '' = none.
      split: for rows that name none.

    Raises:
      UserError: names the line and what is wrong with it.
    """
    if not os.path.exists(path):
        raise UserError(f"There is no table {path}.")
    clips = []
    spelled: dict[frozenset[str], str] = {}  # a+b and b+a are one group of shards
    for number, row in _rows(path):
        try:
            clip = _clip(row, number, separator, split)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        name = spelled.setdefault(frozenset(clip.split.split("+")), clip.split)
        clips.append(clip if name == clip.split else dataclasses.replace(clip, split=name))
    if not clips:
        raise UserError(f"{path} has no rows.")
    return clips


def read_image_directory(directory: str, *, split: str = "train") -> list[Clip]:
    """The images of `directory/class/**`, `directory/split/class/**`, or a folder without classes.

    Subfolders called train, val, valid, validation or test are splits if there are no others. A
    text `x.txt` beside an image `x.jpg` holds its captions, one per line.

    Raises:
      UserError: no such folder, or no images in it.
    """
    if not os.path.isdir(directory):
        raise UserError(f"There is no folder {directory}.")
    found = []
    for root, _, files in directories.walk(directory):
        parts = os.path.relpath(root, directory).split(os.sep) if root != directory else []
        found += [(parts, file) for file in sorted(files) if image_files.is_image(file)]
    if not found:
        raise UserError(f"There are no images in {directory}.")
    tops = {parts[0] if parts else "" for parts, _ in found}
    by_split = tops <= set(SPLIT_DIRECTORIES)
    clips = []
    for number, (parts, file) in enumerate(found, 1):
        classes = parts[1:] if by_split else parts
        path = os.path.join(*parts, file)
        clips.append(
            Clip(
                path=path,
                captions=_sidecar(os.path.join(directory, path)),
                labels=tuple(classes[:1]),
                split=parts[0] if by_split else split,
                row=number,
            )
        )
    return clips


def cut(
    clips: Sequence[Clip],
    *,
    durations: dict[str, float],
    clip_seconds: float | None,
    by_time: Sequence[tuple[str, float]] = (),
) -> list[Clip]:
    """Cuts rows into consecutive clips and splits files by time.

    Args:
      clips: the rows.
      durations: seconds by path. A row whose file is not in it, or ends before the row begins, is
        left as it is: building it reports what is wrong.
      clip_seconds: length of the clips; None = rows stay whole. A remainder of at least half a clip
        is kept, and a row that is shorter than a clip.
      by_time: (split, fraction) in order of time: no clip crosses the border between two. Rows that
        stay whole go where their middle is.

    Raises:
      UserError: a split by time of rows that are whole files, without `clip_seconds`.
    """
    result = []
    for clip in clips:
        duration = durations.get(clip.path)
        if duration is None or (clip.start or 0.0) >= duration:
            result.append(clip)
            continue
        start, end = clip.start or 0.0, min(clip.end or math.inf, duration)
        if by_time and not clip_seconds:
            if clip.start is None and clip.end is None:
                raise UserError(
                    f"Line {clip.row} is the whole file {clip.path}, which cannot be split by "
                    "time. Give --clip-seconds to cut it, or use --split-by-file."
                )
            middle = (start + end) / 2 / duration
            split = next(
                (
                    name
                    for (name, _), edge in zip(by_time, _edges(by_time), strict=True)
                    if middle < edge
                ),
                by_time[-1][0],
            )
            result.append(dataclasses.replace(clip, split=split))
            continue
        parts = [(clip.split, start, end)]
        if by_time:
            edges = [edge * duration for edge in _edges(by_time)]
            parts = [
                (name, max(start, low), min(end, high))
                for (name, _), low, high in zip(by_time, [0.0, *edges], edges, strict=False)
            ]
        for split, low, high in parts:
            count = math.floor((high - low) / clip_seconds + 0.5 + 1e-9)
            for k in range(count if by_time else max(count, 1)):
                a, b = low + k * clip_seconds, min(low + (k + 1) * clip_seconds, high)
                # Microseconds, as they are stored: sums of fractions differ in the last digit.
                result.append(
                    dataclasses.replace(clip, split=split, start=round(a, 6), end=round(b, 6))
                )
    return result


def split_by_file(clips: Sequence[Clip], fractions: Sequence[tuple[str, float]]) -> list[Clip]:
    """Assigns whole files to splits by a hash of their path: adding files moves no other file."""

    def split_of(path: str) -> str:
        value = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64
        edges = zip(fractions, _edges(fractions), strict=True)
        return next((name for (name, _), edge in edges if value < edge), fractions[-1][0])

    return [dataclasses.replace(clip, split=split_of(clip.file)) for clip in clips]


def parse_fractions(text: str | None) -> tuple[tuple[str, float], ...]:
    """Returns 'train:0.8,test:0.2' as (('train', 0.8), ('test', 0.2)), and None or '' as ().

    Raises:
      UserError: The text has a different form, or the fractions do not add up to 1.
    """
    if not text:
        return ()
    try:
        pairs = [part.split(":") for part in text.split(",")]
        fractions = tuple((check_split(name.strip()), float(value)) for name, value in pairs)
    except ValueError as error:
        raise UserError(f"{text!r} is not a list of fractions like train:0.8,test:0.2.") from error
    total = sum(value for _, value in fractions)
    if abs(total - 1) > 1e-6 or min(value for _, value in fractions) <= 0:
        raise UserError(
            f"The fractions in {text!r} add up to {total:g}, not to 1, or are not positive."
        )
    return fractions


def parse_part(text: str | None, *, option: str) -> tuple[int, int]:
    """'3/8' as (3, 8), None as (0, 1); UserError names the option if it is anything else."""
    if text is None:
        return 0, 1
    try:
        part, parts = map(int, text.split("/"))
    except ValueError:
        part, parts = -1, 0
    if not 0 <= part < parts:
        raise UserError(f"{option} {text}: write I/N with 0 ≤ I < N, for example 0/8.")
    return part, parts


def class_numbers(clips: Iterable[Clip], names: Sequence[str] | None = None) -> dict[str, int]:
    """The number of each class by its name; empty if the labels are class numbers themselves.

    Args:
      clips: all of them, of all splits.
      names: the classes in order of their numbers; None = the labels that occur, in alphabetical
        order, unless all are whole numbers.

    Raises:
      UserError: a label that is not among `names`.
    """
    used: dict[str, int] = {}
    for clip in clips:
        for label in clip.labels:
            used.setdefault(label, clip.row)
    if names is None:
        names = [] if all(label.isdecimal() for label in used) else sorted(used)
        return {name: number for number, name in enumerate(names)}
    for label, row in used.items():
        if label not in names:
            near = difflib.get_close_matches(label, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(
                f"Line {row}: the label {label!r} is none of the {len(names)} classes.{hint}"
            )
    return {name: number for number, name in enumerate(names)}


def check_split(name: str) -> str:
    """The name, if it can be part of a file name; ValueError otherwise."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(
            f"the split {name!r} has characters other than letters, digits, '_', '-', '.'"
        )
    return name


def check_splits(names: str) -> str:
    """Several splits joined by '+', each of them once; ValueError as `check_split`."""
    return "+".join(dict.fromkeys(check_split(name.strip()) for name in names.split("+")))


def _rows(path: str) -> Iterable[tuple[int, list[tuple[str, object]]]]:
    """(line number, [(column, cell)]); a column may come twice."""
    checked: set[tuple[str, ...]] = set()
    named_by_hand = tables.suffix_of(path) in ("", ".csv", ".tsv")
    for number, cells in tables.cells(path):
        if named_by_hand:
            cells = [(column.lower(), cell) for column, cell in cells]
        columns = tuple(column for column, _ in cells)
        if columns not in checked:
            _check_columns(path, columns)
            checked.add(columns)
        yield number, cells


def unreserved_column(name: str) -> str:
    """The name if a column of that name is ignored here, or another one of which that is true."""
    return f"kept_{name}" if _COLUMN.match(name) or _like(name) else name


def _like(column: str) -> list[str]:
    """The columns that a name is likely to be meant for, if it is none of them."""
    return difflib.get_close_matches(
        column, ("start", "end", "caption", "label", "split"), 1, 0.75
    ) or difflib.get_close_matches(column, ("touch", "background", "crop"), 1, 0.85)


def _check_columns(path: str, columns: Sequence[str]) -> None:
    if not {"path", "touch"} & set(columns):
        raise UserError(
            f"{path} has no column 'path'. It has: {', '.join(columns) or 'nothing'}. The first "
            "line names the columns: path, start, end, caption, label, split, touch, background, "
            "crop; all but path may be left out, and path too where there is touch."
        )
    for column in columns:
        if not _COLUMN.match(column) and (near := _like(column)):
            raise UserError(f"{path} has a column {column!r}. Did you mean {near[0]!r}?")


def _clip(row: list[tuple[str, object]], number: int, separator: str, split: str) -> Clip:
    fields: dict[str, list] = {}
    for column, cell in row:
        if match := _COLUMN.match(column):
            values = cell if isinstance(cell, list) else [] if cell is None else [cell]
            values = [str(value).strip() for value in values]
            name = match[1].rstrip("s")
            if name in _SEVERAL and separator and isinstance(cell, str):
                values = [part.strip() for value in values for part in value.split(separator)]
            fields.setdefault(name, []).extend(value for value in values if value)
    touch, background = fields.get("touch", []), fields.get("background", [""])
    if not fields.get("path") and not touch:
        raise ValueError("the path is empty" + (", and so is touch" if "touch" in fields else ""))
    if any(background) and not touch:
        raise ValueError(f"{background[0]} is the background of no touch image")
    if fields.get("crop") and not fields.get("path"):
        raise ValueError("there is a crop but no path of an image to cut")
    start, end = (
        _seconds(fields[name][0]) if fields.get(name) else None for name in ("start", "end")
    )
    if end is not None and end <= (start or 0):
        raise ValueError(f"the clip ends at {end:g} s, not after its start at {start or 0:g} s")
    return Clip(
        path=(fields.get("path") or [""])[0],
        start=start,
        end=end,
        captions=tuple(fields.get("caption", ())),
        labels=tuple(fields.get("label", ())),
        split=check_splits((fields.get("split") or [split])[0]),
        row=number,
        touch=tuple(touch),
        background=(background or [""])[0],
        crop=_crop(fields["crop"]) if fields.get("crop") else None,
    )


def _crop(values: Sequence[str]) -> tuple[int, int, int, int]:
    """Four whole numbers, from a list or from text."""
    numbers = re.split(r"[\s,;]+", " ".join(values).strip("[]() "))
    try:
        top, left, height, width = map(int, numbers)
        if min(height, width) < 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"the crop {', '.join(values)!r} is not top, left, height and width in whole pixels"
        ) from None
    return top, left, height, width


def _seconds(text: str) -> float:
    """Seconds, or [hours:]minutes:seconds."""
    try:
        value = 0.0
        for part in text.split(":"):
            value = value * 60 + float(part)
    except ValueError:
        raise ValueError(
            f"{text!r} is no time; write seconds (12.5) or hours:minutes:seconds"
        ) from None
    if not 0 <= value < math.inf:
        raise ValueError(f"the time {text} is negative or not finite")
    return value


def _sidecar(image: str) -> tuple[str, ...]:
    path = os.path.splitext(image)[0] + ".txt"
    if not os.path.exists(path):
        return ()
    with open(path, encoding="utf-8-sig") as file:
        return tuple(line.strip() for line in file if line.strip())


def _edges(fractions: Sequence[tuple[str, float]]) -> list[float]:
    total, edges = 0.0, []
    for _, value in fractions:
        total += value
        edges.append(total)
    return edges
