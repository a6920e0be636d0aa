"""The command `mmjax import`."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable

from mmjax.data.importers import IMPORTERS
from mmjax.data.importers.base import Importer, Summary, import_dataset
from mmjax.errors import UserError

_FIRST = 3  # examples of each kind that the report names


def add(commands) -> None:
    """Adds the command, with one subcommand per dataset."""
    p = commands.add_parser(
        "import",
        help="make a table of a well-known dataset's official files",
        description="Makes the table that `mmjax build` takes, of the official annotation files "
        "of a dataset and a folder with its media. `mmjax import DATASET --help` says which files.",
    )
    p.add_argument("--list", action="store_true", help="list the datasets")
    p.set_defaults(run=_list)
    datasets = p.add_subparsers(dest="dataset", metavar="DATASET")
    for importer in IMPORTERS.values():
        _add_dataset(datasets, importer)


def _add_dataset(datasets, importer: Importer) -> None:
    p = datasets.add_parser(
        importer.name,
        help=importer.title,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=_description(importer),
    )
    if importer.annotated:
        p.add_argument(
            "--annotations",
            nargs="+",
            required=True,
            metavar="PATH",
            help="the official files, or folders that hold them",
        )
    p.add_argument("--media", required=True, metavar="FOLDER", help="where the media lie")
    p.add_argument("--out", required=True, metavar="FILE", help="the table: .csv, .tsv, .jsonl")
    p.add_argument(
        "--max-missing-fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="exit status 1 if more of the clips have no media (0.05)",
    )
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    importer.add_options(p)
    p.set_defaults(run=_import, list=False)


def _description(importer: Importer) -> str:
    if importer.annotated:
        files = "Official files (--annotations)"
        names = "Names of media (any suffix, in any subfolder of --media)"
    else:
        files, names = "Official files (below --media)", "Media (below --media)"
    return (
        f"{importer.title}\n\n{files}:\n{_indented(importer.needs)}\n\n"
        f"{names}:\n{_indented(importer.names)}"
    )


def _list(args) -> int:
    if not args.list:
        raise UserError("Which dataset? `mmjax import --list` lists them.")
    for importer in IMPORTERS.values():
        print(f"{importer.name:16} {importer.title}")
    return 0


def _import(args) -> int:
    importer = IMPORTERS[args.dataset]
    summary = import_dataset(
        importer,
        annotations=args.annotations if importer.annotated else (),
        media=args.media,
        out=args.out,
        options=args,
        progress=not args.quiet,
    )
    print("\n".join(report(importer, summary, out=args.out, media=args.media)))
    return int(summary.missing_clips > args.max_missing_fraction * summary.clips)


def report(importer: Importer, summary: Summary, *, out: str, media: str) -> Iterable[str]:
    """Lines that say what was found, and the command that comes next."""
    splits = ", ".join(f"{name} {count}" for name, count in sorted(summary.splits.items()))
    classes = f"; {len(summary.classes)} classes in classes.txt" if summary.classes else ""
    yield f"{out}: {summary.rows} clips: {splits}{classes}."
    if importer.num_classes and len(summary.classes) != importer.num_classes:
        yield (
            f"The complete dataset has {importer.num_classes} classes, not {len(summary.classes)}: "
            "class numbers will be others than those of models trained on all of it."
        )
    yield from summary.notices
    for reason, count in summary.skipped.items():
        yield f"{count} left out: {reason}."
    if summary.missing:
        yield (
            f"{summary.missing_clips} of {summary.clips} clips left out: "
            f"{len(summary.missing)} files are missing (missing.txt), first "
            f"{_first(summary.missing)}."
        )
    if summary.repeated:
        yield f"{len(summary.repeated)} repeated annotations left out: {_first(summary.repeated)}."
    if summary.several:
        taken = [f"{paths[0]} (not {paths[1]})" for paths in summary.several.values()]
        yield f"{len(summary.several)} names have several files; taken: {_first(taken)}."
    command = ["mmjax", "build", "--csv", out, "--media-root", media]
    if importer.num_classes:
        command += ["--classes", os.path.join(os.path.dirname(out), "classes.txt")]
    name = os.path.splitext(os.path.basename(out))[0] if importer.generic else importer.name
    command += ["--out", f"data/{name}", *importer.build.split()]
    yield f"Next: {shlex.join(command)}"


def _first(values: Iterable[str]) -> str:
    values = list(values)
    return ", ".join(values[:_FIRST]) + (", …" if len(values) > _FIRST else "")


def _indented(text: str) -> str:
    return "\n".join(f"  {line.strip()}" for line in text.strip().splitlines())
