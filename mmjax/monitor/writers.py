"""Writes metrics to `metrics.jsonl`, TensorBoard and Weights & Biases."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mmjax.errors import UserError

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIR = "tensorboard"
_FLUSH_SECONDS = 10.0  # TensorBoard's writer calls fsync, too slow for every line on a network disk


class MetricWriter:
    """Writes named scalars of a step.

    `metrics.jsonl` has one object per line: `{"step": 400, "time": <unix seconds>, <name>: <value>,
    …}`. JSON has no NaN or infinities, so they are written as the strings "NaN", "Infinity" and
    "-Infinity"; `read_metrics` (and Python's `float`) converts them back. Each line is one `write`
    to a file opened for appending, so a trainer and an evaluation job can share a run directory.
    Lines are never removed: a resumed run adds a line `{"resumed_from": step, "time": …}`, which
    invalidates earlier lines of later steps.

    Use it as a context manager, or call `close`. Only process 0 writes.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        *,
        tensorboard: bool = True,
        wandb: Mapping[str, Any] | None = None,
        process_index: int = 0,
        first_step: int = 0,
    ):
        """Opens the files.

        Args:
          run_dir: The run directory; created if needed.
          tensorboard: Whether to write TensorBoard events.
          wandb: Arguments of `wandb.init` (project, name, …); None does not use Weights & Biases.
          process_index: Index of this process.
          first_step: The step that this run resumes from; 0 for a new run.

        Raises:
          UserError: The directory is not writable, or `wandb` is requested but not installed.
        """
        self._file: int | None = None
        self._events: Any = None
        self._wandb: Any = None
        if process_index != 0:
            return
        self._dir = Path(run_dir)
        self._path = self._dir / METRICS_FILE
        if wandb is not None:
            self._wandb = _start_wandb(wandb, self._dir)
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
            incomplete_line = _ends_inside_a_line(self._path)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            if incomplete_line:  # left by a killed process
                os.write(self._file, b"\n")
            if tensorboard:
                self._open_events(first_step)
        except OSError as error:
            raise _cannot_write(self._dir, error) from error
        if first_step:
            self._write_line({"resumed_from": int(first_step), "time": time.time()})

    def _open_events(self, first_step: int) -> None:
        # The synchronous writer: tensorboardX.SummaryWriter hands events to a thread, which dies
        # silently on a full disk and then blocks the training loop on its queue.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory = self._dir / TENSORBOARD_DIR
        directory.mkdir(exist_ok=True)
        # File names have a resolution of one second, but two writers must not share a file.
        self._events = EventsWriter(str(directory / "events"), f".{os.getpid()}.{time.time_ns()}")
        self._flushed = time.monotonic()
        # Makes TensorBoard hide what an interrupted run logged at or after the next step.
        if first_step:
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(
                Event(wall_time=time.time(), step=int(first_step) + 1, session_log=start)
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics of one step.

        Args:
          step: Number of completed updates.
          values: {name: value}; anything that `float` accepts, including 0-d arrays.

        Raises:
          UserError: The metrics cannot be written, for example because the disk is full.
          ValueError: A name is reserved.
        """
        if self._file is None:
            return
        reserved = {"step", "time", "resumed_from"} & set(values)
        if reserved:
            raise ValueError(f"Reserved metric names: {sorted(reserved)}.")
        now, step = time.time(), int(step)
        floats = {name: float(value) for name, value in values.items()}
        encoded = {name: _to_json(value) for name, value in floats.items()}
        self._write_line({"step": step, "time": now, **encoded})
        if self._events is not None:
            self._write_events(step, now, floats)
        if self._wandb is not None:
            self._wandb.log(floats, step=step)

    def _write_line(self, record: dict[str, Any]) -> None:
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        try:
            if os.write(self._file, line) != len(line):
                raise OSError("the line was only partly written, probably because the disk is full")
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def _write_events(self, step: int, now: float, values: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        try:
            self._events.write_event(Event(wall_time=now, step=step, summary=Summary(value=points)))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._events.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            raise _cannot_write(self._dir / TENSORBOARD_DIR, error) from error

    def close(self) -> None:
        """Flushes and closes all files. Later calls do nothing."""
        file, self._file = self._file, None
        events, self._events = self._events, None
        run, self._wandb = self._wandb, None
        if file is not None:
            os.close(file)
        if run is not None:
            run.finish()
        if events is not None:
            try:
                events.close()
            except OSError as error:
                raise _cannot_write(self._dir / TENSORBOARD_DIR, error) from error

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except UserError:
            if error is None:  # otherwise the first error matters
                raise


def read_metrics(run_dir: str | os.PathLike) -> list[dict[str, Any]]:
    """Returns the valid lines of `metrics.jsonl` in order, with NaN and infinities as floats.

    Lines of steps that were repeated after a resume are replaced by the repetition. Markers and
    incomplete lines are omitted.
    """
    records: list[dict[str, Any]] = []
    for line in (Path(run_dir) / METRICS_FILE).read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # left by a killed process
            continue
        if "resumed_from" in record:
            records = [old for old in records if old["step"] <= record["resumed_from"]]
        else:
            records.append({k: float(v) if isinstance(v, str) else v for k, v in record.items()})
    return records


def _to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _ends_inside_a_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _start_wandb(options: Mapping[str, Any], run_dir: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            "config.wandb is set, but wandb is not installed. Run `pip install 'mmjax[wandb]'`, or "
            "remove config.wandb."
        ) from error
    run_dir.mkdir(parents=True, exist_ok=True)
    return wandb.init(**{"dir": str(run_dir), "resume": "allow", **options})


def _cannot_write(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(
        f"Cannot write metrics to {path}: {reason}. Free disk space or pass another --model_dir."
    )
