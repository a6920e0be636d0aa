"""Builds shards and their reports. Any process can build any shard."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from mmjax import files
from mmjax.data.build import plan as plans
from mmjax.data.build.examples import Reader, make_example
from mmjax.data.build.manifest import Clip
from mmjax.data.build.options import BuildOptions
from mmjax.data.build.plan import BuildPlan, Shard
from mmjax.data.storage import record_images, schema, tfrecord
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardBuilder:
    """Builds shards. It can be pickled, so any runner can send it to its workers.

    Attributes:
      out: The dataset.
      media_root: Directory that paths are relative to.
      options: See `BuildPlan`.
      classes: See `BuildPlan`.
      key: See `BuildPlan`.
      table: See `BuildPlan`.
      on_error: 'skip' records clips that cannot be built in the report; 'fail' raises UserError.
    """

    out: str
    media_root: str
    options: BuildOptions
    classes: Mapping[str, int]
    key: str
    table: str = ""
    on_error: Literal["skip", "fail"] = "skip"

    def __call__(self, shard: Shard, tick: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Writes a shard, its index and its report.

        Args:
          shard: The shard.
          tick: Called after each clip.

        Returns:
          The report: key, split, number of clips, statistics, shapes, and the clips that could not
          be built, as rows of `bad_rows.csv`.
        """
        statistics: collections.Counter = collections.Counter()
        shapes: dict[str, set] = collections.defaultdict(set)
        bad = []
        reader = Reader(self.options, self.media_root)
        try:
            with tfrecord.ShardWriter(os.path.join(self.out, shard.name)) as writer:
                for clip in shard.clips:
                    try:
                        example = make_example(clip, reader, self.classes)
                        payload = schema.encode(example)
                    except Exception as error:  # a damaged file can raise anything
                        bad.append(self._handle(error, clip))
                    else:
                        writer.write(payload)
                        _measure(example, clip, statistics, shapes)
                    tick()
        finally:
            reader.close()
        report = {
            "key": self.key,
            "split": shard.split,
            "clips": len(shard.clips),
            "bad": bad,
            "statistics": dict(sorted(statistics.items())),
            "shapes": {name: sorted(values) for name, values in sorted(shapes.items())},
        }
        files.write_json(_report_path(self.out, shard), report, indent=None)
        return report

    def _handle(self, error: Exception, clip: Clip) -> dict[str, Any]:
        """Returns the row of `bad_rows.csv` for a clip that cannot be built, or raises."""
        problem = str(error) if isinstance(error, UserError) else repr(error)
        problem = problem.replace(os.path.join(self.media_root, ""), "")
        if self.on_error == "fail":
            raise UserError(f"{clip.location(self.table)}: {problem}") from error
        return {
            "line": clip.line,
            "path": clip.file,
            "start": clip.start,
            "end": clip.end,
            "error": problem,
        }


def read_report(out: str, shard: Shard) -> dict[str, Any] | None:
    """Returns the report of a shard, or None if it has not been built."""
    return plans.read_json(_report_path(out, shard))


def unfinished(out: str, plan: BuildPlan, *, retry_bad: bool = False) -> list[Shard]:
    """Returns the shards that are not finished.

    Args:
      out: The dataset.
      plan: Its plan.
      retry_bad: Whether shards with clips that could not be built count as unfinished.
    """
    result = []
    for shard in plan.shards():
        report = read_report(out, shard)
        done = report is not None and report["key"] == plan.key
        done = done and os.path.exists(os.path.join(out, shard.name))
        if not done or (retry_bad and report["bad"]):
            result.append(shard)
    return result


def _report_path(out: str, shard: Shard) -> str:
    return os.path.join(out, plans.WORK_DIR, f"{shard.name}.json")


def _measure(
    example: schema.Example,
    clip: Clip,
    statistics: collections.Counter,
    shapes: dict[str, set],
) -> None:
    """Adds an example to the statistics of its shard."""
    statistics["examples"] += 1
    statistics["seconds"] += (example.end_us - example.start_us) / 1e6
    statistics["captions"] += len(example.captions)
    for name in example.modalities:
        statistics[f"with_{name}"] += 1
    statistics["touch_backgrounds"] += len(example.touch_background)
    if clip.end is not None and example.end_us < round(clip.end * 1e6):
        statistics["shortened"] += 1
    if example.frames:
        statistics["frames"] += len(example.frames)
        shapes["num_frames"].add(len(example.frames))
        width, height = record_images.size(example.frames[0])
        shapes["frame_size"].add((height, width))
    for mask in example.masks:
        pixels = np.bincount(schema.decode_mask(mask).ravel(), minlength=256)
        statistics.update({f"mask/{value}": int(pixels[value]) for value in np.flatnonzero(pixels)})
    if example.waveform is not None:
        power = np.mean(np.square(example.waveform, dtype=np.float64))
        statistics["audio_rms"] += float(np.sqrt(power))
        shapes["num_samples"].add(len(example.waveform))
