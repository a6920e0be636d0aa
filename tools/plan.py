"""Report the memory and time that a recipe needs, without the devices.

Prints shapes and bytes per device of the train state on a mesh of any size. --config.key=value
overrides a value of the recipe, as in training.
"""

from __future__ import annotations

import argparse


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
            default=1,
            metavar="N",
            help=f"devices on the mesh axis '{axis}' (default: %(default)s)",
        )
    parser.add_argument("--full", action="store_true", help="list every parameter")
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="device type, for example 'NVIDIA H100', to print the minimum time of a step",
    )


def run(args: argparse.Namespace) -> None:
    """Prints the table."""
    from mmjax import config, plan

    cfg = config.load(args.task, args.config, args.overrides)
    mesh = {"data": args.data, "fsdp": args.fsdp, "tensor": args.tensor}
    print(plan.plan(cfg, **mesh, full=args.full, device=args.device))
