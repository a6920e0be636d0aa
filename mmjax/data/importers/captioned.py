"""YouCook2 and MSR-VTT: clips with captions, for retrieval."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from mmjax.data.importers.annotations import fields, malformed, read_json, rows
from mmjax.data.importers.base import EVALUATION, File, Importer, Item, Job
from mmjax.errors import UserError, choose

_YOUCOOK2_SPLITS = {"training": "train", "validation": EVALUATION}
_MSRVTT_SPLITS = {"train": "train", "validate": "validation", "test": "test"}


def _read_youcook2(job: Job) -> Iterator[Item]:
    path = job.annotations.one("youcookii_annotations_trainval.json")
    file = os.path.basename(path)
    for video, entry in read_json(path, "database").items():
        try:
            subset, annotations = entry["subset"], entry["annotations"]
            split = _YOUCOOK2_SPLITS[subset]
            clips = [(*map(float, a["segment"]), a["id"], a["sentence"]) for a in annotations]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: the entry of {video} is malformed ({error!r}).") from error
        for start, end, number, sentence in clips:
            if not 0 <= start < end:
                raise UserError(f"{path}: segment {number} of {video} is {start:g} to {end:g} s.")
            if not sentence.strip():
                job.skipped["the sentence is empty"] += 1
                continue
            yield Item(
                files=(File(video, start, end), File(f"{video}_{number}")),
                captions=[sentence.strip()],
                split=split,
                where=f"{file}, {video}, segment {number}",
                hints=(subset, str(entry.get("recipe_type", ""))),
            )


def _msrvtt_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--protocol",
        choices=("full", "1k-a"),
        default="full",
        help="full: the official train, validation and test (6513, 497, 2990 clips, 20 captions "
        "each); 1k-a: the 1000 pairs of MSRVTT_JSFUSION_test.csv are test, the other 9000 clips "
        "train, of which train7k are the official train and validation",
    )


def _read_msrvtt(job: Job) -> Iterator[Item]:
    pairs = _read_pairs(job) if job.options.protocol == "1k-a" else {}
    clips: dict[str, tuple[str, str]] = {}  # video: (official split, file)
    captions: dict[str, list[str]] = {}
    for path in job.annotations.some("*videodatainfo*.json", "MSRVTT_data.json"):
        for video in read_json(path, "videos"):
            name, split = fields(video, path, "video_id", "split")
            if name in clips:
                raise UserError(f"{name} is both in {clips[name][1]} and in {path}; give one.")
            clips[name] = choose(f"split of {name} in {path}", split, _MSRVTT_SPLITS), path
        for sentence in read_json(path, "sentences"):
            name, text = fields(sentence, path, "video_id", "caption")
            captions.setdefault(name, []).append(text.strip())
    for name in pairs:
        if name not in clips:
            raise UserError(f"{name} of MSRVTT_JSFUSION_test.csv is in no videodatainfo file.")
    for name, (official, path) in clips.items():
        split, texts = official, [text for text in captions.get(name, ()) if text]
        if name in pairs:
            split, texts = "test", [pairs[name]]
        elif pairs:
            split = "train" if official == "test" else "train+train7k"
        if not texts:
            job.skipped["without a caption"] += 1
            continue
        yield Item(
            files=(File(name),),
            captions=texts,
            split=split,
            where=f"{os.path.basename(path)}, {name}",
        )


def _read_pairs(job: Job) -> dict[str, str]:
    """{video: caption} of the protocol 1k-A."""
    path = job.annotations.one("MSRVTT_JSFUSION_test.csv")
    pairs: dict[str, str] = {}
    for number, row in rows(path, "video_id", "sentence"):
        if row["video_id"] in pairs or not row["sentence"]:
            raise malformed(path, number, f"{row['video_id']} comes twice or has no sentence")
        pairs[row["video_id"]] = row["sentence"]
    return pairs


YOUCOOK2 = Importer(
    name="youcook2",
    title="YouCook2: steps of recipes with a sentence each",
    needs="youcookii_annotations_trainval.json",
    names="""ID: the whole video
    ID_0, ID_1, …: the clip of that segment id""",
    read=_read_youcook2,
    columns=("caption",),
    build="--fps 25 --size 256",
)

MSRVTT = Importer(
    name="msrvtt",
    title="MSR-VTT: clips with 20 captions each",
    needs="""train_val_videodatainfo.json and test_videodatainfo.json (or MSRVTT_data.json, which is
    both); MSRVTT_JSFUSION_test.csv for --protocol 1k-a""",
    names="video0, video1, …",
    read=_read_msrvtt,
    add_options=_msrvtt_options,
    columns=("caption",),
    build="--fps 25 --size 256",
)
