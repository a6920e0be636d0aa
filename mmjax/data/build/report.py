"""The message that `mmjax build` prints about a finished dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmjax.data.build.plan import BAD_ROWS
from mmjax.data.storage import dataset

_MAX_FILES = 20  # files with problems that the report lists


def report(out: str, bad: Sequence[dict[str, Any]], *, num_clips: int, table: str = "") -> str:
    """Returns the contents of a dataset, and the clips that could not be built.

    Args:
      out: The dataset.
      bad: The rows of `bad_rows.csv`, as `finalize` returns them.
      num_clips: Number of clips in the plan.
      table: The table that the line numbers refer to.
    """
    info = dataset.DatasetInfo.load(out)
    lines = [dataset.describe(info)]
    if shortened := info.statistics["shortened"]:
        lines.append(f"{shortened} examples are shorter than requested: their files end early.")
    if bad:
        lines += ["", *_describe_bad(bad, num_clips, table)]
    return "\n".join(lines)


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
