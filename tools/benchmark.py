"""Train heads on frozen encoders for many end tasks, and compare the encoders.

Every encoder is probed on every end task. Finished cells are skipped, so run the same command again
to continue; several processes and hosts may work on one output directory. The results are in
OUT/ENCODER/RUN-CONFIG/results.json, and the tables and figures in OUT/report.html. docs/probe.md is
the guide.
"""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    which = parser.add_argument_group("encoders")
    which.add_argument(
        "--experiment_list",
        metavar="FILE",
        help="YAML file of encoders, 'NAME: WEIGHTS' per line, or the name of a list of mmjax",
    )
    which.add_argument("--name", metavar="NAME", help="name of a single encoder")
    which.add_argument(
        "--encoder_weights",
        metavar="SOURCE",
        help="its weights: a run directory, a published file, or random:SOURCE",
    )
    which.add_argument(
        "--suffix", default="", metavar="TEXT", help="appended to the names of all encoders"
    )
    tasks = parser.add_argument_group("end tasks")
    tasks.add_argument(
        "--vtab_configs",
        "--virb_configs",
        default="all",
        metavar="FILE",
        help="YAML file of end tasks, or the name of one of mmjax (default: %(default)s)",
    )
    tasks.add_argument(
        "--tasks", nargs="+", default=(), metavar="RUN", help="only these runs of the file"
    )
    tasks.add_argument(
        "--root",
        default="datasets",
        metavar="DIR",
        help="directory of the data sets, or 'world' for procedural ones (default: %(default)s)",
    )
    how = parser.add_argument_group("protocol")
    how.add_argument(
        "--protocol",
        choices=("default", "paper"),
        default="default",
        help="select on validation examples, or train and select as the paper (default: "
        "%(default)s)",
    )
    how.add_argument(
        "--schedulers",
        choices=("meant", "disabled"),
        default="meant",
        help="whether the learning rate falls as the paper says, or stays as in its code (default: "
        "%(default)s)",
    )
    how.add_argument("--seeds", type=int, default=0, metavar="N", help="heads per configuration")
    how.add_argument("--epochs", type=int, default=0, metavar="N", help="replaces all epochs")
    how.add_argument("--size", type=int, default=0, metavar="PIXELS", help="size of the images")
    how.add_argument("--pca", type=int, default=0, metavar="N", help="components of features")
    parser.add_argument(
        "--out", default="out", metavar="DIR", help="directory of results (default: %(default)s)"
    )
    parser.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="start N processes, one per GPU; 1 uses the devices that JAX finds (default: 1)",
    )
    parser.add_argument(
        "--report_only", action="store_true", help="only write the report of existing results"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns 1 if a cell failed."""
    from mmjax.benchmark import command

    return command.run(
        command.Arguments(**{k: v for k, v in vars(args).items() if k in command.FIELDS}),
        argv=sys.argv,
    )
