"""Measure the speed of a recipe on its own data, model and batch size.

Prints one JSON object with the results, the command and the machine. Alternatives are measured in
turn within one run; results are medians over --repeats. --config.key=value overrides a value of the
recipe, as in training.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from types import ModuleType

# Each is a module of this package with `run(cfg, args)`, and `add_arguments(parser)` if it has any.
BENCHMARKS = (
    *("data", "step", "packed", "loop", "eval", "neighbors", "probe", "encode", "heads", "text"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of all benchmarks."""
    parser.add_argument(
        "benchmarks",
        nargs="+",
        choices=BENCHMARKS,
        metavar="BENCHMARK",
        help=f"one or several of {', '.join(BENCHMARKS)}; see below",
    )
    parser.add_argument(
        "--task",
        default="pretrain",
        metavar="NAME",
        help="task of the recipe (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        default="demo",
        metavar="RECIPE",
        help="name or .py file of a recipe, with :ARG for its argument (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=5,
        metavar="N",
        help="number of measurements; the median is reported (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        metavar="S",
        help="minimum duration of one measurement (default: %(default)s)",
    )
    parser.add_argument(
        "--synthetic",
        action="store_true",
        help="step, packed: use a batch of noise; needs no dataset",
    )
    parser.add_argument(
        "--dim",
        type=int,
        default=384,
        metavar="N",
        help="neighbors, probe, heads: number of features (default: %(default)s)",
    )
    for name in BENCHMARKS:
        module = _module(name)
        group = parser.add_argument_group(name, description=module.__doc__)
        if hasattr(module, "add_arguments"):
            module.add_arguments(group)


def run(args: argparse.Namespace) -> None:
    """Runs the benchmarks and prints the results as JSON."""
    from mmjax import config
    from mmjax.monitor import report

    cfg = config.resolve(config.load(args.task, args.config, args.overrides))
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the JSON object
        results = {name: _module(name).run(cfg, args) for name in args.benchmarks}
    record = {
        "command": args.command_line,
        "repeats": args.repeats,
        **results,
        "environment": report.environment(),
    }
    print(json.dumps(record, indent=2))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
