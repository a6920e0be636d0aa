"""Profiling of a window of training steps."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from mmjax.errors import UserError


def parse_window(spec: str, *, total_steps: int | None = None) -> tuple[int, int] | None:
    """Returns (start, stop) from 'START:STOP', the steps start, …, stop - 1; None from ''.

    Args:
      spec: The value of `--profile`.
      total_steps: Last step of the run, to reject a window after it; None skips this check.

    Raises:
      UserError: Another format, an empty window, or one after the end of the run.
    """
    if not spec:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", spec)
    if not match:
        raise UserError(
            f"--profile={spec} must be START:STOP, two step numbers, for example 20:25."
        )
    start, stop = int(match[1]), int(match[2])
    if start >= stop:
        raise UserError(f"--profile={spec} is empty. START must be smaller than STOP.")
    if total_steps is not None and start >= total_steps:
        raise UserError(f"--profile={spec} is after the last step of this run, {total_steps - 1}.")
    return start, stop


class Profiler:
    """Traces the steps of a window, for the profile tab of TensorBoard or xprof.

    Use it around a loop::

        with Profiler(run_dir / "profile", parse_window(flag)) as profiler:
            for step in range(first_step, total_steps):
                profiler.at(step, state)
                state = train_step(state, batch)
    """

    def __init__(self, directory: str | os.PathLike, window: tuple[int, int] | None):
        """Prepares the profiler; the trace starts in `at`.

        Args:
          directory: Directory of the traces; created by the first one.
          window: The result of `parse_window`; None traces nothing.
        """
        self._directory = Path(directory)
        self._window = window
        self._running = False

    def at(self, step: int, pending: Any = None) -> None:
        """Starts or ends the trace. Call it before each step.

        Args:
          step: The step that is about to run.
          pending: Arrays of the previous step. The start and the end of the trace wait for them, so
            that it contains complete steps of the device.

        Raises:
          UserError: The directory is not writable.
        """
        if self._window is None:
            return
        start, stop = self._window
        if not self._running and start <= step < stop:  # a resumed run may start inside the window
            jax.block_until_ready(pending)
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"Cannot write a profile to {self._directory}: {error}.") from error
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif self._running and step >= stop:
            self.close(pending)

    def close(self, pending: Any = None) -> None:
        """Ends a running trace."""
        if self._running:
            jax.block_until_ready(pending)
            jax.profiler.stop_trace()
            self._running = False
            self._window = None

    def __enter__(self) -> Profiler:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
