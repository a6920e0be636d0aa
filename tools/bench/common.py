"""Shared code of benchmarks: timing, medians, and the program of a recipe with state and batch."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # imports JAX
    from mmjax.config import Config


def call_for(seconds: float, function: Callable[[], Any]) -> tuple[int, float, float]:
    """Calls a function repeatedly for at least `seconds`.

    Returns:
      `(number of calls, wall-clock seconds, CPU seconds of this process)`.
    """
    calls, cpu, start = 0, time.process_time(), time.perf_counter()
    while calls == 0 or time.perf_counter() - start < seconds:
        function()
        calls += 1
    return calls, time.perf_counter() - start, time.process_time() - cpu


def medians(measurements: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Returns the median of each value over measurements with the same keys."""
    return {
        name: statistics.median(measurement[name] for measurement in measurements)
        for name in measurements[0]
    }


class Setup:
    """The program of a recipe, with a train state and one batch on the devices.

    Args:
      cfg: The recipe.
      synthetic: Whether the batch is noise in the shapes of the recipe, which needs no dataset.

    Attributes:
      mesh: The devices.
      program: The program.
      state: The train state.
      data_spec: The spec of the data.
      host_batch: The batch in host memory.
      batch: The batch on the devices.
      data: The training data; not set if `synthetic`.
    """

    def __init__(self, cfg: Config, *, synthetic: bool = False):
        import jax

        from mmjax import config, program, session, sharding
        from mmjax.data_spec import DataSpec
        from mmjax.tasks.base import make_task

        mesh = config.keywords(sharding.make_mesh, cfg.mesh, "mesh", provided=["devices"])
        self.mesh = sharding.make_mesh(**mesh)
        if synthetic:
            self.data_spec = DataSpec.of_config(cfg)
            self.host_batch = _noise(self.data_spec.batch)
        else:
            self.data, self.data_spec = session.open_train_data(cfg)
            self.host_batch = next(iter(self.data.iterate(0)))
        self.program = program.build_program(cfg, make_task(cfg, self.data_spec), self.mesh)
        with jax.set_mesh(self.mesh):
            self.state = self.program.init(jax.random.key(cfg.seed))
            self.batch = sharding.make_global(self.host_batch, self.mesh)

    @functools.cached_property
    def compiled(self) -> tuple[Any, dict[str, float]]:
        """The compiled step, and the seconds that compilation took."""
        import jax

        with jax.set_mesh(self.mesh):
            start, cpu = time.perf_counter(), time.process_time()
            lowered = self.program.step.lower(self.state, self.batch)
            traced = time.perf_counter()
            step = lowered.compile()
        return step, {
            "trace_seconds": traced - start,
            "compile_seconds": time.perf_counter() - traced,
            "cpu_seconds": time.process_time() - cpu,
        }

    def step_seconds(self, seconds: float) -> float:
        """Returns the wall-clock time of a step, averaged over at least `seconds`."""
        import jax

        def step() -> None:
            self.state, metrics = compiled(self.state, self.batch)
            # Wait regularly, or calls are dispatched faster than the device executes them.
            if jax.default_backend() == "cpu" or next(count) % 8 == 7:
                jax.block_until_ready(metrics)

        compiled, _ = self.compiled
        count = itertools.count()
        step()
        jax.block_until_ready(self.state)
        start, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - start < seconds:
            step()
            calls += 1
        jax.block_until_ready(self.state)
        return (time.perf_counter() - start) / calls


def _noise(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a batch with every modality: random bytes, quiet noise, tokens 1 to 99, label 0."""
    import numpy as np

    from mmjax.modalities import INPUTS

    rng, batch = np.random.default_rng(0), {}
    for name, leaf in spec.items():
        if leaf.dtype == np.uint8:
            batch[name] = rng.integers(0, 256, leaf.shape, np.uint8)
        elif name in INPUTS and leaf.dtype == np.int32:
            batch[name] = rng.integers(1, 100, leaf.shape, np.int32)
        elif name in INPUTS:  # audio, or precomputed features
            batch[name] = rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        else:
            batch[name] = np.full(leaf.shape, 0 if name == "label" else 1, leaf.dtype)
    return batch
