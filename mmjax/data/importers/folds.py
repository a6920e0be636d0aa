"""UCF-101, HMDB-51 and ESC-50: small datasets with several folds; each clip is in all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from mmjax.data.importers.annotations import line_error, location, read_lines, read_table
from mmjax.data.importers.base import AnnotatedExample, Importer, Job, MediaName

_HMDB_SPLITS = {"0": None, "1": "train", "2": "test"}
_NUM_FOLDS = 5  # of ESC-50


def join_splits(names: Iterable[str]) -> str:
    """Returns a clip's splits as one name, in order of their numbers.

    For example, {test3, train1} results in 'train1+test3'.
    """
    return "+".join(sorted(names, key=lambda name: int(re.sub(r"\D", "", name))))


def _read_ucf101(job: Job) -> Iterator[AnnotatedExample]:
    path = job.annotations.require_one("classInd.txt")
    job.classes = []
    for number, line in read_lines(path):
        index, _, name = line.partition(" ")
        expected = len(job.classes) + 1
        if index != str(expected) or not name:
            raise line_error(path, number, f"expected '{expected} ClassName'; got {line!r}")
        job.classes.append(name)
    clips: dict[str, dict[str, str]] = {}
    for path in job.annotations.require_any("trainlist0[123].txt", "testlist0[123].txt"):
        file = os.path.basename(path)
        part, split = re.match(r"(train|test)list0(\d)", file).groups()
        for number, line in read_lines(path):
            clip = line.split(" ")[0]  # the training lists also contain the class number
            if not clip.endswith(".avi") or clip.count("/") != 1:
                raise line_error(path, number, f"expected 'Class/name.avi'; got {line!r}")
            clips.setdefault(clip, {})[f"{part}{split}"] = location(file, number)
    for clip, splits in sorted(clips.items()):
        label, name = clip.split("/")
        yield _example(os.path.splitext(name)[0], label, splits)


def _read_hmdb51(job: Job) -> Iterator[AnnotatedExample]:
    clips: dict[tuple[str, str], dict[str, str]] = {}
    for path in job.annotations.require_any("*_test_split[123].txt"):
        file = os.path.basename(path)
        label, split = re.match(r"(.*)_test_split(\d)", file).groups()
        for number, line in read_lines(path):
            name, _, code = line.rpartition(" ")
            if code not in _HMDB_SPLITS or not name:
                raise line_error(
                    path, number, f"expected 'name.avi' followed by 0, 1 or 2; got {line!r}"
                )
            splits = clips.setdefault((label, os.path.splitext(name.strip())[0]), {})
            if _HMDB_SPLITS[code]:
                splits[f"{_HMDB_SPLITS[code]}{split}"] = location(file, number)
    for (label, name), splits in sorted(clips.items()):
        if splits:
            yield _example(name, label, splits)
        else:
            job.skip("clips that are in none of the splits", example=name)


def _example(name: str, label: str, splits: dict[str, str]) -> AnnotatedExample:
    """Returns the example of a clip with `{split: location of the line that lists it}`."""
    return AnnotatedExample(
        media=(MediaName(name),),
        labels=[label],
        split=join_splits(splits),
        location=next(iter(splits.values())),
        hints=(label,),
    )


def _read_esc50(job: Job) -> Iterator[AnnotatedExample]:
    path = job.annotations.require_one("esc50.csv")
    rows = list(read_table(path, "filename", "fold", "target", "category"))
    folds = range(1, _NUM_FOLDS + 1)
    names: dict[int, str] = {}
    for number, row in rows:
        fold, target, name = row["fold"], row["target"], row["category"]
        if fold not in map(str, folds):
            raise line_error(path, number, f"fold must be 1..{_NUM_FOLDS}; got {fold!r}")
        if not target.isdecimal():
            raise line_error(path, number, f"target must be a class number; got {target!r}")
        if names.setdefault(int(target), name) != name:
            problem = f"target {target} has two categories: {names[int(target)]!r} and {name!r}"
            raise line_error(path, number, problem)
    job.classes = [names[target] for target in sorted(names)]
    for number, row in rows:
        others = (fold for fold in folds if str(fold) != row["fold"])
        yield AnnotatedExample(
            media=(MediaName(os.path.splitext(row["filename"])[0]),),
            labels=[row["category"]],
            split=join_splits([f"test{row['fold']}", *(f"train{fold}" for fold in others)]),
            location=location("esc50.csv", number),
        )


UCF101 = Importer(
    name="ucf101",
    title="UCF-101: actions, 101 classes, 3 splits",
    annotation_files="""classInd.txt, trainlist01.txt … trainlist03.txt, testlist01.txt …
    testlist03.txt (the directory ucfTrainTestlist)""",
    media_names="v_ApplyEyeMakeup_g01_c01",
    read=_read_ucf101,
    num_classes=101,
    fuzzy_names=True,
    build_options="--fps 25 --size 256 --no-audio",
)

HMDB51 = Importer(
    name="hmdb51",
    title="HMDB-51: actions, 51 classes, 3 splits",
    annotation_files="brush_hair_test_split1.txt … (the directory testTrainMulti_7030_splits)",
    media_names="April_09_brush_hair_u_nm_np1_ba_goo_0",
    read=_read_hmdb51,
    num_classes=51,
    fuzzy_names=True,
    build_options="--fps 25 --size 256 --no-audio",
)

ESC50 = Importer(
    name="esc50",
    title="ESC-50: environmental audio, 50 classes, 5 folds",
    annotation_files="esc50.csv (in the directory meta)",
    media_names="1-100032-A-0",
    read=_read_esc50,
    num_classes=50,
    build_options="--sample-rate 48000",
)
