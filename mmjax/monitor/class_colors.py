"""Colors of the classes of segmentation masks, for figures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np

IGNORED = (224, 224, 192)  # of pixels without a class, as in PASCAL VOC
_NUM_VOC = 21  # above this number, the colors of PASCAL VOC are hard to tell apart
_BACKGROUND = ("background", "unlabeled", "other", "void", "0")
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
_GOLDEN = 0.61803398875  # steps of hue that spread any number of hues evenly


def voc_palette() -> np.ndarray:
    """Returns the colors of PASCAL VOC, uint8 [256, 3].

    The bits of an index are dealt to red, green and blue in turn, from the highest bit of a color
    down. Index 255, which PASCAL VOC uses for pixels without a class, is (224, 224, 192).
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= ((index >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


def class_colors(names: Sequence[str]) -> np.ndarray:
    """Returns a color for each value of a class map, uint8 [256, 3].

    Up to 21 classes have the colors of PASCAL VOC. Of more classes, a background is black, and the
    others have hues that differ from those of their neighbors.

    Args:
      names: Class names by index.
    """
    palette = voc_palette()
    if len(names) > _NUM_VOC:
        for index, name in enumerate(names):
            hue, level = index * _GOLDEN % 1, index % 3
            color = colorsys.hsv_to_rgb(hue, (0.55, 0.95, 0.8)[level], (1.0, 0.85, 0.6)[level])
            palette[index] = np.round(np.multiply(color, 255))
            if index == 0 and name.lower() in _BACKGROUND:
                palette[index] = 0
    palette[255] = IGNORED
    return palette


def blend(image: np.ndarray, classes: np.ndarray, colors: np.ndarray, alpha: float) -> np.ndarray:
    """Returns an image in gray with the colors of its classes on top, uint8 [H, W, 3].

    The image is gray so that only its classes determine hues.

    Args:
      image: uint8 [H, W, 3].
      classes: uint8 [H, W].
      colors: uint8 [256, 3]; see `class_colors`.
      alpha: Opacity of the colors, from 0 to 1.
    """
    gray = image.astype(np.float32) @ np.float32(_LUMINANCE)
    mixed = (1 - alpha) * gray[..., None] + alpha * colors[classes].astype(np.float32)
    return np.round(mixed).astype(np.uint8)
