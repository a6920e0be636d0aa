"""Finds the segmentation masks of images, and reads them as class maps.

A mask is an image file, or an image of a JSON file in COCO's format: FILE.json#IMAGE_ID.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from mmjax.data.build.manifest import Clip
from mmjax.data.build.options import BuildOptions
from mmjax.data.storage import coco_masks, directories, image_files, mask_files
from mmjax.errors import UserError

_MARK = ".json#"  # between a JSON file and the id of an image
_MAX_LISTED = 3


def is_json(masks: str | None) -> bool:
    """Returns whether masks are in a JSON file, rather than in a directory."""
    return bool(masks) and masks.lower().endswith(".json")


def add_masks(clips: Sequence[Clip], masks: str) -> list[Clip]:
    """Returns the images of a directory with their masks.

    Args:
      clips: The images.
      masks: A directory with a mask of the same relative path, except for the suffix, for each
        image; or a JSON file in COCO's format with the file names of the images.

    Raises:
      UserError: The directory or file does not exist, or images have no mask.
    """
    if is_json(masks):
        find = _finder_in_json(masks)
    elif os.path.isdir(masks):
        find = _finder_in_directory(masks)
    else:
        raise UserError(f"--masks {masks}: no such directory, and not a .json file.")
    found = [find(clip.path) for clip in clips]
    missing = [clip.path for clip, mask in zip(clips, found, strict=True) if mask is None]
    if missing:
        shown = ", ".join(missing[:_MAX_LISTED]) + (", …" if len(missing) > _MAX_LISTED else "")
        rule = (
            "its `images` must list their file names"
            if is_json(masks)
            else "a mask has the name of its image, in the same subdirectory, with any suffix"
        )
        raise UserError(
            f"--masks {masks}: {len(missing)} of {len(clips)} images have no mask: {shown}. Add "
            f"masks or remove these images; {rule}."
        )
    return [dataclasses.replace(clip, mask=mask) for clip, mask in zip(clips, found, strict=True)]


def _finder_in_directory(masks: str):
    by_stem: dict[str, str] = {}
    others = []
    for root, _, names in directories.walk(masks):
        for name in names:
            path = os.path.join(root, name)
            if not image_files.is_image(path, gif=True):
                others.append(name)
                continue
            stem = os.path.splitext(os.path.relpath(path, masks))[0]
            if stem in by_stem:
                raise UserError(
                    f"--masks {masks}: {os.path.basename(by_stem[stem])} and {name} are masks of "
                    "one image. Remove one of them."
                )
            by_stem[stem] = os.path.abspath(path)
    directories.log_ignored(masks, others, expected="masks")
    return lambda path: by_stem.get(os.path.splitext(path)[0])


def _finder_in_json(masks: str):
    names = coco_masks.load(masks).files()
    # Tools write the path that an image had on another machine, so the name alone must suffice.
    by_name: dict[str, list] = {}
    for file, image_id in names.items():
        by_name.setdefault(os.path.basename(file), []).append(image_id)

    def find(path: str) -> str | None:
        image_id = names.get(path.replace(os.sep, "/"))
        same = by_name.get(os.path.basename(path), [])
        if image_id is None and len(same) == 1:
            image_id = same[0]
        return None if image_id is None else f"{os.path.abspath(masks)}#{image_id}"

    return find


def mask_format(options: BuildOptions) -> mask_files.MaskFormat:
    """Returns what the values of mask files mean.

    Raises:
      UserError: The options of the masks contradict each other.
    """
    ignore = options.mask_ignore
    if ignore is None:
        ignore = () if mask_files.IGNORE in options.mask_values else (mask_files.IGNORE,)
    return mask_files.MaskFormat(
        classes=options.mask_classes, values=options.mask_values, ignore=ignore
    )


def read_mask(path: str, image: str, size: tuple[int, int], options: BuildOptions) -> np.ndarray:
    """Returns the class map of an image in the size of its stored frame.

    Args:
      path: Full path of the mask.
      image: Full path of the image.
      size: (height, width) of the stored frame.
      options: Options of the build.

    Returns:
      uint8 [*size], `mask_files.IGNORE` for pixels without a class.

    Raises:
      UserError: The mask cannot be read, has unknown values, or differs from the image in size.
    """
    if _MARK in path:
        classes = _from_json(path, options)
    else:
        values = mask_files.read_values(path)
        classes = mask_format(options).convert(values, path)
    width, height = image_files.image_size(image)
    if classes.shape != (height, width):
        raise UserError(
            f"{path} is {classes.shape[1]}×{classes.shape[0]} pixels, but its image {image} is "
            f"{width}×{height}{_rotation(image, classes.shape)}. Masks must have the size of their "
            "images."
        )
    return mask_files.resize(classes, size) if classes.shape != size else classes


def _from_json(path: str, options: BuildOptions) -> np.ndarray:
    file, _, image_id = path.rpartition("#")
    masks = coco_masks.load(file)
    names = options.mask_classes or masks.class_names
    masks.check_classes(names, source="--mask-classes")
    key = next((key for key in masks.images if str(key) == image_id), image_id)
    return masks.paint(key, {name: index for index, name in enumerate(names)})


def _rotation(image: str, shape: tuple[int, int]) -> str:
    """Returns a note if the mask has the size of the image before its EXIF rotation."""
    width, height = image_files.image_size(image)
    if shape == (width, height) and image_files.is_rotated(image):
        return " after the rotation in its EXIF data, which the mask lacks"
    return ""
