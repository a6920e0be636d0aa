"""Convert the official annotation files of a dataset to a table for `mmjax build`.

The media files must exist already; nothing is downloaded. `mmjax import DATASET --help` lists the
expected annotation files, the supported names of media files and the options of a dataset. DATASET
may also be `package.module:Name` for an importer of your own.

The exit status is 1 if more examples than --max-missing-fraction have no media file.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mmjax.errors import UserError

if TYPE_CHECKING:
    from mmjax.data.importers.base import Importer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument("--list", action="store_true", help="list the datasets")
    parser.add_argument(
        "dataset",
        nargs="?",
        metavar="DATASET",
        help="name of a dataset (see --list), or package.module:Name",
    )
    parser.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="…",
        help="arguments of the dataset; see `mmjax import DATASET --help`",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the table and prints a report; returns 1 if too many media files are missing."""
    from mmjax.data import importers
    from mmjax.data.importers import report
    from mmjax.data.importers.run import import_dataset

    if args.list:
        for importer in importers.IMPORTERS.values():
            print(f"{importer.name:16} {importer.title}")
        return 0
    if not args.dataset:
        raise UserError("The dataset is missing. `mmjax import --list` lists the datasets.")
    importer = importers.find(args.dataset)
    own = _parser(args.dataset, importer).parse_args(args.arguments)
    summary = import_dataset(
        importer,
        annotations=own.annotations if importer.separate_annotations else (),
        media=own.media,
        out=own.out,
        options={option.name: getattr(own, option.name) for option in importer.options},
        progress=not own.quiet,
    )
    print("\n".join(report.lines(importer, summary, out=own.out, media=own.media)))
    return int(summary.missing_fraction > own.max_missing_fraction)


def _parser(name: str, importer: Importer) -> argparse.ArgumentParser:
    """Returns the parser of one dataset's arguments."""
    parser = argparse.ArgumentParser(
        prog=f"mmjax import {name}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_description(importer),
    )
    if importer.separate_annotations:
        parser.add_argument(
            "--annotations",
            nargs="+",
            required=True,
            metavar="PATH",
            help="the official annotation files, or directories that contain them",
        )
    parser.add_argument("--media", required=True, metavar="DIR", help="directory of the media")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="the table to write: .csv, .tsv or .jsonl"
    )
    parser.add_argument(
        "--max-missing-fraction",
        type=float,
        default=0.05,
        metavar="FRACTION",
        help="exit with status 1 if more of the examples have no media file (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    for option in importer.options:
        parser.add_argument(option.flag, **option.arguments())
    return parser


def _description(importer: Importer) -> str:
    if importer.separate_annotations:
        files = "Annotation files (--annotations)"
        names = "Names of media files (with any suffix, in any subdirectory of --media)"
    else:
        files, names = "Annotation files (in --media)", "Media files (in --media)"
    return (
        f"{importer.title}\n\n{files}:\n{_indent(importer.annotation_files)}\n\n"
        f"{names}:\n{_indent(importer.media_names)}"
    )


def _indent(text: str) -> str:
    return "\n".join(f"  {line.strip()}" for line in text.strip().splitlines())
