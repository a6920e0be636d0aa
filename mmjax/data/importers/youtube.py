"""AudioSet and Kinetics: labeled segments of YouTube videos."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mmjax.data.importers.annotations import (
    line_error,
    location,
    parse_interval,
    read_cells,
    read_table,
)
from mmjax.data.importers.base import (
    EVALUATION,
    AnnotatedExample,
    Importer,
    Job,
    MediaName,
    Option,
)

_AUDIOSET = {
    "balanced_train_segments.csv": "train+balanced_train",
    "unbalanced_train_segments.csv": "train+unbalanced_train",
    "eval_segments.csv": "eval+test",
}
_KINETICS = {
    # {pattern of the file: (split, possible directories of its media)}
    "*train*.csv": ("train", ("train",)),
    "*val*.csv": (EVALUATION, ("val", "valid", "validate", "validation")),
    "*test*.csv": ("official_test", ("test",)),
}
_KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
_TRIMMED = Option(
    name="trimmed",
    type=bool,
    help="files named ID are trimmed clips (default: whole videos)",
)
_CLASSES = Option(
    name="classes",
    metavar="FILE",
    help="class names in order, one per line (default: alphabetical order, the usual one)",
)


def _whole_file(name: str, start: float, end: float, job: Job) -> MediaName:
    """Returns the name of a file that is the video or, with --trimmed, the clip."""
    return MediaName(name) if job.options.trimmed else MediaName(name, start, end)


def _read_audioset(job: Job) -> Iterator[AnnotatedExample]:
    names = {}
    path = job.annotations.require_one("class_labels_indices.csv")
    for number, row in read_table(path, "index", "mid", "display_name"):
        if row["index"] != str(len(names)):
            raise line_error(path, number, f"expected index {len(names)}; got {row['index']!r}")
        names[row["mid"]] = row["display_name"]
    job.classes = list(names.values())
    job.annotations.require_any(*_AUDIOSET)
    for pattern, split in _AUDIOSET.items():
        path = job.annotations.find_one(pattern)
        for number, row in read_cells(path, comment="#") if path else ():
            if len(row) != 4:
                problem = f"expected 4 cells with the labels in quotes; got {len(row)} cells"
                raise line_error(path, number, problem)
            start, end = parse_interval(row[1], row[2], path, number)
            labels = row[3].split(",")
            for label in labels:
                if label not in names:
                    problem = f"the label {label!r} is not in class_labels_indices.csv"
                    raise line_error(path, number, problem)
            yield AnnotatedExample(
                media=_audioset_names(row[0], start, end, job),
                labels=[names[label] for label in labels],
                split=split,
                location=location(os.path.basename(path), number),
            )


def _audioset_names(name: str, start: float, end: float, job: Job) -> tuple[MediaName, ...]:
    first, last = round(start), round(end)
    return (
        _whole_file(name, start, end, job),
        MediaName(f"Y{name}"),
        MediaName(f"{name}_{start:.3f}_{end:.3f}"),
        MediaName(f"{name}_{round(start * 1000)}_{round(end * 1000)}"),
        MediaName(f"{name}_{first:06d}_{last:06d}"),
        MediaName(f"{name}_{first}_{last}"),
        MediaName(f"{name}_{first:06d}"),
        MediaName(f"{name}_{round(start * 1000)}"),
        MediaName(f"{name}_{first}"),
    )


def _read_kinetics(job: Job) -> Iterator[AnnotatedExample]:
    job.read_classes_option()
    job.annotations.require_any(*_KINETICS)
    for pattern, (split, directories) in _KINETICS.items():
        path = job.annotations.find_one(pattern)
        for number, row in read_table(path, *_KINETICS_COLUMNS) if path else ():
            name = row["youtube_id"]
            if not row.get("label"):
                job.skip(f"clips without a class in {os.path.basename(path)}", example=name)
                continue
            start, end = parse_interval(row["time_start"], row["time_end"], path, number)
            first, last = round(start), round(end)
            if not name:
                raise line_error(path, number, "youtube_id is empty")
            yield AnnotatedExample(
                media=(
                    MediaName(f"{name}_{first:06d}_{last:06d}"),
                    MediaName(f"{name}_{first}_{last}"),
                    _whole_file(name, start, end, job),
                ),
                labels=[row["label"]],
                split=split,
                location=location(os.path.basename(path), number),
                hints=(row["label"], *directories),
            )


def _kinetics(classes: int) -> Importer:
    return Importer(
        name=f"kinetics{classes}",
        title=f"Kinetics-{classes}: actions, {classes} classes",
        annotation_files="""train.csv, val.csv (or validate.csv), and test.csv if it has labels;
        columns label, youtube_id, time_start, time_end""",
        media_names="""ID_000012_000022 or ID_12_22: the clip
        ID: the whole video, or the clip with --trimmed""",
        read=_read_kinetics,
        options=(_TRIMMED, _CLASSES),
        num_classes=classes,
        build_options="--fps 25 --size 256 --no-audio",
    )


KINETICS = [_kinetics(classes) for classes in (400, 600, 700)]

AUDIOSET = Importer(
    name="audioset",
    title="AudioSet: audio events, 527 classes, several per clip",
    annotation_files="""class_labels_indices.csv, and at least one of balanced_train_segments.csv,
    unbalanced_train_segments.csv and eval_segments.csv""",
    media_names="""ID: the whole video, or the clip with --trimmed
    YID, ID_30.000_40.000, ID_30000_40000, ID_000030_000040, ID_30_40, ID_000030,
    ID_30000, ID_30: the clip""",
    read=_read_audioset,
    options=(_TRIMMED,),
    num_classes=527,
    build_options="--fps 10 --size 256 --sample-rate 48000",
)
