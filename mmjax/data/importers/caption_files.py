"""Reads images with captions from directories, with one caption file next to each image."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from mmjax import files
from mmjax.data.build import manifest, splits
from mmjax.data.storage import directories, image_files
from mmjax.errors import UserError

# Groups of skipped images in the report.
NO_IMAGE = "captions without an image"
EMPTY_CAPTION = "images with an empty caption"
_NO_CAPTION_FILE = "images without a caption file"
_NO_IMAGE_FILE = "files that are neither images nor captions"
_SAME_NAME = "images with the same name as another image"

CAPTION_KEY = "caption"  # in .json files, by default


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedImage:
    """An image and its captions.

    Attributes:
      name: Name in messages.
      path: Path relative to the media directory.
      directory: LGSSL's directory, which groups images.
      instance: LGSSL's instance, the name of the image within its directory.
      captions: The best caption first.
      split: Name of its split, or several joined by '+'.
      location: File, or file and line, of the caption.
      extra: Additional columns.
      exists: Whether the image is known to exist.
      problem: Group of skipped images that it belongs to; '' for a usable image.
    """

    name: str
    path: str
    directory: str
    instance: str
    captions: tuple[str, ...] = ()
    split: str
    location: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    exists: bool = False
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class ImageDirectory:
    """A directory with images.

    Attributes:
      full_path: Full path.
      path: Path relative to the media directory; '' for the media directory itself.
      directory: LGSSL's directory: the path without the name of the split.
      split: Split of its images.
    """

    full_path: str
    path: str
    directory: str
    split: str


def find_directories(root: str, split: str) -> Iterator[ImageDirectory]:
    """Yields the directories with files below the media directory, in alphabetical order.

    Args:
      root: The media directory. If all its subdirectories are named like splits, they are splits.
      split: Split of all other directories.
    """
    subdirectories = set(directories.list_directories(root))
    by_split = bool(subdirectories) and subdirectories <= set(splits.SPLIT_DIRECTORIES)
    for full_path, _, names in directories.walk(root):
        path = "" if full_path == root else os.path.relpath(full_path, root)
        # In the media directory itself, files other than images may be tables and archives.
        paths = (os.path.join(full_path, name) for name in names)
        if any(map(image_files.is_image, paths)) or (names and path):
            parts = path.split(os.sep) if path else []
            in_split = by_split and bool(parts)
            yield ImageDirectory(
                full_path,
                path,
                "/".join(parts[in_split:]),
                splits.check_split(parts[0]) if in_split else split,
            )


def read_directory(
    directory: ImageDirectory, *, caption_key: str | None = None, keep: Sequence[str] = ()
) -> list[CaptionedImage]:
    """Returns the images of a directory in alphabetical order, including unusable ones.

    Args:
      directory: The directory.
      caption_key: Key of the caption in .json files; None for 'caption'.
      keep: Other keys of .json files to keep as additional columns.
    """
    images: dict[str, str] = {}
    caption_files: dict[str, str] = {}
    result = []

    def add(stem: str, file: str, caption_file: str, **fields: Any) -> None:
        path = os.path.join(directory.path, file)
        result.append(
            CaptionedImage(
                name=path,
                path=path,
                directory=directory.directory,
                instance=stem,
                split=directory.split,
                location=os.path.join(directory.path, caption_file),
                exists=True,
                **fields,
            )
        )

    for file in directories.list_files(directory.full_path):
        stem, suffix = os.path.splitext(file)
        if suffix in (".json", ".txt"):
            caption_files.setdefault(stem, file)  # .json takes precedence over .txt
        elif not image_files.is_image(os.path.join(directory.full_path, file)):
            add(stem, file, file, problem=_NO_IMAGE_FILE)
        elif images.setdefault(stem, file) != file:
            add(stem, file, file, problem=_SAME_NAME)
    for stem in sorted(images.keys() | caption_files.keys()):
        image, caption_file = images.get(stem), caption_files.get(stem)
        if image is None:
            add(stem, caption_file, caption_file, problem=NO_IMAGE)
        elif caption_file is None:
            add(stem, image, image, problem=_NO_CAPTION_FILE)
        else:
            path = os.path.join(directory.full_path, caption_file)
            add(stem, image, caption_file, **_read_caption_file(path, caption_key, keep))
    return result


def _read_caption_file(path: str, caption_key: str | None, keep: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a `CaptionedImage` that its caption file defines."""
    suffix = os.path.splitext(path)[1]
    try:
        if suffix == ".txt":
            captions = tuple(files.read_lines(path))
            return {"captions": captions} if captions else {"problem": EMPTY_CAPTION}
        content, replaced = files.valid_text(files.read_json(path), path)
    except UserError:
        return {"problem": f"images with an unreadable {suffix} file"}
    if replaced:
        logging.warning("%s: replaced %d halves of surrogate pairs by U+FFFD.", path, replaced)
    key = caption_key or CAPTION_KEY
    if not isinstance(content, dict) or key not in content:
        return {"problem": f"images whose .json file has no key {key!r}"}
    captions = normalize_captions(content[key])
    if not captions:
        return {"problem": EMPTY_CAPTION}
    extra = {manifest.unreserved_column(name): content.get(name) for name in keep}
    return {"captions": captions, "extra": table_values(extra)}


def table_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that a table can hold: text, finite numbers, and dates as text."""
    kept = {}
    for name, value in values.items():
        if isinstance(value, datetime.date):
            value = str(value)
        if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
            kept[name] = value
    return kept


def normalize_captions(value: Any) -> tuple[str, ...]:
    """Returns the captions of a string or list with single spaces, without empty ones."""
    values = value if isinstance(value, list | tuple) else [value]
    captions = (" ".join(text.split()) for text in values if isinstance(text, str))
    return tuple(caption for caption in captions if caption)
