"""HowTo100M: what people say while they show how something is done."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence

from mmjax.data.importers.annotations import json_items, rows, seconds
from mmjax.data.importers.base import File, Importer, Item, Job
from mmjax.errors import UserError

_CAPTIONS = ("caption.json", "raw_caption.json", "raw_caption_superclean.json")
_LISTS = ("HowTo100M_v1.csv", "task_ids.csv")

Sentence = tuple[float, str]  # its middle in seconds, its text


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clip-seconds",
        type=float,
        default=3.2,
        metavar="S",
        help="length of the window around the middle of a sentence (3.2: 32 frames at 10 fps)",
    )
    parser.add_argument(
        "--neighbors",
        type=int,
        default=4,
        metavar="N",
        help="captions beside a clip's own: of the sentences nearest in time (4)",
    )
    parser.add_argument(
        "--max-per-video",
        type=int,
        metavar="N",
        help="so many clips of a video, evenly spread (default: one per sentence)",
    )
    parser.add_argument(
        "--part",
        metavar="I/N",
        help="only the I-th of N parts of the videos, 0 ≤ I < N, as the split train+partI",
    )


def _read(job: Job) -> Iterator[Item]:
    # Brings TensorFlow; the other importers do without.
    from mmjax.data.build.manifest import parse_part
    from mmjax.data.text.tokenizers import split_words

    options = job.options
    if options.clip_seconds <= 0 or options.neighbors < 0 or (options.max_per_video or 1) < 1:
        raise UserError("--clip-seconds and --max-per-video are positive, --neighbors at least 0.")
    part, parts = parse_part(options.part, option="--part")
    listed = _listed(job)
    for number, (video, sentences, where) in enumerate(_videos(job)):
        if number % parts != part:
            continue
        if listed is not None and video not in listed:
            job.skipped["sentences of videos that HowTo100M_v1.csv does not list"] += len(sentences)
            continue
        spoken = sorted((middle, text) for middle, text in sentences if split_words(text))
        if empty := len(sentences) - len(spoken):
            job.skipped["sentences without a word"] += empty
        for index in spread(len(spoken), options.max_per_video):
            middle, half = spoken[index][0], options.clip_seconds / 2
            start = max(middle - half, 0.0)
            yield Item(
                files=(File(video, start, start + options.clip_seconds),),
                captions=[spoken[near][1] for near in nearest(spoken, index, options.neighbors)],
                split="train" if parts == 1 else f"train+part{part}",
                where=where,
            )


def nearest(sentences: Sequence[Sentence], index: int, neighbors: int) -> list[int]:
    """The number of a sentence, and of so many others as are nearest to it in time, nearest first.

    Args:
      sentences: in order of time.
      index: the sentence that comes first.
      neighbors: how many others, if there are as many; of equal ones the earlier.
    """
    around = range(max(index - neighbors, 0), min(index + neighbors + 1, len(sentences)))
    others = (other for other in around if other != index)
    middle = sentences[index][0]
    ranked = sorted(others, key=lambda other: (abs(sentences[other][0] - middle), other))
    return [index, *ranked[:neighbors]]


def spread(count: int, most: int | None) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread."""
    if most is None or count <= most:
        return list(range(count))
    return [(2 * k + 1) * count // (2 * most) for k in range(most)]


def _listed(job: Job) -> set[str] | None:
    path = job.annotations.optional("HowTo100M_v1.csv")
    return {row["video_id"] for _, row in rows(path, "video_id")} if path else None


def _videos(job: Job) -> Iterator[tuple[str, list[Sentence], str]]:
    """(video, sentences, where) of the one JSON file, or of one CSV file per video."""
    path = job.annotations.optional(*_CAPTIONS)
    tables = () if path else job.annotations.all("*.csv")
    tables = [table for table in tables if os.path.basename(table) not in _LISTS]
    if not tables:
        job.annotations.some(*_CAPTIONS)
    for video, entry in json_items(path) if path else ():
        yield video, _sentences(entry, path, video), f"{os.path.basename(path)}, {video}"
    for table in tables:
        sentences = []
        for number, row in rows(table, "start", "end", "text"):
            start = seconds(row["start"], table, number)
            end = max(seconds(row["end"], table, number), start)
            sentences.append(((start + end) / 2, row["text"]))
        yield os.path.splitext(os.path.basename(table))[0], sentences, os.path.basename(table)


def _sentences(entry, path: str, video: str) -> list[Sentence]:
    try:
        starts, ends, texts = (entry[key] for key in ("start", "end", "text"))
        found = [
            ((float(start) + float(end)) / 2, text.strip() if isinstance(text, str) else "")
            for start, end, text in zip(starts, ends, texts, strict=True)  # NaN for no text
        ]
        if not all(0 <= middle < 1e6 for middle, _ in found):
            raise ValueError("a time is negative or not finite")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: the entry of {video} is not lists start, end and text of equal length "
            f"({error})."
        ) from error
    return found


HOWTO100M = Importer(
    name="howto100m",
    title="HowTo100M: narrated instructional videos, a clip per sentence",
    needs="""caption.json, raw_caption.json or raw_caption_superclean.json, or a folder with a CSV
    (start, end, text) per video; HowTo100M_v1.csv to take only the videos it lists""",
    names="ID: the whole video",
    read=_read,
    add_options=_options,
    columns=("caption",),
    check_repeats=False,
    build="--fps 10 --size 256 --sample-rate 48000",
)
