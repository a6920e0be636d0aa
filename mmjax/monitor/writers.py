"""Writes metrics to `metrics.jsonl`, TensorBoard and Weights & Biases."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mmjax.errors import UserError
from mmjax.monitor import metrics_file
from mmjax.monitor.metrics_file import cannot_write

TENSORBOARD_DIR = "tensorboard"
_FLUSH_SECONDS = 10.0  # TensorBoard's writer calls fsync, too slow for every line on a network disk


class MetricWriter:
    """Writes named scalars of a step to `metrics.jsonl` (see `metrics_file`) and other targets.

    Use it as a context manager, or call `close`. Only process 0 writes.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        *,
        tensorboard: bool = True,
        wandb: Mapping[str, Any] | None = None,
        process_index: int = 0,
        resume_at: int | None = None,
    ):
        """Opens the files.

        Args:
          run_dir: The run directory; created if needed.
          tensorboard: Whether to write TensorBoard events.
          wandb: Arguments of `wandb.init` (project, name, …); None does not use Weights & Biases.
          process_index: Index of this process.
          resume_at: The step that training starts from: lines of later steps, left by a process
            that was killed, are removed. None, of the evaluation job, removes nothing.

        Raises:
          UserError: The directory is not writable, or `wandb` is requested but not installed.
        """
        self._dir: Path | None = None
        self._events: Any = None
        self._wandb: Any = None
        if process_index != 0:
            return
        directory = Path(run_dir)
        if wandb is not None:
            self._wandb = _start_wandb(wandb, directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if resume_at is not None:
                metrics_file.roll_back(directory, resume_at)
            if tensorboard:
                self._open_events(directory / TENSORBOARD_DIR, resume_at)
        except OSError as error:
            raise cannot_write(directory, error) from error
        self._dir = directory

    def _open_events(self, directory: Path, resume_at: int | None) -> None:
        # The synchronous writer: tensorboardX.SummaryWriter hands events to a thread, which dies
        # silently on a full disk and then blocks the training loop on its queue.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory.mkdir(exist_ok=True)
        resumed = resume_at is not None and any(directory.iterdir())
        # File names have a resolution of one second, but two writers must not share a file.
        self._events = EventsWriter(str(directory / "events"), f".{os.getpid()}.{time.time_ns()}")
        self._flushed = time.monotonic()
        # Makes TensorBoard hide what an interrupted run logged at or after the next step.
        if resumed:
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(
                Event(wall_time=time.time(), step=int(resume_at) + 1, session_log=start)
            )

    def scalars(
        self, step: int, values: Mapping[str, float], *, evaluated: Sequence[str] | None = None
    ) -> None:
        """Writes the metrics of one step.

        Args:
          step: Number of completed updates.
          values: {name: value}; anything that `float` accepts, including 0-d arrays.
          evaluated: Evaluators that the evaluation job has completed; None for the trainer.

        Raises:
          UserError: The metrics cannot be written, for example because the disk is full.
          ValueError: A name is reserved.
        """
        if self._dir is None:
            return
        floats = {name: float(value) for name, value in values.items()}
        metrics_file.append(self._dir, step, floats, evaluated=evaluated)
        if self._events is not None:
            self._write_events(int(step), time.time(), floats)
        if self._wandb is not None:
            self._wandb.log(floats, step=int(step))

    def sync(self) -> None:
        """Forces the lines of `metrics.jsonl` to disk."""
        if self._dir is not None:
            metrics_file.sync(self._dir)

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
            raise cannot_write(self._dir / TENSORBOARD_DIR, error) from error

    def close(self) -> None:
        """Flushes and closes all files. Later calls do nothing."""
        events, self._events = self._events, None
        run, self._wandb = self._wandb, None
        if run is not None:
            run.finish()
        if events is not None:
            try:
                events.close()
            except OSError as error:
                raise cannot_write(self._dir / TENSORBOARD_DIR, error) from error

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
