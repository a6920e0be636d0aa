"""Turn a directory of TFRecord shards, for example DMVR's, into a dataset.

Writes an index file next to each shard, and `dataset.json`. Values in an existing `dataset.json`
are kept, except for shards and counts.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("dataset", metavar="DIR", help="the directory with the shards")


def run(args: argparse.Namespace) -> None:
    """Writes the files and prints a description of the dataset."""
    from mmjax.data.build import index
    from mmjax.data.storage import dataset

    print(dataset.describe(index.index(args.dataset)))
