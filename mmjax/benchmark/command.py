"""The command `mmjax benchmark`: reads its files, starts its processes and writes its report."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence

from mmjax import cache
from mmjax.benchmark import experiments, runs
from mmjax.benchmark.experiments import Experiment
from mmjax.benchmark.progress import FAILED, SKIPPED, Reporter
from mmjax.benchmark.runner import Outcome, Settings, make_cells, run_all
from mmjax.benchmark.runs import Run
from mmjax.errors import UserError, check_choice

_WORKER = "MMJAX_BENCHMARK_DEVICE"  # environment variable of the processes of --devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments of the command; see `mmjax benchmark --help`."""

    experiment_list: str | None
    name: str | None
    encoder_weights: str | None
    suffix: str
    vtab_configs: str
    tasks: Sequence[str]
    root: str
    protocol: str
    schedulers: str
    seeds: int
    epochs: int
    size: int
    pca: int
    out: str
    devices: int
    report_only: bool


FIELDS = tuple(field.name for field in dataclasses.fields(Arguments))


def run(args: Arguments, *, argv: Sequence[str]) -> int:
    """Runs the benchmark and writes its report.

    Args:
      args: The arguments.
      argv: The command line, for the processes of `--devices`.

    Returns:
      1 if a cell failed, else 0.

    Raises:
      UserError: An argument or a file is invalid.
    """
    if args.devices < 1:
        raise UserError(f"--devices must be at least 1; got {args.devices}.")
    encoders, selected = _encoders(args), _runs(args)
    own = {name: getattr(args, name) for name in _SETTINGS}
    settings = Settings(**own)
    queue = make_cells(encoders, selected, settings)
    worker = os.environ.get(_WORKER, "")
    if args.report_only:
        outcomes: list[Outcome] = []
    elif args.devices > 1 and not worker:
        return _start_processes(args.devices, argv)
    else:
        cache.keep_compiled_programs()
        with Reporter(args.out, total=len(queue), device=worker) as reporter:
            outcomes = run_all(queue, settings, reporter)
    if worker and worker != "0":
        return int(any(one.state == FAILED for one in outcomes))
    return _report(args, selected, outcomes)


_SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))


def _encoders(args: Arguments) -> list[Experiment]:
    if args.experiment_list and (args.name or args.encoder_weights):
        raise UserError("Pass --experiment_list, or --name and --encoder_weights, not both.")
    if args.experiment_list:
        return experiments.load(args.experiment_list, suffix=args.suffix)
    if not (args.name and args.encoder_weights):
        if args.report_only:
            return []
        raise UserError(
            "Which encoder? Pass --name NAME --encoder_weights SOURCE for one, or "
            "--experiment_list FILE for several."
        )
    return [Experiment(args.name + args.suffix, args.encoder_weights)]


def _runs(args: Arguments) -> list[Run]:
    loaded = runs.load(args.vtab_configs)
    names = [one.name for one in loaded]
    for name in args.tasks:
        check_choice(f"--tasks: run of {args.vtab_configs}", name, names)
    return [one for one in loaded if not args.tasks or one.name in args.tasks]


def _start_processes(count: int, argv: Sequence[str]) -> int:
    """Starts one process per GPU, and returns the largest exit status."""
    processes = []
    for index in range(count):
        env = os.environ | {_WORKER: str(index), "CUDA_VISIBLE_DEVICES": str(index)}
        command = [sys.executable, "-m", "mmjax.tools.cli", *argv[1:]]
        stream = None if index == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, env=env, stderr=stream))
    return max(process.wait() for process in processes)


def _report(args: Arguments, selected: Sequence[Run], outcomes: Sequence[Outcome]) -> int:
    """Writes the report; returns 1 if a cell failed."""
    from mmjax.benchmark import report

    failures = [
        (one.experiment, one.run, one.reason) for one in outcomes if one.state in (FAILED, SKIPPED)
    ]
    path = report.write(
        args.out, runs={one.name: one.end_task for one in selected}, failures=failures
    )
    failed = sum(one.state == FAILED for one in outcomes)
    print(f"Report: {path}" + (f" ({failed} cells failed)" if failed else ""))
    return int(failed > 0)
