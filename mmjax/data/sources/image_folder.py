"""The source `images:DIRECTORY`: images in one subdirectory per class.

    DIRECTORY/SPLIT/CLASS/*.jpg     with splits
    DIRECTORY/CLASS/*.jpg           without: every split name means all images

Class indices follow the alphabetical order of the class names of all splits.
"""

from __future__ import annotations

import os

from mmjax.data.sources import fgvc_aircraft
from mmjax.data.sources.image_list import ImageListSource, image_info
from mmjax.data.sources.split_slicing import SPLIT_NAMES, match_split
from mmjax.data.storage.image_files import IMAGE_SUFFIXES
from mmjax.errors import UserError

_LAYOUT = "Expected DIRECTORY/SPLIT/CLASS/*.jpg, or DIRECTORY/CLASS/*.jpg without splits"


def open_images(path: str, *, split: str) -> ImageListSource:
    """Opens a split of an image folder, or of FGVC-Aircraft in its published layout.

    Args:
      path: The directory.
      split: Name of the split, or a synonym of it.

    Raises:
      UserError: The directory or split does not exist or has no images.
    """
    root = _existing(path)
    if directory := fgvc_aircraft.find_lists(root):
        return fgvc_aircraft.open_split(directory, root, split=split)
    splits = _split_directories(root)
    if split not in splits and os.path.isdir(os.path.join(root, split)):  # any name is accepted
        splits = [*splits, split]
    name = match_split(split, splits)
    if splits and name is None:
        raise UserError(f"{root} has no split {split!r}. Its splits: {', '.join(splits)}.")
    parents = [os.path.join(root, one) for one in splits] or [root]
    classes = sorted({entry for parent in parents for entry in _subdirectories(parent)})
    root = os.path.join(root, name or "")
    images = [
        (os.path.join(directory, file), label)
        for label, class_name in enumerate(classes)
        for directory, _, files in sorted(os.walk(os.path.join(root, class_name)))
        for file in sorted(files)
        if file.lower().endswith(IMAGE_SUFFIXES)
    ]
    if not images:
        existing = ", ".join(classes[:8]) or "none"
        raise UserError(
            f"{root} has no images in subdirectories, one per class. Its "
            f"subdirectories: {existing}. {_LAYOUT}."
        )
    return ImageListSource(image_info(path, {split: len(images)}, classes), split, images)


def image_folder_splits(path: str) -> list[str]:
    """Returns the splits of an image folder; [] if it has none, so that any name is accepted."""
    root = _existing(path)
    if directory := fgvc_aircraft.find_lists(root):
        return fgvc_aircraft.split_names(directory)
    return _split_directories(root)


def has_images(path: str) -> bool:
    """Returns whether `open_images` can read `path`."""
    root = os.path.expanduser(path)
    if not os.path.isdir(root):
        return False
    if fgvc_aircraft.find_lists(root) or _split_directories(root):
        return True
    return any(
        entry.name.lower().endswith(IMAGE_SUFFIXES)
        for name in _subdirectories(root)
        for entry in os.scandir(os.path.join(root, name))
    )


def _existing(path: str) -> str:
    root = os.path.expanduser(path)
    if not os.path.isdir(root):
        raise UserError(f"images:{path}: the directory {root} does not exist. {_LAYOUT}.")
    return root


def _subdirectories(root: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir())


def _split_directories(root: str) -> list[str]:
    """Returns the subdirectories that are named like a split and contain subdirectories."""
    names = _subdirectories(root)
    return [n for n in names if n in SPLIT_NAMES and _subdirectories(os.path.join(root, n))]
