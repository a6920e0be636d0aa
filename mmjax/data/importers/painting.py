"""Writes class maps as palette PNGs, for datasets whose masks are not image files."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmjax import files
from mmjax.errors import UserError
from mmjax.monitor.class_colors import class_colors


def write_mask(path: str, classes: np.ndarray, names: Sequence[str]) -> None:
    """Writes a class map as a PNG whose palette has the colors of the classes.

    Args:
      path: The file. Its directory is created.
      classes: uint8 [H, W].
      names: Class names by index.
    """
    image = Image.fromarray(classes)
    image.putpalette(class_colors(names).tobytes())
    with files.atomic_path(path) as partial:
        image.save(partial, "PNG")


def mask_path(directory: str, image: str) -> str:
    """Returns the path of the mask of an image, for `write_mask`.

    Args:
      directory: Directory of the masks.
      image: Path of the image, relative to the media directory.

    Raises:
      UserError: The path leads out of the media directory, so the mask would be elsewhere too.
    """
    if os.path.isabs(image) or os.path.normpath(image).split(os.sep)[0] == os.pardir:
        raise UserError(f"The image {image} is not below the media directory. Move or rename it.")
    return os.path.join(directory, os.path.splitext(image)[0] + ".png")
