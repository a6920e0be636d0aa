"""Fill the cache of masks that training with diagnostic texts starts with.

MODEL, with the weights that training starts from, predicts the masks of the training split in
evaluation mode. --task=segment with --config.text.cache.path=DIR then writes texts for the pairs of
image and class whose predicted mask has changed most since, also in the first epoch.
--config.key=value overrides a value of the config.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "model", metavar="MODEL", help="run of --task=segment, or published segmentation model"
    )
    parser.add_argument(
        "--data",
        default="",
        metavar="DATASET",
        help="dataset with segmentation masks (default: the training dataset of the model)",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="N",
        help="side of images and masks in pixels (default: config.text.size of the run, or 224)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="images per batch, over all devices (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory of the cache")


def run(args: argparse.Namespace) -> None:
    """Writes the cache and prints how to train with it."""
    from mmjax.text_stage.predicted_pairs import PredictedPairs
    from mmjax.text_stage.prefill import prefill

    pairs = PredictedPairs(
        args.model,
        data=args.data,
        overrides=args.overrides,
        size=args.size,
        batch_size=args.batch_size,
    )
    print(prefill(pairs, args.out, progress=not args.quiet))
