"""The message that `mmjax build` prints about a finished dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax.data.build.plan import BAD_ROWS, BuildPlan
from mmjax.data.storage import dataset

_MAX_FILES = 20  # files with problems that the report lists


def report(out: str, plan: BuildPlan, bad: Sequence[dict[str, Any]]) -> str:
    """Returns the contents of a dataset, and the clips that could not be built.

    Args:
      out: The dataset.
      plan: The plan that it was built from.
      bad: The rows of `bad_rows.csv`, as `finalize` returns them.
    """
    info = dataset.DatasetInfo.load(out)
    lines = [dataset.describe(info)]
    if shortened := info.statistics["shortened"]:
        lines.append(f"{shortened} examples are shorter than requested: their files end early.")
    lines += _describe_empty_splits(plan)
    if bad:
        lines += ["", *_describe_bad(bad, len(plan.clips), plan.table)]
    return "\n".join(lines)


def _describe_empty_splits(plan: BuildPlan) -> list[str]:
    """Returns a warning if a split that the options name has no clip."""
    fractions = dict(plan.options.by_time or plan.options.by_file)
    empty = fractions.keys() - {name for clip in plan.clips for name in clip.split.split("+")}
    if not empty:
        return []
    names = ", ".join(name for name in fractions if name in empty)
    if plan.options.by_file:
        return [f"Warning: no file is in the split {names}. Use more files or --split-by-time."]
    return [
        f"Warning: no clip is in the split {names}. Its part of each file is shorter than half of "
        "--clip-seconds. Use a larger fraction, shorter clips or --split-by-file."
    ]


def _describe_bad(bad: Sequence[dict[str, Any]], num_clips: int, table: str) -> list[str]:
    """Returns one line per file, with its first problem."""
    by_file: dict[str, list[dict[str, Any]]] = {}
    for row in bad:
        by_file.setdefault(row["path"], []).append(row)
    source = f" of {table}" if table else ""
    lines = [
        f"Could not build {len(bad)} of {num_clips} examples{source} ({BAD_ROWS} lists all):",
        "   line  examples  problem",
    ]
    for rows in list(by_file.values())[:_MAX_FILES]:
        lines.append(f"{rows[0]['line']:>7}  {len(rows):>8}  {rows[0]['error']}")
    if len(by_file) > _MAX_FILES:
        lines.append(f"… and {len(by_file) - _MAX_FILES} more files")
    return [*lines, "After repairing the files, run the same command with --retry-bad."]
