"""Reads the files of TVL as published: pairs of images, captions and backgrounds."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from collections.abc import Iterator, Sequence

from mmjax.data.importers.annotations import line_error, location, read_cells, read_json
from mmjax.data.storage import image_files
from mmjax.errors import UserError

NO_CONTACT = "background"  # the caption of images without contact

_RGB = re.compile(r"image_(.+)_rgb(\.\w+)")
_HCT_FILES = ("contact.json", "train.csv", "test.csv")
_HCT_COLUMNS = ("vision", "tactile", "background")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A touch image and an image of the touched object. Paths are relative to the root of TVL.

    Attributes:
      vision: The image of the object.
      touch: The touch image.
      background: The background of the touch image; '' for none.
      caption: The caption; '' for none.
      subset: 'ssvtp', or 'hct/' and the name of its part.
      location: 'FILE, line N' that lists the pair.
    """

    vision: str
    touch: str
    background: str
    caption: str
    subset: str
    location: str

    @property
    def recording(self) -> str:
        """The directory that contains both image directories."""
        return posixpath.dirname(posixpath.dirname(self.vision))


@dataclasses.dataclass(kw_only=True)
class Subset:
    """The pairs of ssvtp or hct.

    Attributes:
      train: Training pairs, without those in `missing`.
      test: Test pairs.
      no_contact: Pairs without contact.
      missing: Training pairs of ssvtp without an image. The validation set is sampled without them.
      notes: Sentences for the report.
    """

    train: list[Pair] = dataclasses.field(default_factory=list)
    test: list[Pair] = dataclasses.field(default_factory=list)
    no_contact: list[Pair] = dataclasses.field(default_factory=list)
    missing: list[Pair] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


class Tree:
    """The files below a directory. Each directory is listed only once.

    Args:
      root: The directory. The paths of all methods are relative to it.
    """

    def __init__(self, root: str):
        self.root = root
        self._directories: dict[str, set[str]] = {}

    def list(self, directory: str) -> set[str]:
        """Returns the names in a directory; empty if it does not exist."""
        if directory not in self._directories:
            path = os.path.join(self.root, directory)
            self._directories[directory] = set(os.listdir(path)) if os.path.isdir(path) else set()
        return self._directories[directory]

    def has(self, path: str) -> bool:
        """Returns whether a file exists."""
        return posixpath.basename(path) in self.list(posixpath.dirname(path))

    def path(self, path: str) -> str:
        """Returns the full path."""
        return os.path.join(self.root, path)


def read_ssvtp(tree: Tree, *, background: str = "") -> Subset:
    """Returns the pairs of ssvtp.

    Args:
      tree: The files of TVL.
      background: Background image of all pairs, as the table refers to it; '' for none.

    Raises:
      UserError: A table is malformed.
    """
    subset = Subset()
    for split, pairs in (("train", subset.train), ("test", subset.test)):
        for line, name in _ssvtp_images(tree, split, subset.notes):
            vision = posixpath.normpath(f"ssvtp/{name}")
            directory, file = posixpath.split(vision)
            match = _RGB.fullmatch(file)
            if not match or posixpath.basename(directory) != "images_rgb":
                raise UserError(f"{line}: expected images_rgb/image_N_rgb.jpg; got {name!r}.")
            base = posixpath.dirname(directory)
            pairs.append(
                Pair(
                    vision=vision,
                    touch=f"{base}/images_tac/image_{match[1]}_tac{match[2]}",
                    background=background,
                    caption=_first_line(tree, f"{base}/text/labels_{match[1]}.txt"),
                    subset="ssvtp",
                    location=line,
                )
            )
    subset.missing = [pair for pair in subset.train if not tree.has(pair.vision)]
    subset.train = [pair for pair in subset.train if tree.has(pair.vision)]
    return subset


def _ssvtp_images(tree: Tree, split: str, notes: list[str]) -> list[tuple[str, str]]:
    """Returns `(location, image path relative to ssvtp)`; adds a note if there is no table."""
    table = f"ssvtp/{split}.csv"
    if tree.has(table):
        return [(location(table, n), row[0]) for n, row in _image_rows(tree.path(table))]
    if split != "train":
        notes.append(f"{table} does not exist: the split {split} has no examples of ssvtp.")
        return []
    names = sorted(filter(image_files.is_image, tree.list("ssvtp/images_rgb")))
    notes.append(
        f"{table} does not exist: imported all {len(names)} images of ssvtp/images_rgb as train."
    )
    return [(f"ssvtp/images_rgb/{name}", f"images_rgb/{name}") for name in names]


def read_hct(tree: Tree, *, no_contact: bool) -> Subset:
    """Returns the pairs of all parts of hct, in alphabetical order of the parts.

    Args:
      tree: The files of TVL.
      no_contact: Whether to include the pairs without contact whose images exist.

    Raises:
      UserError: There are no parts, or a table is malformed.
    """
    subset = Subset()
    parts = [
        f"hct/{name}"
        for name in sorted(tree.list("hct"))
        if any(tree.has(f"hct/{name}/{file}") for file in _HCT_FILES)
    ]
    if not parts:
        raise UserError(
            f"{tree.path('hct')}: expected directories with a contact.json, train.csv or test.csv; "
            "found none."
        )
    for part in parts:
        for split, pairs in (("train", subset.train), ("test", subset.test)):
            pairs += _hct_split(part, split, tree, subset.notes)
        if no_contact and tree.has(f"{part}/not_contact.json"):
            pairs = _json_pairs(part, "not_contact.json", tree, caption=NO_CONTACT)
            subset.no_contact += [p for p in pairs if tree.has(p.vision) and tree.has(p.touch)]
    return subset


def _hct_split(part: str, split: str, tree: Tree, notes: list[str]) -> list[Pair]:
    """Returns the pairs of a split of one part; adds a note if the table does not exist."""
    table, fallback = f"{part}/{split}.csv", f"{part}/contact.json"
    if tree.has(table):
        pairs = []
        for number, row in _image_rows(tree.path(table)):
            if len(row) != 4:
                problem = "expected 4 cells: vision, touch, background, caption; got"
                raise line_error(tree.path(table), number, f"{problem} {len(row)} cells")
            pairs.append(_hct_pair(part, row, location(table, number), tree))
        return pairs
    if split == "train" and tree.has(fallback):
        pairs = list(_json_pairs(part, "contact.json", tree, caption=""))
        notes.append(
            f"{table} does not exist: imported {len(pairs)} examples without captions from "
            f"{fallback}."
        )
        return pairs
    notes.append(f"{table} does not exist: the split {split} has no examples of {part}.")
    return []


def _image_rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yields `(line number, cells)` of a table of images, with or without a header."""
    for number, row in read_cells(path):
        if number > 1 or image_files.is_image(row[0]):
            yield number, row


def _json_pairs(part: str, name: str, tree: Tree, *, caption: str) -> Iterator[Pair]:
    path = tree.path(f"{part}/{name}")
    columns = [read_json(path, key) for key in _HCT_COLUMNS]
    if len({len(column) for column in columns}) != 1:
        raise UserError(
            f"{path}: the lists {', '.join(_HCT_COLUMNS)} must have the same length; got "
            f"{', '.join(str(len(column)) for column in columns)}."
        )
    for index, row in enumerate(zip(*columns, strict=True)):
        yield _hct_pair(part, [*row, caption], f"{part}/{name}, entry {index}", tree)


def _hct_pair(part: str, row: Sequence[str], line: str, tree: Tree) -> Pair:
    if not all(isinstance(cell, str) for cell in row) or "" in row[:2]:
        raise UserError(
            f"{line}: expected paths of a vision and a touch image; got {row[0]!r} and {row[1]!r}."
        )
    vision, touch, background = (posixpath.normpath(f"{part}/{path}") for path in row[:3])
    return Pair(
        vision=vision,
        touch=touch,
        background=usable_background(background if row[2] else "", part, tree),
        caption=row[3],
        subset=part,
        location=line,
    )


def usable_background(path: str, part: str, tree: Tree) -> str:
    """Returns the path of a background, the part's own one if it does not exist, or ''."""
    for candidate in (path, f"{part}/digit_background.png"):
        if candidate and tree.has(candidate):
            return candidate
    return ""


def _first_line(tree: Tree, path: str) -> str:
    if not tree.has(path):
        return ""
    with open(tree.path(path), encoding="utf-8-sig", errors="replace") as file:
        return file.readline().strip()
