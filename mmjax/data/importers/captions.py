"""Images with captions: folders as of LGSSL and img2dataset, tables, LGSSL's dictionaries.

Source of the layout: El Banani et al. 2023, Learning Visual Representations via Language-Guided
Sampling, arXiv 2302.12248 (LGSSL), and its published code.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import fnmatch
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from PIL import Image

from mmjax.data.importers import caption_files
from mmjax.data.importers.base import Importer, Item, Job
from mmjax.data.importers.caption_files import Entry
from mmjax.errors import UserError

_BATCH = 512  # entries that a thread looks at in one go
_FIRST = 3  # examples of each problem that the report names
_T = TypeVar("_T")
_Placed = TypeVar("_Placed", Entry, caption_files.Folder)


def _read(job: Job) -> Iterator[Item]:
    options, problems = job.options, _Problems()
    for option in ("threads", "max_kib", "max_aspect"):
        if (value := getattr(options, option)) is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value:g} must be at least 1.")
    check = _Check(job.media.root, options)
    dictionary = _Dictionary(options.dictionary) if options.dictionary else None
    looked_at: Iterable[Any]  # what a thread does in one go
    if options.table:
        entries = caption_files.read_file(options)
        looked_at = _batches(_wanted(entries, options, problems), _BATCH)
        look = check
    else:
        directories = caption_files.find_directories(job.media.root, options.split)
        looked_at = _wanted(directories, options, problems)
        look = lambda directory: check(caption_files.read_directory(directory, options))  # noqa: E731
    with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
        found = _in_order(pool, look, looked_at, ahead=2 * options.threads)
        for entry, problem in itertools.chain.from_iterable(found):
            if problem == caption_files.NO_PICTURE:
                yield Item(path=None, absent=entry.name, split=entry.split, where=entry.where)
            elif problem:
                problems.add(problem, entry.name)
            else:
                if dictionary:
                    dictionary.add(entry)
                yield Item(
                    path=entry.path,
                    captions=entry.captions,
                    split=entry.split,
                    where=entry.where,
                    more=entry.more,
                )
    job.notices += problems.sentences()
    if dictionary:
        job.notices.append(dictionary.write())


def _wanted(
    found: Iterable[_Placed], options: argparse.Namespace, problems: _Problems
) -> Iterator[_Placed]:
    """Those whose directories --year and --directories mean.

    Raises:
      UserError: there is none.
    """
    last, any_wanted = None, False
    for each in found:
        last = each.directory
        if _is_wanted(last, options):
            any_wanted = True
            yield each
        else:
            problems.add("not of --year and --directories", last)
    if last is not None and not any_wanted:
        raise UserError(
            f"--year and --directories leave no directory; there is, for example, {last!r}."
        )


def _is_wanted(directory: str, options: argparse.Namespace) -> bool:
    """By --year and --directories."""
    if options.directories and not fnmatch.fnmatchcase(directory, options.directories):
        return False
    # A year is a number of its own: not the 2017 of crochet_2016_120170.
    return not options.year or bool(re.search(rf"(?<!\d){options.year}(?!\d)", directory))


class _Check:
    """What is wrong with images: they are not there, too large, or too long and narrow."""

    def __init__(self, root: str, options: argparse.Namespace):
        self._root, self._kib, self._aspect = root, options.max_kib, options.max_aspect

    def __call__(self, entries: Iterable[Entry]) -> list[tuple[Entry, str]]:
        return [(entry, entry.problem or self._problem(entry)) for entry in entries]

    def _problem(self, entry: Entry) -> str:
        path = os.path.join(self._root, entry.path)
        if entry.listed and self._kib is None and self._aspect is None:
            return ""
        try:
            size = os.stat(path).st_size
        except OSError:
            return caption_files.NO_PICTURE
        if self._kib is not None and size > self._kib * 1024:
            return f"more than {self._kib:g} KiB"
        if self._aspect is not None:
            try:
                with Image.open(path) as image:  # reads the header alone
                    shorter, longer = sorted(image.size)
            except Exception:  # noqa: BLE001 - a damaged file can raise anything
                return "cannot be read as an image"
            if longer > self._aspect * shorter:
                return f"one side is more than {self._aspect:g} times the other"
        return ""


class _Problems:
    """Counts what is left out, by reason, with some examples."""

    def __init__(self):
        self._count: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, problem: str, name: str) -> None:
        self._count[problem] += 1
        if len(found := self._examples.setdefault(problem, [])) < _FIRST:
            found.append(name)

    def sentences(self) -> Iterator[str]:
        for problem, count in self._count.items():
            first = ", ".join(self._examples[problem]) + (", …" if count > _FIRST else "")
            yield f"{count} left out, {problem}: {first}."


class _Dictionary:
    """LGSSL's {directory: {instance: [path, caption]}}; paths are relative to --media."""

    def __init__(self, path: str):
        self._path = path
        self._content: dict[str, dict[str, list[str]]] = {}

    def add(self, entry: Entry) -> None:
        found = self._content.setdefault(entry.directory, {})
        if entry.instance in found:
            raise UserError(
                f"--dictionary: both {found[entry.instance][0]} and {entry.path} would be "
                f"{entry.directory}/{entry.instance}. Make one dictionary of each split: --media "
                "the folder of that split."
            )
        found[entry.instance] = [entry.path.replace(os.sep, "/"), entry.captions[0]]

    def write(self) -> str:
        """Writes it, directories and instances in order; returns a sentence about it."""
        ordered = {d: dict(sorted(found.items())) for d, found in sorted(self._content.items())}
        if directory := os.path.dirname(self._path):
            os.makedirs(directory, exist_ok=True)
        temporary = f"{self._path}.tmp-{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(ordered, file, ensure_ascii=False)
        os.replace(temporary, self._path)
        count = sum(map(len, ordered.values()))
        return f"{self._path}: LGSSL's dictionary of {count} images in {len(ordered)} directories."


def _batches(entries: Iterable[Entry], size: int) -> Iterator[list[Entry]]:
    entries = iter(entries)
    while batch := list(itertools.islice(entries, size)):
        yield batch


def _in_order(
    pool: concurrent.futures.ThreadPoolExecutor,
    function: Callable[[Any], _T],
    inputs: Iterable[Any],
    *,
    ahead: int,
) -> Iterator[_T]:
    """`map` of a pool that runs ahead by so many inputs alone: there may be millions."""
    running: collections.deque[concurrent.futures.Future] = collections.deque()
    for value in inputs:
        running.append(pool.submit(function, value))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="what is where, in place of files beside the images: .csv, .tsv, .jsonl, .parquet "
        "with columns for path (relative to --media) and caption, or LGSSL's dictionary (.json)",
    )
    parser.add_argument("--path-column", metavar="NAME", help="of --table (found by its name)")
    parser.add_argument(
        "--caption-column",
        metavar="NAME",
        help="of --table, or the key in the .json files (found by its name; caption)",
    )
    parser.add_argument(
        "--keep",
        nargs="*",
        metavar="COLUMN",
        help="columns of --table or keys of the .json files that the result keeps (all of a table, "
        "none of the others)",
    )
    parser.add_argument("--split", default="train", help="of what lies in no split folder (train)")
    parser.add_argument("--year", type=int, help="only directories with this year in their names")
    parser.add_argument(
        "--directories", metavar="PATTERN", help="only these directories, such as 'crochet_*'"
    )
    parser.add_argument(
        "--max-kib", type=float, metavar="N", help="leave out larger files (LGSSL: 1024; off)"
    )
    parser.add_argument(
        "--max-aspect",
        type=float,
        metavar="R",
        help="leave out images with sides of a larger ratio (LGSSL: 20; off)",
    )
    parser.add_argument(
        "--dictionary", metavar="FILE", help="write LGSSL's dictionary of the same images too"
    )
    parser.add_argument("--threads", type=int, default=16, help="that look at files (16)")


CAPTIONS = Importer(
    name="captions",
    title="Images with captions: folders as of RedCaps and img2dataset, tables, LGSSL's lists",
    needs="""[SPLIT/]DIRECTORY/INSTANCE.json with {"caption": …}, or INSTANCE.txt with a caption on
    each line; or one table of all images: --table""",
    names="""[SPLIT/]DIRECTORY/INSTANCE.jpg, or any other image; SPLIT is train, val, valid,
    validation or test""",
    read=_read,
    add_options=_add_options,
    annotated=False,
    columns=("caption",),
    check_repeats=False,
    build="--size 256 --clips-per-shard 1024",
    generic=True,
)
