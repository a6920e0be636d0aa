"""YouCook2 and MSR-VTT: video clips with captions, for retrieval."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mmjax.data.importers.annotations import get_fields, line_error, read_json, read_table
from mmjax.data.importers.base import (
    EVALUATION,
    AnnotatedExample,
    Importer,
    Job,
    MediaName,
    Option,
)
from mmjax.errors import UserError, choose

_YOUCOOK2_SPLITS = {"training": "train", "validation": EVALUATION}
_MSRVTT_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_PAIRS = "MSRVTT_JSFUSION_test.csv"


def _read_youcook2(job: Job) -> Iterator[AnnotatedExample]:
    path = job.annotations.require_one("youcookii_annotations_trainval.json")
    file = os.path.basename(path)
    for video, entry in read_json(path, "database").items():
        try:
            subset, annotations = entry["subset"], entry["annotations"]
            split = _YOUCOOK2_SPLITS[subset]
            segments = [(*map(float, a["segment"]), a["id"], a["sentence"]) for a in annotations]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: the entry of {video} is malformed: {error!r}.") from error
        for start, end, index, sentence in segments:
            if not 0 <= start < end:
                raise UserError(
                    f"{path}: segment {index} of {video} must end after its start; got "
                    f"{start:g} s to {end:g} s."
                )
            if not sentence.strip():
                job.skip("segments with an empty sentence", example=f"{video} segment {index}")
                continue
            yield AnnotatedExample(
                media=(MediaName(video, start, end), MediaName(f"{video}_{index}")),
                captions=[sentence.strip()],
                split=split,
                location=f"{file}, {video}, segment {index}",
                hints=(subset, str(entry.get("recipe_type", ""))),
            )


def _read_msrvtt(job: Job) -> Iterator[AnnotatedExample]:
    pairs = _read_pairs(job) if job.options.protocol == "1k-a" else {}
    videos: dict[str, tuple[str, str]] = {}  # {video: (official split, file)}
    captions: dict[str, list[str]] = {}
    for path in job.annotations.require_any("*videodatainfo*.json", "MSRVTT_data.json"):
        for video in read_json(path, "videos"):
            name, split = get_fields(video, path, "video_id", "split")
            if name in videos:
                raise UserError(
                    f"--annotations: {name} is in both {videos[name][1]} and {path}. Pass only one "
                    "of them."
                )
            videos[name] = choose(f"split of {name} in {path}:", split, _MSRVTT_SPLITS), path
        for sentence in read_json(path, "sentences"):
            name, text = get_fields(sentence, path, "video_id", "caption")
            captions.setdefault(name, []).append(text.strip())
    for name in pairs:
        if name not in videos:
            raise UserError(f"{_PAIRS}: the video {name} is in no videodatainfo file.")
    for name, (official_split, path) in videos.items():
        split, texts = official_split, [text for text in captions.get(name, ()) if text]
        if name in pairs:
            split, texts = "test", [pairs[name]]
        elif pairs:
            split = "train" if official_split == "test" else "train+train7k"
        if not texts:
            job.skip("videos without a caption", example=name)
            continue
        yield AnnotatedExample(
            media=(MediaName(name),),
            captions=texts,
            split=split,
            location=f"{os.path.basename(path)}, {name}",
        )


def _read_pairs(job: Job) -> dict[str, str]:
    """Returns `{video: caption}` of the test set of the protocol 1k-A."""
    path = job.annotations.require_one(_PAIRS)
    pairs: dict[str, str] = {}
    for number, row in read_table(path, "video_id", "sentence"):
        if row["video_id"] in pairs:
            raise line_error(path, number, f"the video {row['video_id']} is listed twice")
        if not row["sentence"]:
            raise line_error(path, number, f"the sentence of {row['video_id']} is empty")
        pairs[row["video_id"]] = row["sentence"]
    return pairs


YOUCOOK2 = Importer(
    name="youcook2",
    title="YouCook2: steps of recipes with a sentence each",
    annotation_files="youcookii_annotations_trainval.json",
    media_names="""ID: the whole video
    ID_0, ID_1, …: the clip of the segment with this id""",
    read=_read_youcook2,
    columns=("caption",),
    build_options="--fps 25 --size 256",
)

MSRVTT = Importer(
    name="msrvtt",
    title="MSR-VTT: clips with 20 captions each",
    annotation_files=f"""train_val_videodatainfo.json and test_videodatainfo.json, or
    MSRVTT_data.json with the contents of both; {_PAIRS} for --protocol 1k-a""",
    media_names="video0, video1, …",
    read=_read_msrvtt,
    options=(
        Option(
            name="protocol",
            choices=("full", "1k-a"),
            default="full",
            help="full: the official train, validation and test splits (6513, 497 and 2990 clips "
            f"with 20 captions each). 1k-a: test has the 1000 pairs of {_PAIRS}, train the other "
            "9000 clips, and train7k the official train and validation splits. Default: full",
        ),
    ),
    columns=("caption",),
    build_options="--fps 25 --size 256",
)
