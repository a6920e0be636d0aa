"""The source `images:DIRECTORY`: images in one subdirectory per class.

    DIRECTORY/SPLIT/CLASS/*.jpg     with splits
    DIRECTORY/CLASS/*.jpg           without: every split name means all images

Class indices follow the alphabetical order of the class names of all splits.
"""

from __future__ import annotations

import functools
import os

from mmjax.data.sources import fgvc_aircraft
from mmjax.data.sources.image_list import ImageListSource, image_info
from mmjax.data.sources.split_slicing import SPLIT_NAMES, match_split
from mmjax.data.storage import class_labels, directories, image_files
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
    classes = sorted({name for parent in parents for name in directories.list_directories(parent)})
    root = os.path.join(root, name or "")
    index = {name: n for n, name in enumerate(dict.fromkeys(map(class_labels.clean, classes)))}
    images, others = [], []
    for class_name in classes:
        label = index[class_labels.clean(class_name)]
        for directory, _, files in sorted(directories.walk(os.path.join(root, class_name))):
            for file in files:
                path = os.path.join(directory, file)
                if image_files.is_image(path, gif=True):
                    images.append((path, label))
                else:
                    others.append(file)
    if not images:
        existing = ", ".join(classes[:8]) or "none"
        raise UserError(
            f"{root} has no images in subdirectories, one per class. Its "
            f"subdirectories: {existing}. {_LAYOUT}."
        )
    _log_ignored(root, tuple(others))
    return ImageListSource(image_info(path, {split: len(images)}, list(index)), split, images)


@functools.cache  # each evaluator opens its data again: one warning is enough
def _log_ignored(root: str, files: tuple[str, ...]) -> None:
    directories.log_ignored(root, files, expected="images")


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
        image_files.is_image(os.path.join(root, name, file), gif=True)
        for name in directories.list_directories(root)
        for file in directories.list_files(os.path.join(root, name))
    )


def _existing(path: str) -> str:
    root = os.path.expanduser(path)
    if not os.path.isdir(root):
        raise UserError(f"images:{path}: the directory {root} does not exist. {_LAYOUT}.")
    return root


def _split_directories(root: str) -> list[str]:
    """Returns the subdirectories that are named like a split and contain subdirectories."""
    names = [name for name in directories.list_directories(root) if name in SPLIT_NAMES]
    return [n for n in names if directories.list_directories(os.path.join(root, n))]
