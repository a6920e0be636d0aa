"""Builds a dataset from a table or a directory of images in one call: the `mmjax build` command."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Literal

from mmjax.cpus import available_cpus
from mmjax.data.build import build, manifest, runners
from mmjax.data.storage import dataset
from mmjax.errors import UserError

_MAX_FILES = 20  # files with problems that the summary lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """The clips to build a dataset from.

    Attributes:
      csv: A table (.csv, .tsv, .jsonl, .parquet), or None.
      images: A directory with images in class directories, or None.
      media_root: Directory that paths are relative to (default: that of the table or images).
      separator: Separator of several captions or labels in one cell of the table.
      split: Split of rows that do not specify one.
    """

    csv: str | None = None
    images: str | None = None
    media_root: str | None = None
    separator: str = "|"
    split: str = "train"

    def read(self) -> tuple[list[manifest.Clip], str]:
        """Returns `(clips, media root)`.

        Raises:
          UserError: Neither a table nor a directory is given, or it cannot be read.
        """
        if self.csv:
            rows = manifest.read_table(self.csv, separator=self.separator, split=self.split)
            return rows, self.media_root or os.path.dirname(os.path.abspath(self.csv))
        if self.images:
            rows = manifest.read_image_directory(self.images, split=self.split)
            return rows, self.media_root or self.images
        raise UserError("Nothing to build. Pass --csv FILE, --images DIR or --finalize.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a build has written.

    Attributes:
      message: A description of the result, for the user.
      bad_fraction: Fraction of clips that could not be built; 0 for a part of a dataset.
    """

    message: str
    bad_fraction: float = 0.0


def build_dataset(
    out: str,
    source: Source,
    options: build.Options,
    *,
    classes: str | None = None,
    workers: int | None = None,
    on_error: Literal["skip", "fail"] = "skip",
    retry_bad: bool = False,
    overwrite: bool = False,
    part: str | None = None,
    runner: Literal["local", "beam"] = "local",
    beam_arguments: Sequence[str] = (),
    progress: bool = True,
) -> Result:
    """Builds a dataset, or the shards of it that are not finished.

    Args:
      out: The dataset.
      source: The clips.
      options: How clips are cut and stored.
      classes: A file with class names, one per line, in order.
      workers: Number of processes (default: one per core).
      on_error: Whether to skip a row that cannot be built, or to fail.
      retry_bad: Whether to build shards with bad rows again.
      overwrite: Whether to replace a different dataset in `out`.
      part: 'I/N' to build only the I-th of N parts; then `finalize` once all are built.
      runner: Where shards are built: in processes of this machine, or by Apache Beam.
      beam_arguments: Pipeline arguments for Apache Beam.
      progress: Whether to show progress bars.

    Raises:
      UserError: The source, options or media are wrong; see `mmjax.data.build.build`.
    """
    rows, root = source.read()
    index, count = manifest.parse_part(part, option="--shard")
    workers = workers or available_cpus()
    plan = build.prepare(
        out,
        rows,
        options,
        media_root=root,
        class_names=_lines(classes) if classes else None,
        overwrite=overwrite,
        workers=4 * workers,
        progress=progress,
    )
    own = {shard.name for shard in plan.shards()[index::count]}
    shards = [s for s in build.pending(out, plan, retry_bad=retry_bad) if s.name in own]
    builder = build.ShardBuilder(
        out=os.path.abspath(out),
        media_root=os.path.abspath(root),
        options=plan.options,
        classes=plan.classes,
        key=plan.key,
        on_error=on_error,
    )
    if runner == "beam":
        runners.run_beam(builder, shards, arguments=list(beam_arguments))
    else:
        runners.run_local(builder, shards, workers=workers, progress=progress)
    kept = len(own) - len(shards)
    lines = [f"Kept {kept} of {len(own)} shards, which were already built."] if kept else []
    if count > 1:
        lines.append(
            f"Built part {index} of {count}: {len(own)} shards. After all parts are built, run "
            f"mmjax build --finalize --out {out}"
        )
        return Result(message="\n".join(lines))
    result = _finalize(out, plan)
    return dataclasses.replace(result, message="\n".join([*lines, result.message]))


def finalize(out: str) -> Result:
    """Writes `dataset.json` of a dataset whose parts have been built.

    Raises:
      UserError: Shards are missing, or `out` is not a dataset that `mmjax build` has started.
    """
    return _finalize(out, build.load_plan(out))


def _finalize(out: str, plan: build.Plan) -> Result:
    bad = build.finalize(out, plan)
    info = dataset.DatasetInfo.load(out)
    lines = [dataset.describe(info)]
    if shortened := info.statistics["shortened"]:
        lines.append(f"{shortened} clips are shorter than requested because their files end early.")
    if bad:
        lines += ["", *_describe_bad(bad, len(plan.clips))]
    return Result(message="\n".join(lines), bad_fraction=len(bad) / len(plan.clips))


def _describe_bad(bad: Sequence[dict[str, Any]], num_clips: int) -> list[str]:
    """Returns a table with the first bad row of each file."""
    by_file: dict[str, list[dict[str, Any]]] = {}
    for row in bad:
        by_file.setdefault(row["path"], []).append(row)
    lines = [
        f"{len(bad)} of {num_clips} clips could not be built (listed in bad_rows.csv):",
        "   line  clips  problem",
    ]
    for rows in list(by_file.values())[:_MAX_FILES]:
        lines.append(f"{rows[0]['row']:>7}  {len(rows):>5}  {rows[0]['error']}")
    if len(by_file) > _MAX_FILES:
        lines.append(f"… and {len(by_file) - _MAX_FILES} more files")
    return [*lines, "After repairing the files, run the same command with --retry-bad."]


def _lines(path: str) -> list[str]:
    if not os.path.exists(path):
        raise UserError(f"--classes: {path} does not exist.")
    with open(path, encoding="utf-8-sig") as file:
        return [line.strip() for line in file if line.strip()]
