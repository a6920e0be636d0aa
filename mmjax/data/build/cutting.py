"""Cuts media files into clips of equal length, and assigns clips to splits by file or by time."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence

from mmjax.data.build import splits
from mmjax.data.build.manifest import Clip
from mmjax.errors import UserError

Fractions = Sequence[tuple[str, float]]  # (split, fraction of the data)


def cut(
    clips: Sequence[Clip],
    *,
    durations: Mapping[str, float],
    clip_seconds: float | None,
    by_time: Fractions = (),
    table: str = "",
) -> list[Clip]:
    """Cuts clips into consecutive clips of equal length, and splits files by time.

    Args:
      clips: The clips of the table.
      durations: Seconds by path. A clip whose file is missing here, or that starts after the end
        of its file, is not changed: building it reports the problem.
      clip_seconds: Length of the new clips in seconds; None to keep the clips of the table. A
        remainder of at least half this length is kept, and so is a shorter clip of the table.
      by_time: Splits and their fractions of each file, in order of time. No new clip crosses the
        border between two splits. Clips of the table are assigned by their middle.
      table: The table, for messages.

    Raises:
      UserError: `by_time` is used for a whole file without `clip_seconds`.
    """
    result = []
    for clip in clips:
        duration = durations.get(clip.path, durations.get(clip.audio))
        if duration is None or (clip.start or 0.0) >= duration:
            result.append(clip)
            continue
        start, end = clip.start or 0.0, min(clip.end or math.inf, duration)
        if clip_seconds:
            result += _cut(clip, start, end, duration, clip_seconds, by_time)
        elif by_time:
            if clip.start is None and clip.end is None:
                raise UserError(
                    f"{clip.location(table)}: --split-by-time cannot split the whole file "
                    f"{clip.file}. Cut it with --clip-seconds, or use --split-by-file."
                )
            split = _split_at((start + end) / 2 / duration, by_time)
            result.append(dataclasses.replace(clip, split=split))
        else:
            result.append(clip)
    return result


def _cut(
    clip: Clip, start: float, end: float, duration: float, length: float, by_time: Fractions
) -> list[Clip]:
    """Returns consecutive clips of `length` seconds between start and end, by split."""
    parts = [(clip.split, start, end)]
    if by_time:
        edges = [edge * duration for edge in splits.cumulative(by_time)]
        parts = [
            (name, max(start, low), min(end, high))
            for (name, _), low, high in zip(by_time, [0.0, *edges], edges, strict=False)
        ]
    result = []
    for split, low, high in parts:
        count = math.floor((high - low) / length + 0.5 + 1e-9)
        for k in range(count if by_time else max(count, 1)):
            first, last = low + k * length, min(low + (k + 1) * length, high)
            # Times are stored in microseconds, and sums of fractions have rounding errors.
            result.append(
                dataclasses.replace(clip, split=split, start=round(first, 6), end=round(last, 6))
            )
    return result


def split_by_file(clips: Sequence[Clip], fractions: Fractions) -> list[Clip]:
    """Assigns whole files to splits by a hash of their path.

    Adding files to the table does not change the split of others.
    """
    return [
        dataclasses.replace(clip, split=_split_at(_hash(clip.file), fractions)) for clip in clips
    ]


def _split_at(position: float, fractions: Fractions) -> str:
    """Returns the split of a position in [0, 1]."""
    edges = zip(fractions, splits.cumulative(fractions), strict=True)
    return next((name for (name, _), edge in edges if position < edge), fractions[-1][0])


def _hash(path: str) -> float:
    """Returns a hash of a path, uniformly distributed in [0, 1)."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64
