"""The files of TVL as its authors publish them: pairs of images, captions, backgrounds."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from collections.abc import Iterator, Sequence

from mmjax.data.importers.annotations import cells, malformed, read_json
from mmjax.data.storage import image_files
from mmjax.errors import UserError

NO_CONTACT = "background"  # the caption of images without contact

_RGB = re.compile(r"image_(.+)_rgb(\.\w+)")
_HCT_FILES = ("contact.json", "train.csv", "test.csv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """An image of touch with one of what is touched; paths are relative to the root.

    Attributes:
      vision, touch: the two images.
      background: of the sensor; '' = none.
      caption: '' = none.
      subset: 'ssvtp', or 'hct/' and the name of the part.
      where: file and line that lists it.
    """

    vision: str
    touch: str
    background: str
    caption: str
    subset: str
    where: str

    @property
    def recording(self) -> str:
        """The folder that both folders of images are in."""
        return posixpath.dirname(posixpath.dirname(self.vision))


@dataclasses.dataclass(kw_only=True)
class Part:
    """The pairs of one of the two datasets, as its files list them.

    Attributes:
      train: without those of `missing`, which do not count when the validation set is drawn.
      test, no_contact: see TVL.
      missing: rows of ssvtp's training table without an image.
      notices: sentences about what was found.
    """

    train: list[Pair] = dataclasses.field(default_factory=list)
    test: list[Pair] = dataclasses.field(default_factory=list)
    no_contact: list[Pair] = dataclasses.field(default_factory=list)
    missing: list[Pair] = dataclasses.field(default_factory=list)
    notices: list[str] = dataclasses.field(default_factory=list)


class Tree:
    """Which files are below a folder; each folder is listed once."""

    def __init__(self, root: str):
        self.root = root
        self._directories: dict[str, set[str]] = {}

    def list(self, directory: str) -> set[str]:
        """Names in a folder; empty if there is none."""
        if directory not in self._directories:
            path = os.path.join(self.root, directory)
            self._directories[directory] = set(os.listdir(path)) if os.path.isdir(path) else set()
        return self._directories[directory]

    def has(self, path: str) -> bool:
        """Whether there is such a file."""
        return posixpath.basename(path) in self.list(posixpath.dirname(path))

    def path(self, path: str) -> str:
        """Where it is."""
        return os.path.join(self.root, path)


def read_ssvtp(tree: Tree, *, background: str = "") -> Part:
    """The pairs of ssvtp.

    Args:
      tree: of the datasets.
      background: of all of them, as it is to stand in the table; '' = none.

    Raises:
      UserError: a malformed table.
    """
    part = Part()
    for split, pairs in (("train", part.train), ("test", part.test)):
        table = f"ssvtp/{split}.csv"
        if tree.has(table):
            rows = list(_table(tree.path(table)))
            listed = [(f"{table}:{number}", row[0]) for number, row in rows]
        elif split == "train":
            names = sorted(filter(image_files.is_image, tree.list("ssvtp/images_rgb")))
            listed = [(f"ssvtp/images_rgb/{name}", f"images_rgb/{name}") for name in names]
            part.notices.append(
                f"There is no {table}: all {len(names)} images of ssvtp/images_rgb are taken."
            )
        else:
            part.notices.append(f"There is no {table}: the split {split} has nothing of ssvtp.")
            continue
        for where, name in listed:
            vision = posixpath.normpath(f"ssvtp/{name}")
            directory, file = posixpath.split(vision)
            match = _RGB.fullmatch(file)
            if not match or posixpath.basename(directory) != "images_rgb":
                raise UserError(f"{where}: {name!r} is not images_rgb/image_N_rgb.jpg.")
            base = posixpath.dirname(directory)
            pairs.append(
                Pair(
                    vision=vision,
                    touch=f"{base}/images_tac/image_{match[1]}_tac{match[2]}",
                    background=background,
                    caption=_first_line(tree, f"{base}/text/labels_{match[1]}.txt"),
                    subset="ssvtp",
                    where=where,
                )
            )
    part.missing = [pair for pair in part.train if not tree.has(pair.vision)]
    part.train = [pair for pair in part.train if tree.has(pair.vision)]
    return part


def read_hct(tree: Tree, *, no_contact: bool) -> Part:
    """The pairs of hct, of all its folders by alphabet.

    Args:
      tree: of the datasets.
      no_contact: also those without contact, as far as their images are there.

    Raises:
      UserError: no such folders, or a malformed table.
    """
    part, directories = Part(), []
    for name in sorted(tree.list("hct")):
        if any(tree.has(f"hct/{name}/{file}") for file in _HCT_FILES):
            directories.append(f"hct/{name}")
    if not directories:
        raise UserError(
            f"{tree.path('hct')} has no folder with a contact.json, train.csv or test.csv."
        )
    for directory in directories:
        for split, pairs in (("train", part.train), ("test", part.test)):
            table, fallback = f"{directory}/{split}.csv", f"{directory}/contact.json"
            if tree.has(table):
                for number, row in _table(tree.path(table)):
                    if len(row) != 4:
                        raise malformed(
                            tree.path(table),
                            number,
                            f"{len(row)} cells, not vision, touch, background and caption",
                        )
                    pairs.append(_hct_pair(directory, row, f"{table}:{number}", tree))
            elif split == "train" and tree.has(fallback):
                part.notices.append(
                    f"There is no {table}: {fallback} is taken, which has no captions."
                )
                pairs += _json_pairs(directory, "contact.json", tree, caption="")
            else:
                part.notices.append(
                    f"There is no {table}: the split {split} has nothing of {directory}."
                )
        if no_contact and tree.has(f"{directory}/not_contact.json"):
            found = _json_pairs(directory, "not_contact.json", tree, caption=NO_CONTACT)
            part.no_contact += [p for p in found if tree.has(p.vision) and tree.has(p.touch)]
    return part


def _table(path: str) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of a table of images; its header is not one."""
    for number, row in cells(path):
        if number > 1 or image_files.is_image(row[0]):
            yield number, row


def _json_pairs(directory: str, name: str, tree: Tree, *, caption: str) -> Iterator[Pair]:
    path = tree.path(f"{directory}/{name}")
    columns = [read_json(path, key) for key in ("vision", "tactile", "background")]
    if len({len(column) for column in columns}) != 1:
        raise UserError(
            f"{path}: vision, tactile and background have "
            f"{', '.join(str(len(column)) for column in columns)} entries, not the same number."
        )
    for number, row in enumerate(zip(*columns, strict=True)):
        yield _hct_pair(directory, [*row, caption], f"{directory}/{name}[{number}]", tree)


def _hct_pair(directory: str, row: Sequence[str], where: str, tree: Tree) -> Pair:
    if not all(isinstance(cell, str) for cell in row) or "" in row[:2]:
        raise UserError(f"{where}: {row[0]!r} and {row[1]!r} are not two paths of images.")
    vision, touch, background = (posixpath.normpath(f"{directory}/{path}") for path in row[:3])
    return Pair(
        vision=vision,
        touch=touch,
        background=usable_background(background if row[2] else "", directory, tree),
        caption=row[3],
        subset=directory,
        where=where,
    )


def usable_background(path: str, directory: str, tree: Tree) -> str:
    """The path if there is such a file, else the folder's own background, or ''."""
    for candidate in (path, f"{directory}/digit_background.png"):
        if candidate and tree.has(candidate):
            return candidate
    return ""


def _first_line(tree: Tree, path: str) -> str:
    if not tree.has(path):
        return ""
    with open(tree.path(path), encoding="utf-8-sig", errors="replace") as file:
        return file.readline().strip()
