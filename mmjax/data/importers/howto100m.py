"""HowTo100M: narrated instructional videos, one clip per sentence of the speech."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmjax.data.build.splits import parse_part
from mmjax.data.importers.annotations import iterate_json, parse_seconds, read_table
from mmjax.data.importers.base import AnnotatedExample, Importer, Job, MediaName, Option
from mmjax.data.text.word_vocab import split_words
from mmjax.errors import UserError

_CAPTIONS = ("caption.json", "raw_caption.json", "raw_caption_superclean.json")
_LISTS = ("HowTo100M_v1.csv", "task_ids.csv")

Sentence = tuple[float, str]  # middle in seconds, text


def _read(job: Job) -> Iterator[AnnotatedExample]:
    options = job.options
    _check_options(options)
    part, parts = parse_part(options.part, option="--part")
    listed = _listed_videos(job)
    for index, (video, sentences, location) in enumerate(_videos(job)):
        if index % parts != part:
            continue
        if listed is not None and video not in listed:
            group = "sentences of videos that HowTo100M_v1.csv does not list"
            job.skip(group, example=video, count=len(sentences))
            continue
        spoken = sorted((middle, text) for middle, text in sentences if split_words(text))
        if empty := len(sentences) - len(spoken):
            job.skip("sentences without a word", example=video, count=empty)
        for position in evenly_spaced(len(spoken), options.max_per_video):
            middle, half = spoken[position][0], options.clip_seconds / 2
            start = max(middle - half, 0.0)
            near = nearest(spoken, position, options.neighbors)
            yield AnnotatedExample(
                media=(MediaName(video, start, start + options.clip_seconds),),
                captions=[spoken[k][1] for k in near],
                split="train" if parts == 1 else f"train+part{part}",
                location=location,
            )


def _check_options(options: Any) -> None:
    if not options.clip_seconds > 0:
        raise UserError(f"--clip-seconds must be greater than 0; got {options.clip_seconds:g}.")
    if options.neighbors < 0:
        raise UserError(f"--neighbors must be at least 0; got {options.neighbors}.")
    if options.max_per_video is not None and options.max_per_video < 1:
        raise UserError(f"--max-per-video must be at least 1; got {options.max_per_video}.")


def nearest(sentences: Sequence[Sentence], index: int, neighbors: int) -> list[int]:
    """Returns the index of a sentence and of its nearest neighbors in time, nearest first.

    Args:
      sentences: Sentences in order of time.
      index: The sentence; it comes first.
      neighbors: Number of neighbors, limited by the number of other sentences. Ties are resolved in
        favor of the earlier sentence.
    """
    around = range(max(index - neighbors, 0), min(index + neighbors + 1, len(sentences)))
    others = (other for other in around if other != index)
    middle = sentences[index][0]
    ranked = sorted(others, key=lambda other: (abs(sentences[other][0] - middle), other))
    return [index, *ranked[:neighbors]]


def evenly_spaced(count: int, max_count: int | None) -> list[int]:
    """Returns at most `max_count` of the indices below `count`, evenly spaced; None for all."""
    if max_count is None or count <= max_count:
        return list(range(count))
    return [(2 * k + 1) * count // (2 * max_count) for k in range(max_count)]


def _listed_videos(job: Job) -> set[str] | None:
    path = job.annotations.find_one("HowTo100M_v1.csv")
    return {row["video_id"] for _, row in read_table(path, "video_id")} if path else None


def _videos(job: Job) -> Iterator[tuple[str, list[Sentence], str]]:
    """Yields `(video, sentences, location)` from one JSON file, or one CSV file per video."""
    path = job.annotations.find_one(*_CAPTIONS)
    tables = () if path else job.annotations.find_all("*.csv")
    tables = [table for table in tables if os.path.basename(table) not in _LISTS]
    if not tables:
        job.annotations.require_any(*_CAPTIONS)
    for video, entry in iterate_json(path) if path else ():
        yield video, _parse_sentences(entry, path, video), f"{os.path.basename(path)}, {video}"
    for table in tables:
        sentences = []
        for number, row in read_table(table, "start", "end", "text"):
            start = parse_seconds(row["start"], table, number)
            end = max(parse_seconds(row["end"], table, number), start)
            sentences.append(((start + end) / 2, row["text"]))
        yield os.path.splitext(os.path.basename(table))[0], sentences, os.path.basename(table)


def _parse_sentences(entry: Any, path: str, video: str) -> list[Sentence]:
    try:
        starts, ends, texts = (entry[key] for key in ("start", "end", "text"))
        sentences = [
            ((float(start) + float(end)) / 2, text.strip() if isinstance(text, str) else "")
            for start, end, text in zip(starts, ends, texts, strict=True)  # NaN: no text
        ]
        if not all(0 <= middle < 1e6 for middle, _ in sentences):
            raise ValueError("a time is negative, above 1e6 s or not finite")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the entry of {video} must have lists start, end and text of the same "
            f"length: {error}."
        ) from error
    return sentences


HOWTO100M = Importer(
    name="howto100m",
    title="HowTo100M: narrated instructional videos, one clip per sentence",
    annotation_files="""caption.json, raw_caption.json or raw_caption_superclean.json, or a
    directory with one CSV (start, end, text) per video; with HowTo100M_v1.csv, only its videos""",
    media_names="ID: the whole video",
    read=_read,
    options=(
        Option(
            name="clip_seconds",
            type=float,
            default=3.2,
            metavar="S",
            help="length of a clip in seconds; it is centered at the middle of its sentence "
            "(default: 3.2, which is 32 frames at 10 fps)",
        ),
        Option(
            name="neighbors",
            type=int,
            default=4,
            metavar="N",
            help="number of additional captions per clip, from the sentences nearest in time "
            "(default: 4)",
        ),
        Option(
            name="max_per_video",
            type=int,
            metavar="N",
            help="number of clips per video, evenly spaced (default: one per sentence)",
        ),
        Option(
            name="part",
            metavar="I/N",
            help="import only the I-th of N parts of the videos, 0 ≤ I < N, into the split "
            "train+partI",
        ),
    ),
    columns=("caption",),
    skip_duplicates=False,
    build_options="--fps 10 --size 256 --sample-rate 48000",
)
