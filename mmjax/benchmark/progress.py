"""Progress of a benchmark: a live table on a terminal, plain lines otherwise.

Each process writes a status file, so that the table of one process shows all of them.
"""

from __future__ import annotations

import collections
import os
import pathlib
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mmjax import files
from mmjax.errors import UserError
from mmjax.monitor import metrics_file
from mmjax.monitor.report import format_seconds
from mmjax.plain_text import plain

FINISHED, FAILED, SKIPPED, DONE_BEFORE = "finished", "failed", "skipped", "done before"
_DIRECTORY = ".progress"
_INTERVAL = 1.0  # seconds between updates of the table
_STALE = 600.0  # seconds after which the status of a process is not shown anymore


class Clock:
    """Counts cells and estimates the remaining time from those that were run.

    Attributes:
      counts: Number of cells by state.
    """

    def __init__(self) -> None:
        self._ran, self._seconds = 0, 0.0
        self.counts: collections.Counter[str] = collections.Counter()

    def count(self, state: str, seconds: float) -> None:
        """Counts a cell that has ended."""
        self.counts[state] += 1
        if state == FINISHED:
            self._ran += 1
            self._seconds += seconds

    def remaining(self, total: int) -> float | None:
        """Returns the seconds that the other cells need; None if that is unknown."""
        if not self._ran:
            return None
        return (total - self.counts.total()) * self._seconds / self._ran


class Reporter:
    """Shows which cell runs, how far it is, and what became of the cells before.

    Use it as a context manager.

    Args:
      out: Directory of the benchmark.
      total: Number of cells.
      device: Name of the device, for several processes.
      live: Whether to draw a table; None for whether the stream is a terminal.
      stream: Where to print.
    """

    def __init__(
        self,
        out: str | os.PathLike,
        *,
        total: int,
        device: str = "",
        live: bool | None = None,
        stream: IO[str] | None = None,
    ):
        self._stream = stream or sys.stderr
        self._total, self._device, self._clock = total, device, Clock()
        name = f"{platform.node()}-{os.getpid()}.json"
        self._directory = pathlib.Path(out, _DIRECTORY)
        self._path = self._directory / name
        self._live = None
        if self._stream.isatty() if live is None else live:
            console = Console(file=self._stream)
            self._live = Live(get_renderable=self._table, console=console, refresh_per_second=1)

    def __enter__(self) -> Reporter:
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        files.remove(self._path)
        if self._live:
            self._live.stop()

    def skipped(self, missing: Mapping[str, Sequence[str]], count: int) -> None:
        """Reports end tasks whose files are missing.

        Args:
          missing: {end task: patterns of missing files}.
          count: Number of cells that are skipped.
        """
        self._total -= count
        for name, patterns in missing.items():
            if patterns:
                more = f" and {len(patterns) - 1} more" if len(patterns) > 1 else ""
                self._print(f"Skipping {name}: no files {patterns[0]}{more}")

    def started(self, title: str, run_dir: pathlib.Path | None = None) -> None:
        """Reports that a cell starts.

        Args:
          title: The cell.
          run_dir: Its run directory, whose metrics tell how far it is.
        """
        self._write(title=title, run_dir=str(run_dir or ""), started=time.time())
        if not self._live:
            self._print(f"{self._clock.counts.total() + 1}/{self._total} {title} …")

    def ended(self, title: str, state: str, reason: str = "", seconds: float = 0.0) -> None:
        """Reports what became of a cell."""
        self._clock.count(state, seconds)
        self._write(title="")
        if state == DONE_BEFORE:
            return
        took = f" in {format_seconds(seconds)}" if seconds else ""
        left = self._clock.remaining(self._total)
        eta = f" (about {format_seconds(left)} left)" if left else ""
        self._print(f"{title}: {state}{took}{eta}{f': {reason}' if reason else ''}")

    def _print(self, text: str) -> None:
        prefix = f"[{self._device}] " if self._device else ""
        line = plain(f"{time.strftime('%H:%M:%S')} {prefix}{text}")
        if self._live:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self._stream, flush=True)

    def _write(self, **values: Any) -> None:
        status = dict(
            device=self._device,
            done=self._clock.counts.total(),
            total=self._total,
            remaining=self._clock.remaining(self._total),
            failed=self._clock.counts[FAILED],
        )
        files.write_json(self._path, status | values)

    def _table(self) -> Table:
        table = Table("device", "cell", "progress", "cells", "failed", "left")
        for status in _statuses(self._directory):
            left = status["remaining"]
            table.add_row(
                plain(status["device"] or "-"),
                plain(status["title"]),
                _share(status.get("run_dir", "")),
                f"{status['done']}/{status['total']}",
                str(status["failed"]),
                format_seconds(left) if left is not None else "",
            )
        return table


def _statuses(directory: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the status of each process that works on the benchmark."""
    result = []
    for path in sorted(directory.glob("*.json")):
        try:
            if time.time() - path.stat().st_mtime < _STALE:
                result.append(files.read_object(path, ""))
        except (OSError, UserError):  # it was just removed
            continue
    return result


def _share(run_dir: str) -> str:
    """Returns the share of the steps of a run that are done, as text."""
    try:
        total = files.read_object(pathlib.Path(run_dir, "config.json"), "")["total_steps"]
        records = metrics_file.read_metrics(run_dir)
        return f"{max((r['step'] for r in records), default=0) / total:.0%}"
    except (OSError, UserError, KeyError):
        return ""
