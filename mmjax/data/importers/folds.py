"""UCF-101, HMDB-51 and ESC-50: small sets with several splits, each clip in all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from mmjax.data.importers.annotations import lines, malformed, rows
from mmjax.data.importers.base import File, Importer, Item, Job, folds

_HMDB_SPLITS = {"0": None, "1": "train", "2": "test"}
_ESC_FOLDS = 5


def _read_ucf101(job: Job) -> Iterator[Item]:
    path = job.annotations.one("classInd.txt")
    job.classes = []
    for number, line in lines(path):
        index, _, name = line.partition(" ")
        if index != str(len(job.classes) + 1) or not name:
            raise malformed(path, number, f"{line!r} is not '{len(job.classes) + 1} ClassName'")
        job.classes.append(name)
    clips: dict[str, dict[str, str]] = {}
    for path in job.annotations.some("trainlist0[123].txt", "testlist0[123].txt"):
        kind, split = re.match(r"(train|test)list0(\d)", os.path.basename(path)).groups()
        for number, line in lines(path):
            clip = line.split(" ")[0]  # the lists for training also have the class number
            if not clip.endswith(".avi") or clip.count("/") != 1:
                raise malformed(path, number, f"{line!r} is not 'Class/name.avi'")
            clips.setdefault(clip, {})[f"{kind}{split}"] = f"{os.path.basename(path)}:{number}"
    for clip, splits in sorted(clips.items()):
        label, name = clip.split("/")
        yield _item(os.path.splitext(name)[0], label, splits)


def _read_hmdb51(job: Job) -> Iterator[Item]:
    clips: dict[tuple[str, str], dict[str, str]] = {}
    for path in job.annotations.some("*_test_split[123].txt"):
        file = os.path.basename(path)
        label, split = re.match(r"(.*)_test_split(\d)", file).groups()
        for number, line in lines(path):
            name, _, kind = line.rpartition(" ")
            if kind not in _HMDB_SPLITS or not name:
                raise malformed(path, number, f"{line!r} is not 'name.avi' and 0, 1 or 2")
            splits = clips.setdefault((label, os.path.splitext(name.strip())[0]), {})
            if _HMDB_SPLITS[kind]:
                splits[f"{_HMDB_SPLITS[kind]}{split}"] = f"{file}:{number}"
    for (label, name), splits in sorted(clips.items()):
        if splits:
            yield _item(name, label, splits)
        else:
            job.skipped["in none of the splits"] += 1


def _item(name: str, label: str, splits: dict[str, str]) -> Item:
    """A clip of the splits {split: where it is listed}."""
    return Item(
        files=(File(name),),
        labels=[label],
        split=folds(splits),
        where=next(iter(splits.values())),
        hints=(label,),
    )


def _read_esc50(job: Job) -> Iterator[Item]:
    path = job.annotations.one("esc50.csv")
    found = list(rows(path, "filename", "fold", "target", "category"))
    names: dict[int, str] = {}
    for number, row in found:
        if row["fold"] not in map(str, range(1, _ESC_FOLDS + 1)) or not row["target"].isdecimal():
            raise malformed(path, number, "fold or target is no number in range")
        if names.setdefault(int(row["target"]), row["category"]) != row["category"]:
            raise malformed(path, number, f"target {row['target']} has two names")
    job.classes = [names[target] for target in sorted(names)]
    for number, row in found:
        others = (fold for fold in range(1, _ESC_FOLDS + 1) if str(fold) != row["fold"])
        yield Item(
            files=(File(os.path.splitext(row["filename"])[0]),),
            labels=[row["category"]],
            split=folds([f"test{row['fold']}", *(f"train{fold}" for fold in others)]),
            where=f"esc50.csv:{number}",
        )


UCF101 = Importer(
    name="ucf101",
    title="UCF-101: actions, 101 classes, 3 splits",
    needs="""classInd.txt, trainlist01.txt … trainlist03.txt, testlist01.txt … testlist03.txt
    (the folder ucfTrainTestlist)""",
    names="v_ApplyEyeMakeup_g01_c01",
    read=_read_ucf101,
    num_classes=101,
    loose=True,
    build="--fps 25 --size 256 --no-audio",
)

HMDB51 = Importer(
    name="hmdb51",
    title="HMDB-51: actions, 51 classes, 3 splits",
    needs="brush_hair_test_split1.txt … (the folder testTrainMulti_7030_splits)",
    names="April_09_brush_hair_u_nm_np1_ba_goo_0",
    read=_read_hmdb51,
    num_classes=51,
    loose=True,
    build="--fps 25 --size 256 --no-audio",
)

ESC50 = Importer(
    name="esc50",
    title="ESC-50: sounds, 50 classes, 5 folds",
    needs="esc50.csv (in the folder meta)",
    names="1-100032-A-0",
    read=_read_esc50,
    num_classes=50,
    build="--sample-rate 48000",
)
