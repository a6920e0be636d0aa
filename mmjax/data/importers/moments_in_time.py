"""Moments in Time: events of three seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mmjax.data.importers.annotations import cells, malformed
from mmjax.data.importers.base import EVALUATION, File, Importer, Item, Job

_SPLITS = {"training": "train", "validation": EVALUATION}


def _read(job: Job) -> Iterator[Item]:
    path = job.annotations.one("moments_categories.txt")
    numbered = {}
    for number, row in cells(path):
        if len(row) != 2 or not row[1].isdecimal() or int(row[1]) in numbered:
            raise malformed(path, number, f"{','.join(row)!r} is not 'class,number'")
        numbered[int(row[1])] = row[0]
    job.classes = [numbered[number] for number in sorted(numbered)]
    job.annotations.some(*(f"{directory}Set.csv" for directory in _SPLITS))
    for directory, split in _SPLITS.items():
        path = job.annotations.optional(f"{directory}Set.csv")
        for number, row in cells(path) if path else ():
            if len(row) < 2 or not row[1]:
                raise malformed(path, number, f"{','.join(row)!r} is not 'file,class,votes,votes'")
            name, label = os.path.splitext(os.path.basename(row[0]))[0], row[1]
            yield Item(
                files=(File(name),),
                labels=[label],
                split=split,
                where=f"{os.path.basename(path)}:{number}",
                hints=(label, directory),
            )


MOMENTS_IN_TIME = Importer(
    name="moments_in_time",
    title="Moments in Time: events of 3 seconds, 339 classes",
    needs="moments_categories.txt, trainingSet.csv, validationSet.csv",
    names="as in the CSVs, below training/CLASS and validation/CLASS",
    read=_read,
    num_classes=339,
    build="--fps 25 --size 256 --no-audio",
)
