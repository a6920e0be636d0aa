"""`metrics.jsonl` of a run directory: appending, rolling back to a checkpoint, and reading.

One object per line: `{"step": 400, "time": <unix seconds>, <name>: <value>, …}`. JSON has no NaN or
infinities, so they are written as the strings "NaN", "Infinity" and "-Infinity". A line of the
evaluation job also lists its completed evaluators, `"evaluated": [name, …]`, so that results and
the record of them are one write.

A trainer and an evaluation job append to the same file. Each write holds a lock on it, and a write
that fails leaves the file as it was. A resumed trainer removes the lines after its checkpoint: it
writes them again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from mmjax import files
from mmjax.errors import UserError

METRICS_FILE = "metrics.jsonl"
EVALUATED = "evaluated"
_MARKER = "resumed_from"  # mmjax 0.1 kept the lines after a checkpoint and added a marker
_RESERVED = {"step", "time", EVALUATED, _MARKER}
_BLOCK = 65536


def cannot_write(path: Path, error: OSError) -> UserError:
    """Returns the error for metrics that cannot be written."""
    reason = error.strerror or str(error)
    return UserError(
        f"Cannot write metrics to {path}: {reason}. Free disk space, make the directory writable, "
        "or pass another --model_dir."
    )


def append(
    run_dir: str | os.PathLike,
    step: int,
    values: Mapping[str, float],
    *,
    evaluated: Sequence[str] | None = None,
) -> None:
    """Appends a line.

    Args:
      run_dir: The run directory.
      step: Number of completed updates.
      values: {name: value}.
      evaluated: Names of the evaluators that the evaluation job has completed; None for the
        trainer.

    Raises:
      UserError: The line cannot be written. The file is unchanged.
      ValueError: A name is reserved.
    """
    path = Path(run_dir) / METRICS_FILE
    if reserved := _RESERVED & set(values):
        raise ValueError(f"Reserved metric names: {sorted(reserved)}.")
    record: dict[str, Any] = {"step": int(step), "time": time.time()}
    if evaluated is not None:
        record[EVALUATED] = list(evaluated)
    record |= {name: encode(value) for name, value in values.items()}
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    try:
        with _locked(path) as file:
            size = _drop_incomplete_line(file)
            try:
                if os.write(file, line) != len(line):
                    raise OSError("the line was only partly written; the disk is probably full")
            except OSError:
                _truncate(file, size)
                raise
    except OSError as error:
        raise cannot_write(path, error) from error


def sync(run_dir: str | os.PathLike) -> None:
    """Forces the lines to disk, so that no checkpoint survives a power failure without its lines.

    Raises:
      UserError: They cannot be written.
    """
    path = Path(run_dir) / METRICS_FILE
    try:
        with _locked(path) as file:
            os.fsync(file)
    except OSError as error:
        raise cannot_write(path, error) from error


def roll_back(run_dir: str | os.PathLike, step: int) -> None:
    """Removes the lines of later steps, and what cannot be read, atomically.

    Raises:
      UserError: The file cannot be written. It is unchanged.
    """
    path = Path(run_dir) / METRICS_FILE
    try:
        with _locked(path) as file:
            _drop_incomplete_line(file)
            content = path.read_bytes()
            lines = _valid_lines(content)
            kept = [line for record, line in lines if record["step"] <= step]
            if b"".join(kept) != content:
                with files.atomic_open(path.resolve(), "wb") as new:
                    new.write(b"".join(kept))
    except OSError as error:
        raise cannot_write(path, error) from error
    if removed := len(lines) - len(kept):
        logging.info(
            "Removed %d lines of %s after step %d. Training computes them again.",
            removed,
            path,
            step,
        )


def read_records(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the records of all valid lines in order, as stored; [] without a file.

    Raises:
      UserError: The file cannot be opened.
    """
    path = Path(run_dir) / METRICS_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    return [record for record, _ in _valid_lines(content)]


def read_metrics(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the valid lines of `metrics.jsonl` in order, with NaN and infinities as floats.

    Incomplete lines are omitted, and so is the record of completed evaluators.
    """
    return [
        {k: float(v) if isinstance(v, str) else v for k, v in record.items() if k != EVALUATED}
        for record in read_records(run_dir)
    ]


def evaluated(record: Mapping[str, Any]) -> list[str]:
    """Returns the evaluators that the evaluation job completed with the results of a record."""
    names = record.get(EVALUATED)
    return names if isinstance(names, list) else []


def values_at(run_dir: str | os.PathLike, step: int, *, by_job: bool = False) -> dict[str, float]:
    """Returns the metrics written for a step, with the last value of each.

    Args:
      run_dir: The run directory.
      step: The step.
      by_job: Whether to return those of the evaluation job, or those of the trainer.

    Raises:
      UserError: The file cannot be opened.
    """
    values: dict[str, float] = {}
    for record in read_records(run_dir):
        if record["step"] == step and (EVALUATED in record) == by_job:
            values |= {k: float(v) for k, v in record.items() if k not in _RESERVED}
    return values


def identity(run_dir: str | os.PathLike) -> tuple[int, int] | None:
    """Returns a value that changes when the file is rolled back; None without a file."""
    try:
        status = os.stat(Path(run_dir) / METRICS_FILE)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def encode(value: float) -> float | str:
    """Returns a number as JSON allows it: NaN and infinities as strings that `float` reads."""
    value = float(value)
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Opens the file for appending, creates it if needed, and locks it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(path)):
                    yield file
                    return
        finally:  # closing unlocks; another process has replaced the file meanwhile
            os.close(file)


def _drop_incomplete_line(file: int) -> int:
    """Removes an unterminated line at the end, left by a killed process; returns the size."""
    size = end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(file, end - start, start).rfind(b"\n")
        end = start if found < 0 else start + found + 1
        if found >= 0:
            break
    if end < size:
        _truncate(file, end)
    return end


def _truncate(file: int, size: int) -> None:
    with contextlib.suppress(OSError):  # not a regular file
        os.ftruncate(file, size)


def _valid_lines(content: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """Returns (record, line) of the lines that are valid; later ones replace repeated steps."""
    lines: list[tuple[dict[str, Any], bytes]] = []
    for line in content.splitlines(keepends=True):
        try:
            record = files.parse_json(line, METRICS_FILE)
        except UserError:  # left by a killed process
            continue
        if not isinstance(record, dict) or not line.endswith(b"\n"):
            continue
        if isinstance(at := record.get(_MARKER), int):
            lines = [(old, text) for old, text in lines if old["step"] <= at]
        elif isinstance(record.get("step"), int):
            lines.append((record, line))
    return lines
