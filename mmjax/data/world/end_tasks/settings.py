"""Settings of stand-ins, and how their images are written."""

from __future__ import annotations

import dataclasses
import os
import zlib

import numpy as np
from PIL import Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of stand-ins.

    Attributes:
      size: Height of the images in pixels.
      train: Number of training examples.
      test: Number of test examples.
      seed: Seed of everything that is random.
    """

    size: int
    train: int
    test: int
    seed: int

    def count(self, split: str) -> int:
        """Returns the number of examples of the split 'train' or 'test'."""
        return self.train if split == "train" else self.test

    def rng(self, name: str, index: int) -> np.random.Generator:
        """Returns the generator of example `index` of a split of a dataset."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode()), index])


def save(path: str, pixels: np.ndarray) -> None:
    """Writes an image in the format of its suffix, and creates its directory."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    image = Image.fromarray(pixels)
    if path.endswith(".png"):
        image.save(path, "PNG", compress_level=1)
    elif path.endswith(".tiff"):
        image.save(path, "TIFF")
    else:
        image.save(path, "JPEG", quality=92, subsampling=0)
