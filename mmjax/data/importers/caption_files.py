"""Reads captions of images: from files beside them, tables, and LGSSL's dictionaries."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmjax.data.build import manifest
from mmjax.data.storage import directories, image_files, tables
from mmjax.errors import UserError

NO_PICTURE = "no image"
_EMPTY, _NO_TEXT = "the caption is empty", "no file with a caption"
_SECOND = "another image of the same name is taken"
# Names of columns, in the order in which they are looked for.
PATHS = ("path", "image_path", "image", "file_name", "filename", "filepath", "file_path", "file")
PATHS += ("img_path", "img", "image_file", "relative_path", "key")
CAPTIONS = ("caption", "text", "sentence", "title", "captions", "raw_caption", "description")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """An image and what is said about it.

    Attributes:
      name: for messages.
      path: relative to the folder of the media.
      directory, instance: LGSSL's names.
      captions: the best first.
      split: its split.
      where: the file and line of the caption.
      more: other columns.
      listed: the image was seen in its folder.
      problem: why it is left out; '' = not at all, so far.
    """

    name: str
    path: str
    directory: str
    instance: str
    captions: tuple[str, ...] = ()
    split: str
    where: str
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    listed: bool = False
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder with files: where it is, its path below the media, its directory and split."""

    place: str
    path: str
    directory: str
    split: str


def find_directories(root: str, split: str) -> Iterator[Folder]:
    """The folders below the root that hold files, by name; the names of splits are no part of a
    directory.

    Args:
      root: of the media. If all its subfolders have names of splits, they are splits.
      split: of everything else.
    """
    tops = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    by_split = bool(tops) and tops <= set(manifest.SPLIT_FOLDERS)
    for place, _, files in directories.walk(root):
        path = "" if place == root else os.path.relpath(place, root)
        # Tables and archives may lie beside the directories.
        if any(map(image_files.is_image, files)) or (files and path):
            parts = path.split(os.sep) if path else []
            own = by_split and bool(parts)
            yield Folder(
                place, path, "/".join(parts[own:]), manifest.check_split(parts[0]) if own else split
            )


def read_directory(directory: Folder, options: argparse.Namespace) -> list[Entry]:
    """The entries of a folder by name, those with problems among them."""
    images: dict[str, str] = {}
    notes: dict[str, str] = {}
    entries = []

    def add(stem: str, file: str, note: str, **changes: Any) -> None:
        name = os.path.join(directory.path, file)
        entries.append(
            Entry(
                name=name,
                path=name,
                directory=directory.directory,
                instance=stem,
                split=directory.split,
                where=os.path.join(directory.path, note),
                listed=True,
                **changes,
            )
        )

    for file in sorted(os.listdir(directory.place)):
        stem, suffix = os.path.splitext(file)
        if file.startswith("."):
            continue
        if suffix in (".json", ".txt"):
            notes.setdefault(stem, file)  # .json goes before .txt
        elif image_files.is_image(file) and images.setdefault(stem, file) != file:
            add(stem, file, file, problem=_SECOND)
    for stem in sorted(images.keys() | notes.keys()):
        image, note = images.get(stem), notes.get(stem)
        if image is None:
            add(stem, note, note, problem=NO_PICTURE)
        elif note is None:
            add(stem, image, image, problem=_NO_TEXT)
        else:
            add(stem, image, note, **_note(os.path.join(directory.place, note), options))
    return entries


def _note(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """The fields of an entry that the file beside an image fills."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            if path.endswith(".txt"):
                return _with(tuple(line.strip() for line in file if line.strip()), {})
            content = json.load(file)
    except (OSError, ValueError):
        return {"problem": f"{os.path.splitext(path)[1]} cannot be read"}
    key = options.caption_column or CAPTIONS[0]
    if not isinstance(content, dict) or key not in content:
        return {"problem": f"no {key!r} in .json"}
    kept = {manifest.free_column(name): content.get(name) for name in options.keep or ()}
    return _with(_texts(content[key]), _plain(kept))


def _with(captions: tuple[str, ...], more: Mapping[str, Any]) -> dict[str, Any]:
    return {"captions": captions, "more": more} if captions else {"problem": _EMPTY}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a table can hold: text, numbers, dates as text."""
    kept = {}
    for name, value in values.items():
        if isinstance(value, datetime.date):
            value = str(value)
        if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
            kept[name] = value
    return kept


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    texts = (" ".join(text.split()) for text in values if isinstance(text, str))
    return tuple(text for text in texts if text)


def read_file(options: argparse.Namespace) -> Iterator[Entry]:
    """The entries of `--table`.

    Raises:
      UserError: a file that is missing, of another kind, or has no column for path or caption.
    """
    path = options.table
    if not os.path.isfile(path):
        raise UserError(f"There is no --table {path}.")
    suffix = os.path.splitext(path)[1].lower()
    if suffix == ".json":
        yield from _dictionary(path, options)
        return
    if suffix not in tables.SUFFIXES:
        raise UserError(
            f"--table {path}: its name ends in {', '.join(tables.SUFFIXES)}, or .json for LGSSL's "
            "dictionary."
        )
    columns = None
    for number, row in tables.rows(path):
        columns = columns or _Columns(path, list(row), options)
        yield columns.entry(number, row)


class _Columns:
    """Which columns of a table are which."""

    def __init__(self, path: str, names: Sequence[str], options: argparse.Namespace):
        self._file, self._split = path, options.split
        self._path = _column(path, names, options.path_column, PATHS, "path")
        others = [name for name in names if name != self._path]
        self._caption = _column(path, others, options.caption_column, CAPTIONS, "caption")
        self._by_split = "split" in names
        kept = names if options.keep is None else options.keep
        for name in options.keep or ():
            if name not in names:
                raise UserError(f"--keep {name}: {path} has {', '.join(names)}.")
        read = {self._path, self._caption, "split"}
        self._kept = {name: manifest.free_column(name) for name in kept if name not in read}

    def entry(self, number: int, row: Mapping[str, Any]) -> Entry:
        path, where = row.get(self._path), f"{os.path.basename(self._file)}:{number}"
        if path is not None and not isinstance(path, str):
            raise UserError(
                f"{self._file}, line {number}: {self._path} is {type(path).__name__}, not the path "
                "of an image. Give --path-column, and write images that are in the table to "
                "files first."
            )
        split = str(row.get("split") or self._split) if self._by_split else self._split
        captions = _texts(row.get(self._caption))
        directory, file = os.path.split(path or "")
        try:
            split = manifest.check_splits(split)
        except ValueError as error:
            raise UserError(f"{self._file}, line {number}: {error}.") from error
        return Entry(
            name=path or where,
            path=path or "",
            directory=directory.replace(os.sep, "/"),
            instance=os.path.splitext(file)[0],
            captions=captions,
            split=split,
            where=where,
            more=_plain({new: row.get(name) for name, new in self._kept.items()}),
            problem="the path is empty" if not path else "" if captions else _EMPTY,
        )


def _column(
    path: str, names: Sequence[str], given: str | None, usual: Sequence[str], kind: str
) -> str:
    if given:
        if given not in names:
            raise UserError(f"--{kind}-column {given}: {path} has {', '.join(names)}.")
        return given
    lower = {name.lower(): name for name in reversed(names)}
    for name in usual:
        if name in lower:
            return lower[name]
    raise UserError(
        f"{path} has no column with the usual name of a {kind} ({', '.join(usual[:5])} …); it has "
        f"{', '.join(names) or 'none'}. Say which one: --{kind}-column NAME."
    )


def _dictionary(path: str, options: argparse.Namespace) -> Iterator[Entry]:
    from mmjax.data.importers.annotations import json_items

    for directory, instances in json_items(path):
        if not isinstance(instances, dict):
            raise UserError(f"{path}: {directory!r} holds no object {{instance: [path, caption]}}.")
        for instance, pair in instances.items():
            where = f"{os.path.basename(path)}, {directory}/{instance}"
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
                raise UserError(f"{where}: not [path, caption].")
            captions = _texts(pair[1])
            yield Entry(
                name=pair[0],
                path=pair[0],
                directory=directory,
                instance=instance,
                captions=captions,
                split=options.split,
                where=where,
                problem="" if captions else _EMPTY,
            )
