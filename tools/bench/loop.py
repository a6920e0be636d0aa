"""The overhead of the training loop, and the time from start to first step."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

from mmjax.errors import UserError
from mmjax.tools.bench.common import Setup, medians

if TYPE_CHECKING:  # imports JAX
    from mmjax.config import Config


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Adds the arguments of the benchmark."""
    group.add_argument(
        "--steps",
        type=int,
        default=60,
        metavar="N",
        help="number of steps of a run (default: %(default)s)",
    )
    group.add_argument(
        "--starts",
        type=int,
        default=1,
        metavar="N",
        help="number of cold and warm starts (default: %(default)s)",
    )


def run(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    """Measures the time per step of the loop, compared with the bare step, and start-up times.

    `loop` is a complete run. `loop_same_batch` reuses one batch, so that only the loop itself adds
    to the step. On CPUs the pipeline and the step share the cores, which slows `loop` down.
    """
    import jax

    from mmjax import session

    cfg = dataclasses.replace(
        cfg,
        evals={},
        total_steps=args.steps,
        total_examples=0,
        log_every=max(1, args.steps // 3),
        checkpoint=cfg.checkpoint | {"every": args.steps},
        # The run may be shorter than the recipe's warm-up.
        optimizer=cfg.optimizer | {"schedule": {"name": "constant", "base": 1e-5}},
    )
    # Every run compiles the same program. The metrics start after the first step of each run.
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_enable_compilation_cache", True)
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        setup = Setup(cfg)
        open_data = {
            "loop": session.open_train_data,
            "loop_same_batch": lambda cfg: (_SameBatch(setup), setup.data_spec),
        }
        measurements = []
        for _ in range(args.repeats):
            before = setup.step_seconds(args.seconds)
            metrics = {name: _run_loop(cfg, function) for name, function in open_data.items()}
            seconds = (before + setup.step_seconds(args.seconds)) / 2
            measurement = {"bare_step_seconds": seconds}
            for name, values in metrics.items():
                measurement[f"{name}_step_seconds"] = values["perf/step_seconds"]
                measurement[f"{name}_over_bare"] = values["perf/step_seconds"] / seconds
                measurement[f"{name}_data_share"] = values["perf/data_share"]
            measurements.append(measurement)
        jax.config.update("jax_enable_compilation_cache", False)
    result = medians(measurements)
    if starts := [_start_seconds(args) for _ in range(args.starts)]:
        result["start_to_first_step_seconds"] = medians(starts)
    return result


class _SameBatch:
    """Training data that yields the same batch forever."""

    corrupt = 0

    def __init__(self, setup: Setup):
        self._batch = setup.host_batch
        self.num_examples, self.batch_ids = setup.data.num_examples, setup.data.batch_ids

    def iterate(self, first_step: int) -> Iterator:
        return itertools.repeat(self._batch)


def _run_loop(cfg: Config, open_train_data: Callable) -> dict[str, float]:
    """Returns the last performance metrics of a run in a new directory."""
    from mmjax import session, train
    from mmjax.monitor import metrics_file

    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(session, "open_train_data", open_train_data),
    ):
        train.train(cfg, directory)
        return [m for m in metrics_file.read_metrics(directory) if "perf/step_seconds" in m][-1]


def _start_seconds(args: argparse.Namespace) -> dict[str, float]:
    """Returns the seconds from the start of `python -m mmjax.main` to its first logged step.

    `cold` starts with an empty compilation cache, `warm` with the cache that `cold` filled.
    Datasets that are built on first use exist already.
    """
    from mmjax.cache import cache_dir

    with tempfile.TemporaryDirectory() as directory:
        root, cache = pathlib.Path(directory), cache_dir()
        root.joinpath("cache").mkdir()
        for entry in cache.iterdir() if cache.is_dir() else ():
            if entry.name != "xla":
                root.joinpath("cache", entry.name).symlink_to(entry.resolve())
        return {name: _seconds_to_first_step(args, root, name) for name in ("cold", "warm")}


def _seconds_to_first_step(args: argparse.Namespace, root: pathlib.Path, name: str) -> float:
    from mmjax.monitor import metrics_file

    run = root / name
    command = [
        *(sys.executable, "-m", "mmjax.main", f"--task={args.task}", f"--config={args.config}"),
        *(f"--model_dir={run}", *args.overrides, "--config.log_every=1"),
    ]
    start = time.time()
    environment = os.environ | {"MMJAX_CACHE": str(root / "cache")}
    process = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.2)
    process.terminate()  # the run saves a checkpoint and exits
    if process.wait() != 0:
        raise UserError(f"This command failed, see its output above: {' '.join(command)}")
    seconds = metrics_file.read_metrics(run)[0]["time"] - start
    shutil.rmtree(run)
    return seconds
