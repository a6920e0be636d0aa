"""Timing of a training loop: rates, shares and the estimated end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from mmjax.monitor import flops, report

_WINDOW = 200  # steps from which rates and the ETA are computed


class _Step(NamedTuple):
    """Times after a step, in seconds: the clock without pauses, and totals since the start."""

    end: float
    data: float
    step: float


class Progress:
    """Measures a training loop and formats its progress line.

    Use it around a loop::

        progress = Progress(total_steps, first_step=first_step, batch_size=batch_size)
        for step in range(first_step, total_steps):
            with progress.data():
                batch = next(batches)
            with progress.step():
                state, metrics = train_step(state, batch)
            if time_to_log:
                values = jax.device_get(metrics)
                writer.scalars(step + 1, values | progress.metrics())
                print(progress.line(step + 1, values))
            if time_to_evaluate:
                with progress.pause():
                    evaluate(state)

    Rates and the ETA are computed from recent steps, without the first one (which compiles) and
    without time inside `pause`. JAX returns from a step before the device has finished it, so
    shares are shares of host time. They are correct as long as the loop waits for the device
    regularly; fetching any metric does.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        first_step: int = 0,
        batch_size: int,
        flops_per_step: float | None = None,
        peak_flops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Starts the clock.

        Args:
          total_steps: Last step of the run.
          first_step: Step at which the run starts or resumes.
          batch_size: Global batch size.
          flops_per_step: FLOPs of the global batch, forward and backward; None shows no MFU.
          peak_flops: Peak FLOP/s of all devices (`flops.peak_of`); None shows no MFU.
          clock: Function that returns seconds.
        """
        self._total_steps = total_steps
        self._step = first_step
        self._batch_size = batch_size
        self._flops = flops_per_step
        self._peak = peak_flops
        self._clock = clock
        self._started = clock()
        self._paused = self._data = self._in_step = 0.0
        self._fed = False
        self._recent: deque[_Step] = deque(maxlen=_WINDOW + 1)
        self.first_step_seconds: float | None = None  # compilation and the first step

    @contextmanager
    def data(self) -> Iterator[None]:
        """Context of waiting for the next batch."""
        start = self._clock()
        try:
            yield
        finally:
            self._data += self._clock() - start
            self._fed = True

    @contextmanager
    def step(self) -> Iterator[None]:
        """Context of one training step, or of waiting for its results.

        It counts as a step if a batch was fetched since the last one. Otherwise it only adds time,
        also to the first step if it waits for its results.
        """
        start = self._clock()
        yield
        now = self._clock()
        self._in_step += now - start
        if not self._fed:
            if len(self._recent) == 1:
                self.first_step_seconds += now - start
                self._recent[0] = _Step(now - self._paused, self._data, self._in_step)
            return
        self._fed = False
        if self.first_step_seconds is None:
            self.first_step_seconds = now - start
        self._step += 1
        self._recent.append(_Step(now - self._paused, self._data, self._in_step))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Context of anything else, such as evaluation or a blocking checkpoint."""
        start = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - start

    def metrics(self) -> dict[str, float]:
        """Returns metrics of recent steps, `perf/<name>`; {} before the second step.

        Names: examples_per_second; step_seconds (wall-clock time per step); data_share and
        step_share of the time (the rest is logging and similar); mfu if known; memory_bytes (peak
        of the device with the highest usage); eta_seconds.
        """
        if len(self._recent) < 2:
            return {}
        first = self._recent[0]
        # Until now, not until the last step returned: the device has just finished its work.
        span = max(self._clock() - self._paused - first.end, 1e-9)
        seconds = span / (len(self._recent) - 1)
        values = {
            "perf/examples_per_second": self._batch_size / seconds,
            "perf/step_seconds": seconds,
            "perf/data_share": (self._data - first.data) / span,
            "perf/step_share": (self._in_step - first.step) / span,
        }
        if self._flops is not None:
            utilization = flops.mfu(self._flops, seconds, self._peak)
            if utilization is not None:
                values["perf/mfu"] = utilization
        values["perf/memory_bytes"] = float(max(row["peak"] for row in report.device_memory()))
        values["perf/eta_seconds"] = max(self._total_steps - self._step, 0) * seconds
        return values

    def line(self, step: int, metrics: Mapping[str, float] | None = None) -> str:
        """Returns a line for the terminal, for example

        step  400/900 | loss 2.31 | 812 ex/s | data 3 % step 97 % | MFU 41 % | mem 1.2 GiB | ETA
        0:41
        """
        width = len(str(self._total_steps))
        parts = [f"step {step:>{width}}/{self._total_steps}"]
        parts += [f"{name} {float(value):.4g}" for name, value in (metrics or {}).items()]
        now = self.metrics()
        if now:
            rate = now["perf/examples_per_second"]
            parts.append(f"{rate:.0f} ex/s" if rate >= 100 else f"{rate:.3g} ex/s")
            parts.append(
                f"data {now['perf/data_share']:.0%} step {now['perf/step_share']:.0%}".replace(
                    "%", " %"
                )
            )
            if "perf/mfu" in now:
                parts.append(f"MFU {100 * now['perf/mfu']:.0f} %")
            parts.append(f"mem {report.format_bytes(now['perf/memory_bytes'])}")
            parts.append(f"ETA {report.format_seconds(now['perf/eta_seconds'])}")
        elif self.first_step_seconds is not None:
            parts.append(f"first step (with compilation) {self.first_step_seconds:.1f} s")
        return " | ".join(parts)

    @property
    def elapsed(self) -> float:
        """Returns the seconds since the start, including pauses."""
        return self._clock() - self._started
