"""Masks in COCO's JSON format: instances as polygons or run lengths, painted as class maps.

Instances are painted in the order of the file, so later ones cover earlier ones. Pixels of no
instance are background. Polygons are rasterized by pycocotools, so that masks equal those
of other users of COCO pixel by pixel. Run lengths are decoded here, because pycocotools does not
check them.
"""

from __future__ import annotations

import collections
import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax import files, limits
from mmjax.errors import UserError, unknown

BACKGROUND = "background"


class CocoMasks:
    """The content of a JSON file with `images`, `annotations` and `categories`.

    Args:
      path: The file.

    Attributes:
      path: The file.
      categories: {id: name}, sorted by id.
      images: {id: entry of `images`}, in the order of the file.

    Raises:
      UserError: The file is not in this format. The message names the entry and the key.
    """

    def __init__(self, path: str):
        self.path = path
        content = files.read_object(path, "It must be in the format of COCO's instances_*.json.")
        images, annotations, categories = (
            self._list(content, key) for key in ("images", "annotations", "categories")
        )
        names = {self._key(c, "id"): str(self._key(c, "name")).strip() for c in categories}
        self.categories: dict[int, str] = dict(sorted(names.items()))
        if len(set(names.values())) < len(names):
            raise UserError(f"{path}: two categories have the same name. Rename one of them.")
        self.images: dict[Any, Mapping[str, Any]] = {self._key(i, "id"): i for i in images}
        self._annotations: dict[Any, list[Mapping[str, Any]]] = collections.defaultdict(list)
        for annotation in annotations:
            self._annotations[self._key(annotation, "image_id")].append(annotation)

    @property
    def class_names(self) -> tuple[str, ...]:
        """`background`, and the names of the categories in the order of their ids."""
        return (BACKGROUND, *(name for name in self.categories.values() if name != BACKGROUND))

    def files(self) -> dict[str, Any]:
        """Returns {file name: image id}, in the order of the file."""
        return {str(self._key(image, "file_name")): key for key, image in self.images.items()}

    def names_in(self, image_id: Any) -> set[str]:
        """Returns the names of the categories that occur in an image."""
        return {self._category(each) for each in self._annotations.get(image_id, ())}

    def size(self, image_id: Any) -> tuple[int, int]:
        """Returns (height, width) of an image."""
        image = self.images[image_id]
        height, width = (self._key(image, key) for key in ("height", "width"))
        where = f"{self.path}: image {image_id!r}"
        if not all(type(side) is int and side > 0 for side in (height, width)):
            raise UserError(
                f"{where}: width {width!r} and height {height!r} must be whole numbers above 0."
            )
        limits.check("IMAGE_PIXELS", height * width, f"{where}: {width}×{height} are")
        return height, width

    def paint(self, image_id: Any, classes: Mapping[str, int]) -> np.ndarray:
        """Returns the class map of an image, uint8 [H, W].

        Args:
          image_id: Id of the image.
          classes: {category name: class index}. Other categories are not painted. Pixels of no
            instance have the index of `background`, 0 by default.

        Raises:
          UserError: There is no such image, or an annotation is malformed.
        """
        if image_id not in self.images:
            raise UserError(f"{self.path} has no image with the id {image_id!r}.")
        canvas = np.full(self.size(image_id), classes.get(BACKGROUND, 0), np.uint8)
        for annotation in self._annotations.get(image_id, ()):
            value = classes.get(self._category(annotation))
            if value is None:
                continue
            try:
                inside = decode(self._key(annotation, "segmentation"), canvas.shape)
            except ValueError as error:
                raise UserError(
                    f"{self.path}: the segmentation of annotation {annotation.get('id')!r} of "
                    f"image {image_id!r} is malformed: {error}. Correct or remove it."
                ) from error
            canvas[inside] = value
        return canvas

    def check_classes(self, classes: Sequence[str], *, source: str) -> None:
        """Checks that the classes contain all categories, and one for pixels of no instance.

        Args:
          classes: Class names. Pixels of no instance are of the class `background`, or of the first
            one.
          source: Where they are from, for messages.

        Raises:
          UserError: They do not.
        """
        if BACKGROUND not in classes and classes[0] in self.categories.values():
            raise UserError(
                f"{source} starts with {classes[0]!r}, a category of {self.path}, and lacks a "
                f"class for pixels of no instance. Add {BACKGROUND!r} as the first class."
            )
        for name in self.categories.values():
            if name not in classes:
                raise unknown(f"category of {self.path} in {source}:", name, classes)

    def _category(self, annotation: Mapping[str, Any]) -> str:
        category = self._key(annotation, "category_id")
        if category not in self.categories:
            raise UserError(
                f"{self.path}: annotation {annotation.get('id')!r} has the category_id "
                f"{category!r}, which `categories` does not list. Add the category, or correct the "
                "annotation."
            )
        return self.categories[category]

    def _list(self, content: Mapping[str, Any], key: str) -> list:
        value = content.get(key)
        if not isinstance(value, list):
            raise UserError(
                f"{self.path}: the key {key!r} must be a list. Expected the format of COCO's "
                "instances_*.json, with images, annotations and categories."
            )
        return value

    def _key(self, entry: Any, key: str) -> Any:
        if not isinstance(entry, dict) or key not in entry:
            shown = sorted(entry)[:8] if isinstance(entry, dict) else entry
            raise UserError(f"{self.path}: the key {key!r} is missing in an entry with {shown}.")
        value = entry[key]
        if key.endswith("id") and type(value) not in (int, str):
            raise UserError(f"{self.path}: {key} {value!r} must be a whole number or text.")
        return value


def load(path: str) -> CocoMasks:
    """Returns the masks in a file; the last files stay in memory while they do not change."""
    changed = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
    return _load(os.path.abspath(path), changed)


@functools.lru_cache(maxsize=2)
def _load(path: str, changed: int) -> CocoMasks:
    del changed  # part of the key
    return CocoMasks(path)


def decode(segmentation: Any, shape: tuple[int, int]) -> np.ndarray:
    """Returns a segmentation as bool [H, W].

    Args:
      segmentation: Polygons [[x1, y1, x2, y2, …], …], or run lengths {'size': [H, W], 'counts': …},
        where the counts are a list, or text in COCO's compression.
      shape: Height and width of the image.

    Raises:
      ValueError: It is none of these, or does not fit the image.
    """
    if isinstance(segmentation, dict):
        return _decode_runs(segmentation, shape)
    if isinstance(segmentation, list):
        return _decode_polygons(segmentation, shape)
    raise ValueError("expected a list of polygons, or an object with size and counts")


def _decode_polygons(polygons: list, shape: tuple[int, int]) -> np.ndarray:
    from pycocotools import mask as coco

    height, width = shape
    result = np.zeros(shape, bool)
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(
            isinstance(x, int | float) and math.isfinite(x) for x in polygon
        )
        if not numbers or len(polygon) % 2:
            raise ValueError("a polygon must be a list of numbers x1, y1, x2, y2, …")
        if len(polygon) < 6:
            continue  # no area
        if max(map(abs, polygon)) > 4 * max(shape):
            raise ValueError(f"a polygon extends far beyond the image of {width}×{height} pixels")
        runs = coco.frPyObjects([[float(x) for x in polygon]], height, width)
        result |= coco.decode(runs)[..., 0].astype(bool)
    return result


def _decode_runs(segmentation: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if list(size or ()) != list(shape):
        raise ValueError(f"its size {size} differs from that of the image, {list(shape)}")
    if isinstance(counts, str):
        counts = _decompress(counts.encode())
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("counts must be text or a list of whole numbers")
    if sum(counts) != shape[0] * shape[1]:
        raise ValueError(
            f"its counts are those of {sum(counts)} pixels, but the image has {shape[0] * shape[1]}"
        )
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return inside.reshape(shape[::-1]).T  # column by column


def _decompress(text: bytes) -> list[int]:
    """Returns the counts in COCO's compression.

    A number consists of characters with 5 bits each, the lowest first, plus 48; bit 32 says that
    another one follows, and the highest of its own bits is the sign. From the fourth number on,
    each is the difference from the one before the previous.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = character - 48
        if not 0 <= code < 64:
            raise ValueError(f"the compressed counts contain {chr(character)!r}")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("the compressed counts are truncated")
    return counts
