"""Reads the list of images to build from a directory."""

from __future__ import annotations

import os

from mmjax import files
from mmjax.data.build import splits
from mmjax.data.build.manifest import Clip
from mmjax.data.storage import class_labels, directories, image_files
from mmjax.errors import UserError


def read_image_directory(
    directory: str, *, split: str = "train", has_classes: bool = True
) -> list[Clip]:
    """Returns the images of `DIR/class/**`, `DIR/split/class/**`, or a directory without classes.

    If all subdirectories are named train, val, valid, validation or test, they are splits. A text
    file `x.txt` next to an image `x.jpg` contains its captions, one per line. The log counts the
    files that are not read.

    Args:
      directory: The directory.
      split: Split of the images if there are no split directories.
      has_classes: Whether other subdirectories are classes.

    Raises:
      UserError: The directory does not exist, or contains no images, or a text file is not UTF-8.
    """
    if not os.path.isdir(directory):
        raise UserError(f"--images {directory}: no such directory.")
    images, others = [], []
    for root, _, names in directories.walk(directory):
        parts = os.path.relpath(root, directory).split(os.sep) if root != directory else []
        found = [name for name in names if image_files.is_image(os.path.join(root, name))]
        images += [(parts, name) for name in found]
        captions = {f"{os.path.splitext(name)[0]}.txt" for name in found}
        others += [name for name in names if name not in captions and name not in found]
    if not images:
        suffixes = [s for s in image_files.IMAGE_SUFFIXES if image_files.is_image(f"x{s}")]
        raise UserError(
            f"--images {directory}: no image files ({', '.join(suffixes)}).{unpack_hint(others)}"
        )
    directories.log_ignored(directory, others, expected=_expected(others))
    by_split = {parts[0] if parts else "" for parts, _ in images} <= set(splits.SPLIT_DIRECTORIES)
    clips = []
    for number, (parts, file) in enumerate(images, 1):
        classes = parts[1:] if by_split else parts
        path = os.path.join(*parts, file)
        clips.append(
            Clip(
                path=path,
                captions=_read_captions(os.path.join(directory, path)),
                labels=tuple(map(class_labels.clean, classes[:1])) if has_classes else (),
                split=parts[0] if by_split else split,
                line=number,
            )
        )
    return clips


def unpack_hint(names: list[str]) -> str:
    """Returns advice for a directory with archives but no media; '' without archives."""
    archive = next((name for name in names if name.lower().endswith(_ARCHIVES)), None)
    if archive is None:
        return ""
    return f" Unpack its archives first, for example {archive}; mmjax does not read into them."


_ARCHIVES = (".tar", ".tgz", ".tar.gz", ".zip", ".7z", ".rar")


def _expected(others: list[str]) -> str:
    captions = any(name.lower().endswith(".json") for name in others)
    hint = " (`mmjax import captions` reads captions in .json files)" if captions else ""
    return f"images or their captions{hint}"


def _read_captions(image: str) -> tuple[str, ...]:
    path = os.path.splitext(image)[0] + ".txt"
    return tuple(files.read_lines(path)) if os.path.exists(path) else ()
