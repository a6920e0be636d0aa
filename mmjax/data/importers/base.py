"""What all importers share: from annotated clips and a media folder to a table and a report.

An importer of a dataset is a function that reads its official files and yields `Item`s; what a file
is called, whether it exists, and how a table is written is decided here.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

from tqdm import tqdm

from mmjax.data.importers.annotations import Annotations, lines
from mmjax.data.importers.media_directory import MediaDir
from mmjax.errors import UserError

EVALUATION = "validation+test"  # an official validation set that results are published on


@dataclasses.dataclass(frozen=True)
class File:
    """A name that the media of a clip may have, and where in such a file the clip lies.

    Attributes:
      name: without suffix and folder.
      start, end: seconds; None = the file is the clip.
    """

    name: str
    start: float | None = None
    end: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """An annotated clip.

    Attributes:
      files: names its media may have, the first that exists is taken; the first is the one
        reported as missing.
      split: its split, or several joined by '+'.
      where: file and line of the annotation, for messages.
      captions, labels: see `mmjax.data.build.manifest.Clip`.
      hints: see `MediaDir.find`.
      path: of the media, relative to the root, where the importer knows it; then `files` may be
        empty.
      touch, background, crop: see `mmjax.data.build.manifest.Clip`; only of importers with these
        columns.
      absent: a file that the importer knows to be missing; the clip is left out.
      more: columns of its own, which `mmjax build` ignores; tables that are .jsonl have them.
    """

    files: tuple[File, ...] = ()
    split: str
    where: str
    captions: Sequence[str] = ()
    labels: Sequence[str] = ()
    hints: tuple[str, ...] = ()
    path: str | None = None
    touch: Sequence[str] = ()
    background: str = ""
    crop: tuple[int, int, int, int] | None = None
    absent: str = ""
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(kw_only=True)
class Job:
    """One import, as the reader of a dataset sees it.

    Attributes:
      annotations, media: the official files, the media folder.
      options: of the command line, as the importer's `add_options` declared them.
      classes: names in official order, to be set by the reader before it yields; None = those that
        occur, by alphabet.
      skipped: numbers of annotations that are no clips on purpose, by reason.
      notices: sentences about what was found, for the report.
    """

    annotations: Annotations
    media: MediaDir
    options: argparse.Namespace
    classes: list[str] | None = None
    skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    notices: list[str] = dataclasses.field(default_factory=list)

    def use_classes_file(self) -> None:
        """Takes the order of the classes from --classes, if that is given."""
        if self.options.classes:
            if not os.path.isfile(self.options.classes):
                raise UserError(f"There is no file {self.options.classes}.")
            self.classes = [name for _, name in lines(self.options.classes)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importer:
    """A dataset that can be imported.

    Attributes:
      name: as on the command line.
      title: in words.
      needs: the official files, for the help.
      names: of the media, for the help.
      annotated: the official files are given apart from the media; else they lie among them.
      read: yields the clips.
      add_options: declares options of its own.
      columns: of the table, beside those of place and split: label, caption, touch, background,
        crop.
      num_classes: of the complete dataset; 0 = no classes.
      loose: see `MediaDir`.
      check_repeats: notice annotations of the same stretch of a file, which takes memory.
      build: the options of `mmjax build` that suit it.
      generic: a kind of data, not a dataset of this name: what is built is called as the table.
    """

    name: str
    title: str
    needs: str
    names: str
    read: Callable[[Job], Iterator[Item]]
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    annotated: bool = True
    columns: tuple[str, ...] = ("label",)
    num_classes: int = 0
    loose: bool = False
    check_repeats: bool = True
    build: str = ""
    generic: bool = False


@dataclasses.dataclass(kw_only=True)
class Summary:
    """What an import found.

    Attributes:
      rows: in the table.
      splits: rows of each split; a row in several counts in each.
      clips: annotated ones, with or without media.
      missing: names of media that are not there, each once; `missing_clips` the clips they leave
        out.
      repeated: annotations left out because another one has the same stretch of the same file.
      several: names that more than one file has.
      classes: in order; `classes_found` how many of them occur.
      skipped, notices: see `Job`.
    """

    rows: int = 0
    splits: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    clips: int = 0
    missing: dict[str, None] = dataclasses.field(default_factory=dict)
    missing_clips: int = 0
    repeated: list[str] = dataclasses.field(default_factory=list)
    several: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    classes: list[str] = dataclasses.field(default_factory=list)
    classes_found: int = 0
    skipped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    notices: list[str] = dataclasses.field(default_factory=list)


def import_dataset(
    importer: Importer,
    *,
    annotations: Sequence[str],
    media: str,
    out: str,
    options: argparse.Namespace,
    progress: bool = True,
) -> Summary:
    """Writes the table, and beside it classes.txt and missing.txt.

    Args:
      importer: of the dataset.
      annotations: the official files, or folders with them.
      media: the folder with the media; paths in the table are relative to it.
      out: the table: .csv, .tsv or .jsonl.
      options: see `Job`.
      progress: show a bar.

    Raises:
      UserError: files that are missing or malformed, and media of which none exists.
    """
    directory = MediaDir(media, loose=importer.loose)
    job = Job(annotations=Annotations(annotations), media=directory, options=options)
    summary, labels = Summary(), set()
    beside = os.path.dirname(os.path.abspath(out))
    os.makedirs(beside, exist_ok=True)
    temporary = f"{out}.tmp-{os.getpid()}"
    try:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            write = _writer(file, out, importer.columns)
            items = tqdm(importer.read(job), "clips", unit="", disable=not progress)
            for item, row in _found(items, job, summary, importer.check_repeats):
                for label in set(item.labels) - labels:
                    _check_label(label, item, job.classes)
                    labels.add(label)
                write(row)
        if not summary.rows:
            found = (
                f"Not one of {summary.clips} clips has a file below {media}; the first would be "
                f"called {next(iter(summary.missing))} with any suffix."
                if summary.missing
                else " ".join([f"Nothing below {media} can be used.", *job.notices])
            )
            names = f"`mmjax import {importer.name} --help` lists the names that are understood."
            raise UserError(f"{found} {names}")
        os.replace(temporary, out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
    summary.several, summary.skipped, summary.notices = directory.several, job.skipped, job.notices
    summary.classes_found = len(labels)
    summary.classes = job.classes if job.classes is not None else sorted(labels)
    if importer.num_classes:
        _write_lines(os.path.join(beside, "classes.txt"), summary.classes)
    _write_lines(os.path.join(beside, "missing.txt"), summary.missing)
    return summary


def folds(members: Iterable[str]) -> str:
    """A clip's splits as one name, ordered by number: {test3, train1} → 'train1+test3'."""
    return "+".join(sorted(members, key=lambda name: int(re.sub(r"\D", "", name))))


def _found(
    items: Iterable[Item], job: Job, summary: Summary, check_repeats: bool
) -> Iterator[tuple[Item, dict[str, Any]]]:
    """(clip, row of the table) of those whose media exist."""
    seen: dict[tuple, str] = {}
    for item in items:
        summary.clips += 1
        path, start, end = item.path, None, None
        for file in item.files:
            if path is None and (path := job.media.find(file.name, hints=item.hints)):
                start, end = file.start, file.end
        if path is None or item.absent:
            summary.missing[item.absent or item.files[0].name] = None
            summary.missing_clips += 1
            continue
        if check_repeats:
            if (path, start, end) in seen:
                summary.repeated.append(f"{item.where} repeats {seen[path, start, end]}")
                continue
            seen[path, start, end] = item.where
        summary.rows += 1
        summary.splits.update(item.split.split("+"))
        yield (
            item,
            {
                "path": path,
                "start": _time(start),
                "end": _time(end),
                "caption": item.captions,
                "label": item.labels,
                "touch": item.touch,
                "background": item.background,
                "crop": item.crop,
                "split": item.split,
                "more": item.more,
            },
        )


def _check_label(label: str, item: Item, classes: Sequence[str] | None) -> None:
    if classes is not None and label not in classes:
        raise UserError(f"{item.where}: the class {label!r} is none of the {len(classes)}.")


def _writer(file: IO[str], out: str, columns: Sequence[str]) -> Callable[[dict[str, Any]], None]:
    """A function that writes a row in the format of the suffix."""
    columns = ["path", "start", "end", *columns, "split"]
    if out.endswith((".jsonl", ".ndjson")):

        def write_json(row: dict[str, Any]) -> None:
            kept = {name: row[name] for name in columns if row[name] not in (None, "", (), [])}
            file.write(json.dumps({**kept, **row["more"]}, ensure_ascii=False) + "\n")

        return write_json
    if not out.endswith((".csv", ".tsv")):
        raise UserError(f"--out {out}: a table ends in .csv, .tsv or .jsonl.")
    table = csv.writer(file, delimiter="\t" if out.endswith(".tsv") else ",")
    table.writerow(columns)

    def write_cells(row: dict[str, Any]) -> None:
        if row["more"]:
            raise UserError(
                f"--out {out}: columns of its own ({', '.join(row['more'])}) are kept in a table "
                "that ends in .jsonl."
            )
        table.writerow([_cell(name, row, out) for name in columns])

    return write_cells


def _cell(name: str, row: dict[str, Any], out: str) -> str:
    value = row[name] or ""
    if isinstance(value, str):
        return value
    if name == "crop":
        return ",".join(map(str, value))
    if any("|" in part for part in value):
        raise UserError(
            f"A {name} of {row['path']} contains '|', which separates several in {out}. "
            "Choose a table that ends in .jsonl."
        )
    return "|".join(value)


def _time(value: float | None) -> str:
    """Seconds to the millisecond, without zeros at the end."""
    return "" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")


def _write_lines(path: str, values: Iterable[str]) -> None:
    """One value per line; no file if there are none."""
    text = "".join(f"{value}\n" for value in values)
    if text:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    elif os.path.exists(path):
        os.remove(path)
