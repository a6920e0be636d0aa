"""FGVC-Aircraft in its published layout, which `images:DIRECTORY` recognizes.

    images/IMAGE.jpg
    images_variant_SPLIT.txt     lines 'IMAGE VARIANT'; the variant is the class
    variants.txt                 optional: the order of the classes

Source: Maji et al. 2013, Fine-Grained Visual Classification of Aircraft, arXiv 1306.5151.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from mmjax.data.sources.image_list import ImageListSource, image_info
from mmjax.data.sources.split_slicing import match_split
from mmjax.errors import UserError
from mmjax.files import read_lines

_SUBDIRECTORIES = ("", "data", os.path.join("fgvc-aircraft-2013b", "data"))


def find_lists(root: str) -> str:
    """Returns the directory at or below `root` with the lists of images; '' without any."""
    root = os.path.expanduser(root)
    directories = [os.path.join(root, subdirectory) for subdirectory in _SUBDIRECTORIES]
    return next((d for d in directories if os.path.isdir(d) and _list_files(d)), "")


def split_names(directory: str) -> list[str]:
    """Returns the splits that the lists in `directory` define."""
    return sorted(_list_files(directory))


def open_split(directory: str, root: str, *, split: str) -> ImageListSource:
    """Opens a split.

    Args:
      directory: Result of `find_lists`.
      root: The directory that the user named; it names the dataset.
      split: Name of the split, or a synonym of it.

    Raises:
      UserError: The split does not exist, or a list is malformed.
    """
    files = _list_files(directory)
    name = match_split(split, files)
    if name is None:
        splits = ", ".join(sorted(files))
        raise UserError(f"{directory} has no split {split!r}. Its splits: {splits}.")
    lists = {key: _read_list(path) for key, path in files.items()}
    index = _class_indices(directory, lists)
    images = [
        (os.path.join(directory, "images", f"{image}.jpg"), index[variant])
        for image, variant in lists[name]
    ]
    counts = {key: len(entries) for key, entries in lists.items()}
    return ImageListSource(image_info(root, counts, list(index)), split, images)


def _list_files(directory: str) -> dict[str, str]:
    """Returns {split: path of its list of images}."""
    matches = [(re.fullmatch(r"images_variant_(\w+)\.txt", n), n) for n in os.listdir(directory)]
    return {match[1]: os.path.join(directory, name) for match, name in matches if match}


def _read_list(path: str) -> list[tuple[str, str]]:
    """Returns the (image, variant) pairs of a list."""
    lines = [line.split(maxsplit=1) for line in read_lines(path)]
    for number, line in enumerate(lines, 1):
        if len(line) < 2:
            raise UserError(f"{path}, line {number}: expected 'IMAGE VARIANT', got {line[0]!r}.")
    return [(image, variant.strip()) for image, variant in lines]


def _class_indices(directory: str, lists: Mapping[str, list[tuple[str, str]]]) -> dict[str, int]:
    """Returns {variant: class index}, in the order of variants.txt or alphabetically."""
    used = {variant for entries in lists.values() for _, variant in entries}
    names = sorted(used)
    path = os.path.join(directory, "variants.txt")
    if os.path.exists(path):
        names = list(dict.fromkeys(read_lines(path)))
    if missing := used - set(names):
        raise UserError(
            f"{path} lacks the variant {min(missing)!r}, which a list of images uses. Add it, or "
            "remove the file to number the variants alphabetically."
        )
    return {name: index for index, name in enumerate(names)}
