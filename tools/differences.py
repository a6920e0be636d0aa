"""Make images of mask differences with captions, to fine-tune FLAIR.

A trained segmentation model predicts the masks of a dataset. For each class of each image, the
pixels in which the predicted mask differs from the true one are drawn in white, and a caption
describes the difference. `mmjax build` makes a dataset of the table differences.csv for
--task=flair --config=dm_vs_dt, and of pairs.csv, with images of both masks, for gt_pr_vs_dt.

--config.text.writer.name=vlm selects who writes captions (describer, templates or vlm), and
--config.text.writer.KEY=VALUE its options, as in training; likewise --config.text.predicted_limit
and --config.text.alpha. If the command is interrupted, run it again: captions are kept.
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
    parser.add_argument(
        "--split",
        default="",
        metavar="NAME",
        help="split of the dataset (default: the training split of the model)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="directory to write")


def run(args: argparse.Namespace) -> None:
    """Writes the images and captions, and prints what to run next."""
    from mmjax.text_stage.differences import write_differences
    from mmjax.text_stage.predicted_pairs import PredictedPairs

    pairs = PredictedPairs(
        args.model,
        data=args.data,
        split=args.split,
        overrides=args.overrides,
        size=args.size,
        predicted_limit=None,  # describe all errors
        batch_size=args.batch_size,
    )
    print(write_differences(pairs, args.out, progress=not args.quiet))
