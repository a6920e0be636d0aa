"""A profile of a few steps, chosen by a flag."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jax

from mmjax.errors import UserError


def parse_window(spec: str) -> tuple[int, int]:
    """(start, stop) from 'START:STOP': the steps start, …, stop - 1.

    Raises:
      UserError: anything else, or an empty window.
    """
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", spec)
    if not match:
        raise UserError(f"profile={spec!r} is not START:STOP, two step numbers such as '20:25'.")
    start, stop = int(match[1]), int(match[2])
    if start >= stop:
        raise UserError(f"profile={spec!r} covers no step: START must be smaller than STOP.")
    return start, stop


class Profiler:
    """Traces the steps of a window into `<run_dir>/profile`, for TensorBoard's profile tab.

    Around a loop::

        profiler = Profiler(window, run_dir, total_steps=total_steps)
        for step in range(first_step, total_steps):
            profiler.update(step, state)
            state = train_step(state, batch)
        profiler.close(state)
    """

    def __init__(
        self, window: str | None, run_dir: str | os.PathLike, *, total_steps: int | None = None
    ):
        """Checks the window; no trace is started.

        Args:
          window: 'START:STOP' (steps START … STOP - 1), or None or '' for no profile.
          run_dir: folder of the run.
          total_steps: the step the run ends at, to reject a window behind it.

        Raises:
          UserError: a window that is malformed, empty or behind the end of the run.
        """
        self._window = parse_window(window) if window else None
        self.folder = Path(run_dir) / "profile"
        self._running = False
        if self._window and total_steps is not None and self._window[0] >= total_steps:
            raise UserError(
                f"profile={window!r} starts after the last step ({total_steps - 1}) of this run."
            )

    def update(self, step: int, pending: Any = None) -> None:
        """Call before each step, with arrays of the step before, so that whole steps are traced."""
        if self._window is None:
            return
        start, stop = self._window
        if not self._running and start <= step < stop:  # a resumed run may begin inside the window
            jax.block_until_ready(pending)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"Cannot write a profile to {self.folder}: {error}.") from error
            jax.profiler.start_trace(str(self.folder))
            self._running = True
        elif self._running and step >= stop:
            self.close(pending)

    def close(self, pending: Any = None) -> None:
        """Ends a trace that is still running, after the arrays in `pending` are there."""
        if self._running:
            jax.block_until_ready(pending)
            jax.profiler.stop_trace()
            self._running = False
            self._window = None
