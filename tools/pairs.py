"""Convert a list of pairs in LGSSL's format to the directory that data.pairs.path reads, or back.

A list is a JSON file, [[[directory, id], [directory, id], similarity], …]. Its entries are matched
with the records directory/id.* of a dataset. If SOURCE is a directory of pairs, the command writes
the list.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("source", metavar="SOURCE", help="list (.json) or directory of pairs")
    parser.add_argument("--data", required=True, metavar="DATASET", help="dataset of the records")
    parser.add_argument(
        "--out", required=True, metavar="PATH", help="directory of pairs or list (.json) to write"
    )
    parser.add_argument(
        "--split",
        default="train",
        metavar="NAME",
        help="split of the dataset (default: %(default)s)",
    )
    parser.add_argument(
        "--min-similarity",
        type=float,
        default=-1.0,
        metavar="S",
        help="drop pairs with a lower similarity (default: %(default)s)",
    )
    parser.add_argument(
        "--min-ratio",
        type=float,
        metavar="R",
        help="drop pairs of a list with a lower ratio (default: keep all)",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the directory or the list."""
    from mmjax.data.pairs import lists

    print(
        lists.convert(
            args.source,
            args.out,
            data=args.data,
            split=args.split,
            min_similarity=args.min_similarity,
            min_ratio=args.min_ratio,
        )
    )
