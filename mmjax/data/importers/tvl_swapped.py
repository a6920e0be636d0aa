"""Finds recordings of TVL whose folders of touch and of vision are swapped."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmjax.data.importers.tvl_files import Pair, Tree
from mmjax.data.storage import image_files
from mmjax.errors import UserError

_LOOKS = 5  # pairs of a recording that are looked at
_DIGIT = (240, 320)  # width and height of a DIGIT sensor's images
_SIDE = 16  # pixels to which images are reduced before they are compared
_CLEAR = 1.5  # by how much one of two figures must exceed the other to tell


def find_swapped(pairs: Sequence[Pair], tree: Tree) -> tuple[list[str], list[str]]:
    """(recordings whose folders are swapped, recordings that do not tell), by name.

    A DIGIT's images are 240 wide and 320 high, a camera's are not, or are at least not upright.
    Where sizes do not tell, contents do: touch resembles the sensor untouched, and changes less
    from image to image than what a moving camera sees.

    Args:
      pairs: of any recordings; those whose images are missing tell nothing.
      tree: what exists.
    """
    recordings: dict[str, list[Pair]] = {}
    for pair in pairs:
        recordings.setdefault(pair.recording, []).append(pair)
    swapped, unclear = [], []
    for name, found in sorted(recordings.items()):
        there = [pair for pair in found if tree.has(pair.vision) and tree.has(pair.touch)]
        numbers = np.unique(np.linspace(0, len(there) - 1, _LOOKS).astype(int)) if there else ()
        paths = [(tree.path(there[k].vision), tree.path(there[k].touch)) for k in numbers]
        if not paths:
            continue
        try:
            told = sum(_by_size(*map(image_files.image_size, both)) for both in paths)
            told = told or _by_contents(paths, tree.path(f"{found[0].subset}/digit_background.png"))
        except UserError:
            continue  # an image that cannot be read is reported when its row is
        if told < 0:
            swapped.append(name)
        elif told == 0:
            unclear.append(name)
    return swapped, unclear


def _by_size(vision: tuple[int, int], touch: tuple[int, int]) -> int:
    """1 if the sizes are those of the names, -1 if they are swapped, 0 if they do not tell."""
    for is_touch in (lambda size: size == _DIGIT, lambda size: size[0] < size[1]):
        if is_touch(vision) != is_touch(touch):
            return 1 if is_touch(touch) else -1
    return 0


def _by_contents(paths: Sequence[tuple[str, str]], background: str) -> int:
    """As `_by_size`, from what a few images show."""
    vision, touch = (np.stack([_small(path) for path in side]) for side in zip(*paths, strict=True))
    if os.path.exists(background):
        empty = _small(background)
        figures = [np.abs(side - empty).mean() for side in (vision, touch)]
    else:
        figures = [side.std(axis=0).mean() for side in (vision, touch)]
    if max(figures) <= _CLEAR * min(figures):
        return 0
    return 1 if figures[1] < figures[0] else -1


def _small(path: str) -> np.ndarray:
    """float32 [16, 16, 3] of an image."""
    image = Image.fromarray(image_files.read_image(path))
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
