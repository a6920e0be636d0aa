"""Compute the image of an untouched touch sensor as the per-pixel median of many touch images.

Pass images without contact, or a large number of images with contact.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="image files, or directories of images"
    )
    parser.add_argument(
        "--dataset", metavar="DIR", help="use the touch images of this dataset instead"
    )
    parser.add_argument(
        "--split",
        default="train",
        metavar="NAME",
        help="with --dataset: split to use (default: %(default)s)",
    )
    parser.add_argument(
        "--label",
        metavar="NAME",
        help="with --dataset: use only this class, by name or index (default: all)",
    )
    parser.add_argument(
        "--caption",
        metavar="TEXT",
        help="with --dataset: use only records with this caption (default: all)",
    )
    parser.add_argument(
        "--mean", action="store_true", help="compute the mean instead of the median"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="PNG file to write")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def run(args: argparse.Namespace) -> None:
    """Writes the image."""
    from mmjax.data.build import background

    (height, width), count = background.write_background(
        args.out,
        paths=args.paths,
        dataset=args.dataset,
        split=args.split,
        label=args.label,
        caption=args.caption,
        mean=args.mean,
        progress=not args.quiet,
    )
    statistic = "mean" if args.mean else "median"
    print(f"{args.out}: {width}×{height}, the {statistic} of {count} images.")
