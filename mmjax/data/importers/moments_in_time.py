"""Moments in Time: events of three seconds, 339 classes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mmjax.data.importers.annotations import line_error, location, read_cells
from mmjax.data.importers.base import EVALUATION, AnnotatedExample, Importer, Job, MediaName

_SPLITS = {"training": "train", "validation": EVALUATION}


def _read(job: Job) -> Iterator[AnnotatedExample]:
    path = job.annotations.require_one("moments_categories.txt")
    names: dict[int, str] = {}
    for number, row in read_cells(path):
        if len(row) != 2 or not row[1].isdecimal():
            raise line_error(path, number, f"expected 'class,number'; got {','.join(row)!r}")
        if int(row[1]) in names:
            problem = f"the class number {row[1]} of {row[0]!r} already belongs to "
            raise line_error(path, number, f"{problem}{names[int(row[1])]!r}")
        names[int(row[1])] = row[0]
    job.classes = [names[index] for index in sorted(names)]
    job.annotations.require_any(*(f"{directory}Set.csv" for directory in _SPLITS))
    for directory, split in _SPLITS.items():
        path = job.annotations.find_one(f"{directory}Set.csv")
        for number, row in read_cells(path) if path else ():
            if len(row) < 2 or not row[1]:
                problem = f"expected 'file,class,votes,votes'; got {','.join(row)!r}"
                raise line_error(path, number, problem)
            name, label = os.path.splitext(os.path.basename(row[0]))[0], row[1]
            yield AnnotatedExample(
                media=(MediaName(name),),
                labels=[label],
                split=split,
                location=location(os.path.basename(path), number),
                hints=(label, directory),
            )


MOMENTS_IN_TIME = Importer(
    name="moments_in_time",
    title="Moments in Time: events of 3 seconds, 339 classes",
    annotation_files="moments_categories.txt, trainingSet.csv, validationSet.csv",
    media_names="as in the CSV files, in training/CLASS and validation/CLASS",
    read=_read,
    num_classes=339,
    build_options="--fps 25 --size 256 --no-audio",
)
