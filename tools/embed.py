"""Compute the features of a dataset with trained towers, once.

Runs towers over the training data of a recipe or a run and writes their features. Training with
frozen towers (--task=touch) can read features instead of running the towers on images or text;
`mmjax neighbors` finds nearest neighbors by the features of an image backbone (--task=guided).
--config.key=value overrides a value of the recipe, as in training.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "modalities",
        nargs="+",
        choices=("image", "text", "touch"),
        metavar="MODALITY",
        help="image, text or touch",
    )
    parser.add_argument(
        "--config",
        default="tvl",
        metavar="RECIPE",
        help="recipe of --task=touch, or a .py file (default: %(default)s)",
    )
    parser.add_argument(
        "--run",
        dest="run_dir",
        default="",
        metavar="RUN",
        help="use the recipe and weights of this run instead",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=(),
        metavar="SOURCE",
        help="weights of the towers: a run directory or published files",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory of features to write"
    )
    parser.add_argument(
        "--variants",
        type=int,
        default=0,
        metavar="N",
        help="compute N randomly augmented variants of each example (crops, colors, keywords); 0: "
        "only the example as evaluation sees it (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="examples per batch, over all devices (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def run(args: argparse.Namespace) -> None:
    """Writes the features and prints what to run next."""
    from mmjax import embed

    print(
        embed.embed_dataset(
            args.modalities,
            out=args.out,
            recipe=args.config,
            run=args.run_dir,
            weights=args.weights,
            overrides=args.overrides,
            variants=args.variants,
            batch_size=args.batch_size,
            progress=not args.quiet,
        )
    )
