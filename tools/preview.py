"""Draw frames, waveforms, captions and labels of some clips of a dataset as a PNG."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("dataset", metavar="DIR", help="the dataset")
    parser.add_argument(
        "--split", default="train", metavar="NAME", help="split to draw (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        default="preview.png",
        metavar="FILE",
        help="PNG file to write (default: %(default)s)",
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=8,
        metavar="N",
        help="number of clips, evenly spaced over the split (default: %(default)s)",
    )
    parser.add_argument(
        "--frames",
        type=int,
        default=8,
        metavar="N",
        help="number of frames per clip (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Writes the PNG."""
    from mmjax.data.build import preview

    examples = preview.preview(
        args.dataset, split=args.split, out=args.out, clips=args.clips, frames=args.frames
    )
    print(f"{args.out}: {len(examples)} examples of {args.dataset}, split {args.split}.")
