"""Images with captions: directories as RedCaps and img2dataset write them, tables, dictionaries.

Source of the layout: El Banani et al. 2023, Learning Visual Representations via Language-Guided
Sampling, arXiv 2302.12248 (LGSSL), and its published code.
"""

from __future__ import annotations

import collections
import concurrent.futures
import fnmatch
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from mmjax import files
from mmjax.data.importers import caption_files, caption_tables
from mmjax.data.importers.base import AnnotatedExample, Importer, Job, Option
from mmjax.data.importers.caption_files import CaptionedImage, ImageDirectory
from mmjax.data.storage import image_files
from mmjax.errors import UserError

_BATCH = 512  # images that a thread checks at a time
_T = TypeVar("_T")
_Selectable = TypeVar("_Selectable", CaptionedImage, ImageDirectory)


def _read(job: Job) -> Iterator[AnnotatedExample]:
    options = job.options
    for name in ("threads", "max_kib", "max_aspect"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1; got {value:g}.")
    dictionary = _Dictionary(options.dictionary) if options.dictionary else None
    for image, problem in _checked_images(job):
        if problem == caption_files.NO_IMAGE:
            yield AnnotatedExample(
                missing_file=image.name, split=image.split, location=image.location
            )
        elif problem:
            job.skip(problem, example=image.name)
        else:
            if dictionary:
                dictionary.add(image)
            yield AnnotatedExample(
                path=image.path,
                captions=image.captions,
                split=image.split,
                location=image.location,
                extra=image.extra,
            )
    if dictionary:
        job.notes.append(dictionary.write())


def _checked_images(job: Job) -> Iterator[tuple[CaptionedImage, str]]:
    """Yields `(image, group of skipped images that it belongs to or '')`, read by threads."""
    options = job.options
    check = _Check(job.media.root, max_kib=options.max_kib, max_aspect=options.max_aspect)
    inputs: Iterable[Any]
    if options.table:
        images = caption_tables.read_table(
            options.table,
            split=options.split,
            path_column=options.path_column,
            caption_column=options.caption_column,
            keep=options.keep,
        )
        function, inputs = check, _batches(_select(images, job), _BATCH)
    else:

        def function(directory: ImageDirectory) -> list[tuple[CaptionedImage, str]]:
            return check(
                caption_files.read_directory(
                    directory, caption_key=options.caption_column, keep=options.keep or ()
                )
            )

        inputs = _select(caption_files.find_directories(job.media.root, options.split), job)
    with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
        results = _map_in_order(pool, function, inputs, max_pending=2 * options.threads)
        yield from itertools.chain.from_iterable(results)


def _select(items: Iterable[_Selectable], job: Job) -> Iterator[_Selectable]:
    """Yields the images or directories that --year and --directories select.

    Raises:
      UserError: They select nothing.
    """
    last, any_selected = None, False
    for item in items:
        last = item.directory
        if _is_selected(last, job.options):
            any_selected = True
            yield item
        else:
            unit = "directories" if isinstance(item, ImageDirectory) else "images"
            job.skip(f"{unit} not selected by --year and --directories", example=last)
    if last is not None and not any_selected:
        selection = {"--year": job.options.year, "--directories": job.options.directories}
        selection = ", ".join(f"{flag} {value}" for flag, value in selection.items() if value)
        raise UserError(
            f"{selection}: no directory is selected by --year and --directories. One of the "
            f"directories is {last!r}."
        )


def _is_selected(directory: str, options: Any) -> bool:
    if options.directories and not fnmatch.fnmatchcase(directory, options.directories):
        return False
    # A year must be a complete number: 2017 is not the year of crochet_2016_120170.
    return not options.year or bool(re.search(rf"(?<!\d){options.year}(?!\d)", directory))


class _Check:
    """Assigns images that are missing, too large or too elongated to groups of skipped images."""

    def __init__(self, root: str, *, max_kib: float | None, max_aspect: float | None):
        self._root, self._max_kib, self._max_aspect = root, max_kib, max_aspect

    def __call__(self, images: Iterable[CaptionedImage]) -> list[tuple[CaptionedImage, str]]:
        return [(image, image.problem or self._problem(image)) for image in images]

    def _problem(self, image: CaptionedImage) -> str:
        path = os.path.join(self._root, image.path)
        if image.exists and self._max_kib is None and self._max_aspect is None:
            return ""
        try:
            size = os.stat(path).st_size
        except OSError:
            return caption_files.NO_IMAGE
        if self._max_kib is not None and size > self._max_kib * 1024:
            return f"images larger than {self._max_kib:g} KiB"
        if self._max_aspect is not None:
            try:
                shorter, longer = sorted(image_files.image_size(path))
            except UserError:
                return "images that cannot be read"
            if longer > self._max_aspect * shorter:
                return f"images with an aspect ratio above {self._max_aspect:g}"
        return ""


class _Dictionary:
    """LGSSL's {directory: {instance: [path, caption]}}. Paths are relative to --media."""

    def __init__(self, path: str):
        self._path = path
        self._content: dict[str, dict[str, list[str]]] = {}

    def add(self, image: CaptionedImage) -> None:
        """Adds an image with its first caption."""
        instances = self._content.setdefault(image.directory, {})
        if image.instance in instances:
            raise UserError(
                f"--dictionary {self._path}: both {instances[image.instance][0]} and {image.path} "
                f"have the key {image.directory}/{image.instance}. Make one dictionary per split, "
                "with the directory of the split as --media."
            )
        instances[image.instance] = [image.path.replace(os.sep, "/"), image.captions[0]]

    def write(self) -> str:
        """Writes directories and instances in alphabetical order; returns a note about it."""
        ordered = {d: dict(sorted(images.items())) for d, images in sorted(self._content.items())}
        files.write_json(self._path, ordered, indent=None)
        count = sum(map(len, ordered.values()))
        return (
            f"wrote LGSSL's dictionary {self._path}: {count} images in {len(ordered)} directories."
        )


def _batches(images: Iterable[CaptionedImage], size: int) -> Iterator[list[CaptionedImage]]:
    images = iter(images)
    while batch := list(itertools.islice(images, size)):
        yield batch


def _map_in_order(
    pool: concurrent.futures.ThreadPoolExecutor,
    function: Callable[[Any], _T],
    inputs: Iterable[Any],
    *,
    max_pending: int,
) -> Iterator[_T]:
    """Like `pool.map`, but reads at most `max_pending` inputs ahead: there may be millions."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    for value in inputs:
        pending.append(pool.submit(function, value))
        if len(pending) > max_pending:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


CAPTIONS = Importer(
    name="captions",
    title="Images with captions: directories (RedCaps, img2dataset), tables, LGSSL's dictionaries",
    annotation_files="""[SPLIT/]DIRECTORY/INSTANCE.json with {"caption": …}, or INSTANCE.txt with
    one caption per line; or one table of all images: --table""",
    media_names="""[SPLIT/]DIRECTORY/INSTANCE.jpg, or another image format; SPLIT is train, val,
    valid, validation or test""",
    read=_read,
    options=(
        Option(
            name="table",
            metavar="FILE",
            help="read captions from this file instead of files next to the images: .csv, .tsv, "
            ".jsonl or .parquet with columns for the path (relative to --media) and the caption, "
            "or LGSSL's dictionary (.json)",
        ),
        Option(
            name="path_column",
            metavar="NAME",
            help="column of --table with the path (default: recognized by its name)",
        ),
        Option(
            name="caption_column",
            metavar="NAME",
            help="column of --table with the caption (default: recognized by its name), or key of "
            "the .json files (default: caption)",
        ),
        Option(
            name="keep",
            nargs="*",
            metavar="COLUMN",
            help="columns of --table (default: all) or keys of the .json files (default: none) to "
            "keep in the result",
        ),
        Option(
            name="split",
            default="train",
            help="split of images that are not in a split directory (default: train)",
        ),
        Option(name="year", type=int, help="import only directories with this year in their names"),
        Option(
            name="directories",
            metavar="PATTERN",
            help="import only directories that match this pattern, such as 'crochet_*'",
        ),
        Option(
            name="max_kib",
            type=float,
            metavar="N",
            help="skip files larger than this many KiB (LGSSL: 1024; default: no limit)",
        ),
        Option(
            name="max_aspect",
            type=float,
            metavar="R",
            help="skip images with a larger aspect ratio (LGSSL: 20; default: no limit)",
        ),
        Option(
            name="dictionary",
            metavar="FILE",
            help="also write LGSSL's dictionary of the imported images",
        ),
        Option(
            name="threads",
            type=int,
            default=16,
            help="number of threads that read files (default: 16)",
        ),
    ),
    separate_annotations=False,
    columns=("caption",),
    skip_duplicates=False,
    build_options="--size 256 --clips-per-shard 1024",
    named_after_table=True,
)
