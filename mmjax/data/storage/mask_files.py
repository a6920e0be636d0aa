"""Segmentation masks: image files whose pixels are classes, and their conversion to class maps.

A class map is uint8 [H, W]. Its values are class indices, and `IGNORE` for pixels without a class.
Records store class maps as grayscale PNGs; see `mmjax.data.storage.schema.encode_mask`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmjax.data.storage.image_decoding import PNG_START, opened, reading
from mmjax.errors import UserError

IGNORE = 255  # value of pixels without a class
MAX_CLASSES = 255

_MAX_LISTED = 8  # values in a message
_MAX_VALUE = 65_535  # of a mask file


def read_map(data: bytes, where: str) -> list[Image.Image]:
    """Returns a file with one channel as an image of 8-bit, 32-bit or floating-point pixels.

    Args:
      data: Content of the file, of any format that Pillow reads. Palette images keep their indices.
      where: Location of the file, for messages.

    Raises:
      UserError: The file cannot be read, or has several channels.
    """
    with reading(where), opened(data, where) as image:
        image.load()
        if image.mode.startswith("I;16"):
            image = Image.fromarray(np.asarray(image).astype(np.int32))
        if image.mode not in ("1", "L", "P", "I", "F"):
            raise ValueError(
                f"it has pixels of type {image.mode}; a target needs one channel, such as an 8-bit "
                "or 16-bit grayscale PNG, or a palette of class indices"
            )
        return [image]


def read_values(path: str | os.PathLike) -> np.ndarray:
    """Returns the values of a mask file: indices of a palette image, or gray levels.

    Images with three equal channels count as gray. Gray levels of fewer than 8 bits are not scaled.

    Args:
      path: A PNG, or another lossless file that Pillow reads.

    Returns:
      int32 [H, W].

    Raises:
      UserError: The file is missing, damaged, a JPEG or of several different channels, or its
        pixels are not whole numbers from 0 to 65535.
    """
    where = os.fspath(path)
    with reading(where):
        with open(path, "rb") as file:
            data = file.read()
        if data.startswith(b"\xff\xd8"):
            raise ValueError(
                "it is a JPEG, whose compression changes values; masks need a lossless format, "
                "such as PNG"
            )
        with opened(data, where) as image:
            image.load()
            mode = image.mode
            bands = image.getbands()
            values = np.asarray(image)
        if mode in ("LA", "RGB", "RGBA"):
            values = _gray(values, bands)
        elif mode not in ("1", "L", "P") and not mode.startswith("I"):
            raise ValueError(f"it has pixels of type {mode}; a mask needs one class per pixel")
        values = values.astype(np.int32)
        values //= _scale(data, mode)
        if values.size and (values.min() < 0 or values.max() > _MAX_VALUE):
            raise ValueError(f"it has the values {values.min()} to {values.max()}")
        return values


def _gray(pixels: np.ndarray, bands: Sequence[str]) -> np.ndarray:
    """Returns the first of several channels, if the others do not differ.

    Raises:
      ValueError: They differ, or pixels are transparent.
    """
    colors = pixels
    if bands[-1] == "A":
        colors = pixels[..., :-1]
        if (pixels[..., -1] != 255).any():
            raise ValueError("it has transparent pixels; a mask needs one class per pixel")
    different = (colors != colors[..., :1]).any(-1)
    if different.any():
        example = tuple(int(value) for value in colors[different][0])
        raise ValueError(
            f"it has colored pixels, for example {example}; a mask needs the class index of each "
            "pixel, as gray level or palette index. Convert colors to class indices first"
        )
    return colors[..., 0]


def _scale(data: bytes, mode: str) -> int:
    """Returns by what Pillow multiplies the gray levels of a PNG with 2 or 4 bits per pixel."""
    if mode == "L" and data.startswith(PNG_START) and data[25] == 0:  # color type gray
        return {2: 85, 4: 17}.get(data[24], 1)
    return 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFormat:
    """What the values of mask files mean.

    Attributes:
      classes: Class names by index; () if they are unknown.
      values: Value of each class in mask files; () if it is the class index.
      ignore: Values of pixels without a class.

    Raises:
      UserError: Two classes have one value, a class is ignored, or the numbers of classes and
        values differ.
    """

    classes: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    ignore: tuple[int, ...] = (IGNORE,)

    def __post_init__(self) -> None:
        count = len(self.values or self.classes)
        if count > MAX_CLASSES:
            raise UserError(f"Masks can have up to {MAX_CLASSES} classes; got {count}.")
        if self.values and self.classes and len(self.values) != len(self.classes):
            raise UserError(
                f"--mask-values lists {len(self.values)} values, but there are "
                f"{len(self.classes)} classes ({', '.join(self.classes[:_MAX_LISTED])}). List one "
                "value per class, in the same order."
            )
        if len(set(self.values)) < len(self.values):
            raise UserError(f"--mask-values {_listed(self.values)}: a value occurs twice.")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise UserError(f"The mask class {twice!r} is listed twice. Rename or remove one.")
        numbers = self.values or range(len(self.classes))
        if both := sorted(set(numbers) & set(self.ignore)):
            raise UserError(
                f"The value {both[0]} cannot be both a class and ignored. Change --mask-values or "
                "--mask-ignore."
            )
        if outside := [v for v in (*self.values, *self.ignore) if not 0 <= v <= _MAX_VALUE]:
            raise UserError(f"Values of masks must be from 0 to {_MAX_VALUE}; got {outside[0]}.")

    def convert(self, values: np.ndarray, where: str) -> np.ndarray:
        """Returns the class map of the values of a mask file.

        Args:
          values: int [H, W] in [0, 65535].
          where: Location of the mask, for messages.

        Raises:
          UserError: A value is neither a class nor ignored. The message lists these values and
            how many pixels have them.
        """
        table = np.full(_MAX_VALUE + 1, -1, np.int32)
        if self.values:
            table[list(self.values)] = np.arange(len(self.values))
        else:
            count = len(self.classes) or MAX_CLASSES
            table[:count] = np.arange(count)
        table[list(self.ignore)] = IGNORE
        classes = table[values]
        if (classes < 0).any():
            raise UserError(f"{where} {self._unknown(values[classes < 0])}")
        return classes.astype(np.uint8)

    def _unknown(self, values: np.ndarray) -> str:
        counts = np.bincount(values)
        found = np.flatnonzero(counts)
        shown = [f"{v} ({counts[v]} pixels)" for v in found[:_MAX_LISTED]]
        more = f" and {len(found) - _MAX_LISTED} more values" if len(found) > _MAX_LISTED else ""
        if self.values:
            valid = _listed(self.values)
        else:
            valid = f"0 to {(len(self.classes) or MAX_CLASSES) - 1}"
        names = f" for {len(self.classes)} classes" if self.classes else ""
        return (
            f"has unknown values: {', '.join(shown)}{more}. Expected {valid}{names}, or "
            f"{_listed(self.ignore) or 'nothing'} for ignored pixels. List the values of the "
            "classes with --mask-values, and values to ignore with --mask-ignore."
        )


def _listed(values: Sequence[int]) -> str:
    return ",".join(map(str, values))


def resize(classes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a class map at (height, width), each pixel from the nearest one (pixel centers)."""
    rows, columns = (
        ((2 * np.arange(new) + 1) * old // (2 * new))
        for new, old in zip(size, classes.shape, strict=True)
    )
    return classes[rows[:, None], columns]
