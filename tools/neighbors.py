"""Find the nearest neighbors of records by cosine similarity of their features.

Writes the k nearest neighbors of each record to the directory that data.pairs.path reads. The
search is exact, and features may be larger than memory. An interrupted search continues where it
stopped if you run the same command again.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "features",
        metavar="FEATURES",
        help="directory written by `mmjax sentences` or `mmjax embed`, or a .npy file of floats "
        "[N, D]",
    )
    parser.add_argument(
        "--out",
        default="",
        metavar="DIR",
        help="directory of pairs to write (needed without --plan)",
    )
    parser.add_argument(
        "--modality",
        default="",
        metavar="NAME",
        help="modality of the features (default: the only one in FEATURES)",
    )
    parser.add_argument(
        "--split",
        default="train",
        metavar="NAME",
        help="split of the dataset (default: %(default)s)",
    )
    parser.add_argument("--data", metavar="DATASET", help="dataset of the features")
    _add_pair_arguments(parser.add_argument_group("pairs"))
    _add_search_arguments(parser.add_argument_group("search"))
    group = parser.add_argument_group("inspection")
    group.add_argument(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="print N records with their neighbors (default: %(default)s)",
    )
    group.add_argument(
        "--figure",
        default="",
        metavar="FILE",
        help="draw 8 records, or as many as --show, as a PNG",
    )


def _add_pair_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--k",
        type=int,
        default=1,
        metavar="N",
        help="number of neighbors per record (default: %(default)s)",
    )
    group.add_argument(
        "--min-similarity",
        type=float,
        default=-1.0,
        metavar="S",
        help="drop pairs with a lower cosine similarity (default: %(default)s)",
    )
    group.add_argument(
        "--exclude-duplicates",
        nargs="?",
        choices=("captions", "features"),
        const=True,
        help="never pair records with equal captions, ignoring case and white space (needs "
        "--data), or with equal features (without a value: captions for text, otherwise features)",
    )
    group.add_argument(
        "--mutual",
        action="store_true",
        help="keep only pairs in which each record is among the k nearest of the other",
    )
    group.add_argument(
        "--scope",
        metavar="SCOPE",
        help="only pair records of one group (needs --data): label; subreddit, year or "
        "subreddit-year of directories <subreddit>_<year>_<number>; or TABLE.csv:COLUMN (.tsv, "
        ".jsonl, .ndjson, .parquet), joined by the column path, filename, file or image",
    )
    group.add_argument(
        "--groups", metavar="FILE", help=".npy file with the group of each record, integers [N]"
    )


def _add_search_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="data type of the first pass; does not change the result; auto: float32 on CPUs, "
        "otherwise bfloat16 (default: %(default)s)",
    )
    group.add_argument(
        "--memory",
        type=float,
        metavar="GIB",
        help="memory for features on each device (default: what is available)",
    )
    group.add_argument(
        "--block",
        type=int,
        metavar="N",
        help="vectors on each side of a matrix product (default: 1024 on CPUs, otherwise 8192)",
    )
    group.add_argument(
        "--plan", action="store_true", help="only print the time and memory the search needs"
    )
    group.add_argument("--quiet", action="store_true", help="show no progress bars")


def run(args: argparse.Namespace) -> None:
    """Prints the estimated cost, searches, and prints a report."""
    from mmjax.neighbors import search_dataset

    search = search_dataset.Search(
        search_dataset.Options(
            features=args.features,
            out=args.out,
            plan=args.plan,
            modality=args.modality,
            split=args.split,
            data=args.data,
            k=args.k,
            min_similarity=args.min_similarity,
            exclude_duplicates=args.exclude_duplicates,
            mutual=args.mutual,
            scope=args.scope,
            groups=args.groups,
            dtype=args.dtype,
            memory=args.memory,
            block=args.block,
            show=args.show,
            figure=args.figure,
            progress=not args.quiet,
        )
    )
    if cost := search.describe_cost():
        print(cost, flush=True)
    if not args.plan:
        print(search.run().report)
