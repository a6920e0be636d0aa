"""Report the memory and time that a recipe needs, without the devices.

Prints shapes and bytes per device of the train state on a mesh of any size. --config.key=value
overrides a value of the recipe, as in training.

With --compile, the recipe is compiled for TPUs or GPUs that this machine need not have, with their
real compilers. The report contains the memory, the collective operations, lower bounds of the time
and the most expensive lines of code. docs/performance.md explains it.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from mmjax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
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
    for axis in ("data", "fsdp", "tensor"):
        parser.add_argument(
            f"--{axis}",
            type=int,
            metavar="N",
            help=f"devices on the mesh axis '{axis}' (default: 1; with --compile, that of "
            "config.mesh)",
        )
    parser.add_argument("--full", action="store_true", help="list every parameter")
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="device type, for example 'NVIDIA H100', to print the minimum time of a step",
    )
    parser.add_argument(
        "--compile",
        metavar="TOPOLOGY",
        help="compile for these devices: v4, v5e, v5p, v6e or v7x with the chips along each "
        "dimension (v5e:2x4), or a100, h100 or h200 with SLICESxHOSTSxGPUS (h100:1x2x8)",
    )
    parser.add_argument(
        "--function",
        default="train_step",
        metavar="NAME",
        help="with --compile: train_step, or a predict function of the task such as features "
        "(default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="with --compile: print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the table or, with --compile, the report; returns 1 if the program does not fit."""
    from mmjax import config, plan

    cfg = config.load(args.task, args.config, args.overrides)
    mesh = {axis: getattr(args, axis) for axis in ("data", "fsdp", "tensor")}
    if args.compile:
        return _compile(cfg, args, mesh)
    for option, default in (("function", "train_step"), ("json", False)):
        if getattr(args, option) != default:
            raise UserError(f"--{option} needs --compile=TOPOLOGY, for example --compile=v5e:2x4.")
    mesh = {axis: 1 if size is None else size for axis, size in mesh.items()}
    print(plan.plan(cfg, **mesh, full=args.full, device=args.device))
    return 0


def _compile(cfg: Any, args: argparse.Namespace, mesh: dict[str, int | None]) -> int:
    from mmjax import config
    from mmjax.aot import report
    from mmjax.aot.compile import compile_recipe

    if args.full or args.device:
        option = "full" if args.full else "device"
        raise UserError(f"--{option} cannot be combined with --compile. Remove one of them.")
    recipe = f"{args.task} {args.config}"
    cfg = config.resolve(cfg)
    print(f"Compiling {args.function} of {recipe}; large models take minutes.", file=sys.stderr)
    program = compile_recipe(cfg, args.compile, **mesh, function=args.function, recipe=recipe)
    result = report.analyze(program, cfg, recipe)
    print(json.dumps(result, indent=2) if args.json else report.to_text(result))
    return 0 if result["fits"] else 1
