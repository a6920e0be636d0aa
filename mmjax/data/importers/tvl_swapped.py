"""Finds recordings of TVL with swapped touch and vision directories."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmjax.data.importers.tvl_files import Pair, Tree
from mmjax.data.storage import image_files
from mmjax.errors import UserError

_NUM_PAIRS = 5  # pairs of a recording that are compared
_DIGIT_SIZE = (240, 320)  # width and height of the images of a DIGIT sensor
_SIDE = 16  # side in pixels to which images are reduced before they are compared
_MIN_RATIO = 1.5  # between the scores of the two directories, for a clear result


def find_swapped(pairs: Sequence[Pair], tree: Tree) -> tuple[list[str], list[str]]:
    """Returns the swapped recordings and the ambiguous ones, each in alphabetical order.

    Images of a DIGIT sensor are 240 pixels wide and 320 high. Camera images have other sizes, or
    are at least not upright. If sizes are ambiguous, contents are compared: touch images resemble
    the background, and vary less within a recording than the images of a moving camera.

    Args:
      pairs: Pairs of any recordings. Pairs with missing images are ignored.
      tree: The files of TVL.
    """
    recordings: dict[str, list[Pair]] = {}
    for pair in pairs:
        recordings.setdefault(pair.recording, []).append(pair)
    swapped, ambiguous = [], []
    for name, members in sorted(recordings.items()):
        existing = [pair for pair in members if tree.has(pair.vision) and tree.has(pair.touch)]
        if not existing:
            continue
        indices = np.unique(np.linspace(0, len(existing) - 1, _NUM_PAIRS).astype(int))
        paths = [(tree.path(existing[k].vision), tree.path(existing[k].touch)) for k in indices]
        background = tree.path(f"{members[0].subset}/digit_background.png")
        try:
            score = sum(_compare_sizes(*map(image_files.image_size, pair)) for pair in paths)
            score = score or _compare_contents(paths, background)
        except UserError:
            continue  # unreadable images are reported with their examples
        if score < 0:
            swapped.append(name)
        elif score == 0:
            ambiguous.append(name)
    return swapped, ambiguous


def _compare_sizes(vision: tuple[int, int], touch: tuple[int, int]) -> int:
    """Returns 1 if sizes show that the names are correct, -1 if swapped, 0 if ambiguous."""
    for is_touch in (lambda size: size == _DIGIT_SIZE, lambda size: size[0] < size[1]):
        if is_touch(vision) != is_touch(touch):
            return 1 if is_touch(touch) else -1
    return 0


def _compare_contents(paths: Sequence[tuple[str, str]], background: str) -> int:
    """Returns the same as `_compare_sizes`, based on the contents of a few images."""
    vision, touch = (
        np.stack([_thumbnail(path) for path in side]) for side in zip(*paths, strict=True)
    )
    if os.path.exists(background):
        reference = _thumbnail(background)
        scores = [np.abs(side - reference).mean() for side in (vision, touch)]
    else:
        scores = [side.std(axis=0).mean() for side in (vision, touch)]
    if max(scores) <= _MIN_RATIO * min(scores):
        return 0
    return 1 if scores[1] < scores[0] else -1


def _thumbnail(path: str) -> np.ndarray:
    """Returns an image as float32 [16, 16, 3]."""
    image = Image.fromarray(image_files.read_image(path))
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
