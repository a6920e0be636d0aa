"""Check every record of a dataset for problems that would disturb training.

The exit status is 1 if there are errors.
"""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("dataset", metavar="DIR", help="the dataset")
    parser.add_argument(
        "--split",
        metavar="NAME",
        action="append",
        default=[],
        help="check only this split (repeatable; default: all splits)",
    )
    parser.add_argument(
        "--max-records",
        type=int,
        metavar="N",
        help="check N records of each split, evenly spaced (default: all)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="number of threads (default: one per core)"
    )
    parser.add_argument(
        "--offenders",
        type=int,
        default=3,
        metavar="N",
        help="number of records to list for each problem (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def run(args: argparse.Namespace) -> int:
    """Prints the result; returns 1 if there are errors."""
    from mmjax.data.build import validate

    result = validate.validate(
        args.dataset,
        splits=args.split,
        max_records=args.max_records,
        workers=args.workers,
        progress=not args.quiet,
    )
    if args.json:
        print(json.dumps(validate.as_json(result), indent=1))
    else:
        print(validate.report(result, offenders=args.offenders))
    return int(result.num_errors > 0)
