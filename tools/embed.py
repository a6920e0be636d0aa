"""Compute the features of a dataset with the towers of a trained model.

Runs towers over the training data of a run or a recipe and writes one vector per example, in the
order of the dataset. `mmjax neighbors` finds nearest neighbors by features, and training with
frozen towers (--task=touch) can read features instead of running the towers. --config.key=value
overrides a value of the config, as in training: --config.data.train=DIR embeds another dataset.
"""

from __future__ import annotations

import argparse

from mmjax.modalities import INPUTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "modalities", nargs="+", choices=INPUTS, metavar="MODALITY", help=", ".join(INPUTS)
    )
    parser.add_argument(
        "--run",
        dest="run_dir",
        default="",
        metavar="RUN",
        help="use the config and the weights of this run",
    )
    parser.add_argument(
        "--task",
        default="touch",
        metavar="NAME",
        help="without --run: task of the recipe (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        default="tvl",
        metavar="RECIPE",
        help="without --run: name or .py file of a recipe (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=(),
        metavar="SOURCE",
        help="weights of the towers: a run directory or published files (default: those of --run)",
    )
    parser.add_argument(
        "--target",
        default="",
        metavar="MODALITY",
        help="write embeddings of length 1 for comparison with this modality, instead of the "
        "outputs of the towers",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory of features to write"
    )
    parser.add_argument(
        "--variants",
        type=int,
        default=0,
        metavar="N",
        help="for --task=touch, compute N randomly augmented variants of each example (crops, "
        "colors, keywords); 0: only the example as evaluation sees it (default: %(default)s)",
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
            task=args.task,
            recipe=args.config,
            run=args.run_dir,
            weights=args.weights,
            target=args.target,
            overrides=args.overrides,
            variants=args.variants,
            batch_size=args.batch_size,
            progress=not args.quiet,
        )
    )
