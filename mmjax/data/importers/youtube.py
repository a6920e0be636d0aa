"""AudioSet and Kinetics: stretches of YouTube videos with classes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from mmjax.data.importers.annotations import cells, interval, malformed, rows
from mmjax.data.importers.base import EVALUATION, File, Importer, Item, Job

_AUDIOSET = {
    "balanced_train_segments.csv": "train+balanced_train",
    "unbalanced_train_segments.csv": "train+unbalanced_train",
    "eval_segments.csv": "eval+test",
}
_KINETICS = {
    # pattern of the file: (its split, names of folders that its media may lie in)
    "*train*.csv": ("train", ("train",)),
    "*val*.csv": (EVALUATION, ("val", "valid", "validate", "validation")),
    "*test*.csv": ("official_test", ("test",)),
}


def _trimmed_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trimmed",
        action="store_true",
        help="files called by the bare ID are the clips already (default: whole videos)",
    )


def _kinetics_options(parser: argparse.ArgumentParser) -> None:
    _trimmed_option(parser)
    parser.add_argument(
        "--classes",
        metavar="FILE",
        help="class names in order, one per line (default: by alphabet, as everybody has them)",
    )


def _bare(name: str, start: float, end: float, job: Job) -> File:
    return File(name) if job.options.trimmed else File(name, start, end)


def _read_audioset(job: Job) -> Iterator[Item]:
    names = {}
    path = job.annotations.one("class_labels_indices.csv")
    for number, row in rows(path, "index", "mid", "display_name"):
        if row["index"] != str(len(names)):
            raise malformed(path, number, f"index {row['index']}, expected {len(names)}")
        names[row["mid"]] = row["display_name"]
    job.classes = list(names.values())
    job.annotations.some(*_AUDIOSET)
    for pattern, split in _AUDIOSET.items():
        path = job.annotations.optional(pattern)
        for number, row in cells(path, comment="#") if path else ():
            if len(row) != 4:
                raise malformed(path, number, f"{len(row)} cells, not 4; labels stand in quotes")
            start, end = interval(row[1], row[2], path, number)
            unknown = [mid for mid in row[3].split(",") if mid not in names]
            if unknown:
                raise malformed(path, number, f"no label {unknown[0]!r} in the list of classes")
            yield Item(
                files=_audioset_files(row[0], start, end, job),
                labels=[names[mid] for mid in row[3].split(",")],
                split=split,
                where=f"{os.path.basename(path)}:{number}",
            )


def _audioset_files(name: str, start: float, end: float, job: Job) -> tuple[File, ...]:
    first, last = round(start), round(end)
    return (
        _bare(name, start, end, job),
        File(f"Y{name}"),
        File(f"{name}_{start:.3f}_{end:.3f}"),
        File(f"{name}_{round(start * 1000)}_{round(end * 1000)}"),
        File(f"{name}_{first:06d}_{last:06d}"),
        File(f"{name}_{first}_{last}"),
        File(f"{name}_{first:06d}"),
        File(f"{name}_{round(start * 1000)}"),
        File(f"{name}_{first}"),
    )


def _read_kinetics(job: Job) -> Iterator[Item]:
    job.use_classes_file()
    job.annotations.some(*_KINETICS)
    for pattern, (split, directories) in _KINETICS.items():
        path = job.annotations.optional(pattern)
        for number, row in rows(path, "youtube_id", "time_start", "time_end") if path else ():
            if not row.get("label"):
                job.skipped[f"{os.path.basename(path)} withholds the classes"] += 1
                continue
            start, end = interval(row["time_start"], row["time_end"], path, number)
            name, first, last = row["youtube_id"], round(start), round(end)
            if not name:
                raise malformed(path, number, "the column youtube_id is empty")
            yield Item(
                files=(
                    File(f"{name}_{first:06d}_{last:06d}"),
                    File(f"{name}_{first}_{last}"),
                    _bare(name, start, end, job),
                ),
                labels=[row["label"]],
                split=split,
                where=f"{os.path.basename(path)}:{number}",
                hints=(row["label"], *directories),
            )


def _kinetics(classes: int) -> Importer:
    return Importer(
        name=f"kinetics{classes}",
        title=f"Kinetics-{classes}: actions, {classes} classes",
        needs="""train.csv, val.csv (or validate.csv), and test.csv if it has labels: columns label,
        youtube_id, time_start, time_end""",
        names="""ID_000012_000022 or ID_12_22: the clip
        ID: the whole video; with --trimmed the clip""",
        read=_read_kinetics,
        add_options=_kinetics_options,
        num_classes=classes,
        build="--fps 25 --size 256 --no-audio",
    )


KINETICS = [_kinetics(classes) for classes in (400, 600, 700)]

AUDIOSET = Importer(
    name="audioset",
    title="AudioSet: sounds, 527 classes, several per clip",
    needs="""class_labels_indices.csv, and one or more of balanced_train_segments.csv,
    unbalanced_train_segments.csv, eval_segments.csv""",
    names="""ID: the whole video; with --trimmed the clip
    YID, ID_30.000_40.000, ID_30000_40000, ID_000030_000040, ID_30_40, ID_000030,
    ID_30000, ID_30: the clip""",
    read=_read_audioset,
    add_options=_trimmed_option,
    num_classes=527,
    build="--fps 10 --size 256 --sample-rate 48000",
)
