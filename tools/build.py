"""Build a dataset from a table of media files or a directory of images.

If a build is interrupted, run the same command again: finished shards are kept. With --runner beam,
unknown arguments and all arguments after -- are passed to Apache Beam.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    _add_input_arguments(parser.add_argument_group("input"))
    _add_mask_arguments(parser.add_argument_group("segmentation masks"))
    _add_storage_arguments(parser.add_argument_group("storage"))
    _add_execution_arguments(parser.add_argument_group("execution"))


def _add_input_arguments(group: argparse._ArgumentGroup) -> None:
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--csv",
        metavar="FILE",
        help="table (.csv, .tsv, .jsonl, .parquet) with the columns path, video, image, audio, "
        "start, end, caption, label, split, touch, background, crop, mask",
    )
    source.add_argument("--images", metavar="DIR", help="images in DIR/class or DIR/split/class")
    group.add_argument("--out", required=True, metavar="DIR", help="dataset to write")
    group.add_argument(
        "--media-root",
        metavar="DIR",
        help="directory that paths are relative to (default: the directory of the table)",
    )
    group.add_argument("--classes", metavar="FILE", help="class names, one per line, in order")
    group.add_argument(
        "--separator",
        default="|",
        metavar="TEXT",
        help="separator of several captions or labels in one cell (default: '%(default)s')",
    )
    group.add_argument(
        "--ignore-columns",
        default="",
        metavar="A,B",
        help="columns of the table to ignore; '*' ignores all that are unknown",
    )
    group.add_argument(
        "--split",
        default="train",
        metavar="NAME",
        help="split for rows that do not specify one (default: %(default)s)",
    )
    group.add_argument(
        "--split-by-time",
        metavar="train:0.8,test:0.2",
        help="split every file by time, in this order",
    )
    group.add_argument(
        "--split-by-file", metavar="train:0.8,test:0.2", help="split the files at random"
    )
    group.add_argument(
        "--clip-seconds", type=float, metavar="SECONDS", help="cut media into clips of this length"
    )


def _add_mask_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--masks",
        metavar="PATH",
        help="segmentation masks of the images: a directory with files of the same names, or a "
        "JSON file in COCO's format",
    )
    group.add_argument(
        "--mask-classes",
        metavar="FILE",
        help="class names of masks, one per line, in the order of their values",
    )
    group.add_argument(
        "--mask-values",
        metavar="0,1,2",
        help="value of each class in mask files (default: 0, 1, 2, …)",
    )
    group.add_argument(
        "--mask-ignore",
        metavar="255",
        help="values of pixels without a class in mask files (default: 255, unless it is a class)",
    )


def _add_storage_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--fps",
        type=float,
        default=10.0,
        metavar="FPS",
        help="frames per second (default: %(default)s)",
    )
    group.add_argument(
        "--size",
        type=int,
        default=256,
        metavar="N",
        help="shorter side of images in pixels; 0 keeps the original size (default: %(default)s)",
    )
    group.add_argument(
        "--sample-rate",
        type=int,
        default=48_000,
        metavar="HZ",
        help="sample rate of the audio (default: %(default)s)",
    )
    group.add_argument(
        "--quality", type=int, default=90, metavar="N", help="JPEG quality (default: %(default)s)"
    )
    group.add_argument(
        "--crop-margin",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="keep this fraction of a crop's sides around it, for random crops "
        "(default: %(default)s)",
    )
    group.add_argument("--no-video", action="store_true", help="omit images")
    group.add_argument("--no-audio", action="store_true", help="omit audio")
    group.add_argument(
        "--frame-dir-fps",
        type=float,
        metavar="FPS",
        help="frames per second of directories of frames (default: --fps)",
    )
    group.add_argument(
        "--clips-per-shard",
        type=int,
        metavar="N",
        help="clips per TFRecord file (default: 64, or 1024 with --images)",
    )
    group.add_argument(
        "--vocab-size",
        type=int,
        default=65_536,
        metavar="N",
        help="maximum number of words in vocab.txt (default: %(default)s)",
    )


def _add_execution_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--workers", type=int, metavar="N", help="number of processes (default: one per core)"
    )
    group.add_argument(
        "--on-error",
        choices=("skip", "fail"),
        default="skip",
        help="what to do if a clip cannot be built (default: %(default)s)",
    )
    group.add_argument(
        "--max-bad-fraction",
        type=float,
        default=0.05,
        metavar="FRACTION",
        help="exit with status 1 if more of the clips cannot be built (default: %(default)s)",
    )
    group.add_argument("--retry-bad", action="store_true", help="build shards with bad clips again")
    group.add_argument(
        "--overwrite", action="store_true", help="replace a different dataset in --out"
    )
    group.add_argument("--shard", metavar="I/N", help="build only the I-th of N parts, 0 ≤ I < N")
    group.add_argument(
        "--finalize", action="store_true", help="only write dataset.json, after --shard"
    )
    group.add_argument(
        "--runner",
        choices=("local", "beam"),
        default="local",
        help="processes on this machine, or Apache Beam (default: %(default)s)",
    )
    group.add_argument("--quiet", action="store_true", help="show no progress bars")


def run(args: argparse.Namespace) -> int:
    """Builds the dataset; returns 1 if too many clips could not be built."""
    from mmjax.data.build import build
    from mmjax.data.build.options import BuildOptions, parse_mask_values
    from mmjax.data.build.splits import parse_fractions

    if args.finalize:
        result = build.finalize(args.out)
    else:
        result = build.build_dataset(
            args.out,
            build.Source(
                csv=args.csv,
                images=args.images,
                masks=args.masks,
                media_root=args.media_root,
                separator=args.separator,
                split=args.split,
                ignore_columns=[name for name in args.ignore_columns.split(",") if name],
            ),
            BuildOptions(
                fps=args.fps,
                size=args.size or None,
                sample_rate=args.sample_rate,
                quality=args.quality,
                crop_margin=args.crop_margin,
                video=not args.no_video,
                audio=not args.no_audio,
                frame_dir_fps=args.frame_dir_fps,
                clip_seconds=args.clip_seconds,
                by_time=parse_fractions(args.split_by_time, option="--split-by-time"),
                by_file=parse_fractions(args.split_by_file, option="--split-by-file"),
                clips_per_shard=args.clips_per_shard or (1024 if args.images else 64),
                vocab_size=args.vocab_size,
                mask_values=parse_mask_values(args.mask_values, option="--mask-values") or (),
                mask_ignore=parse_mask_values(args.mask_ignore, option="--mask-ignore"),
            ),
            classes=args.classes,
            mask_classes=args.mask_classes,
            workers=args.workers,
            on_error=args.on_error,
            retry_bad=args.retry_bad,
            overwrite=args.overwrite,
            part=args.shard,
            runner=args.runner,
            beam_arguments=args.unknown,
            progress=not args.quiet,
        )
    print(result.message)
    return int(result.bad_fraction > args.max_bad_fraction)
