"""Arranges images of different sizes in batches of few shapes, the same on every process.

Images are padded to multiples of a number of pixels, so that few shapes have to be compiled. A
batch contains only images with the same padded sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from mmjax.data.pipeline import mask_geometry

Mode = Literal["whole", "windows", "crop"]
Size = tuple[int, int]  # height, width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """How an image and its mask are placed in arrays.

    Attributes:
      scaled: Size of the whole image after scaling.
      start: Position of the array of the image in the scaled image.
      canvas: Size of this array.
      visible: Size of the part of this array that is scored, from its top left corner.
      truth_scaled: Size of the mask after scaling: the stored size, or `scaled`.
      truth_canvas: Size of the array of the mask.
      truth_visible: Size of the part of it that shows the same pixels as `visible`.
    """

    scaled: Size
    start: Size
    canvas: Size
    visible: Size
    truth_scaled: Size
    truth_canvas: Size
    truth_visible: Size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """How images are scaled and padded.

    Attributes:
      mode: 'whole' for whole images, 'windows' for windows of whole images, 'crop' for only their
        central crop.
      shorter_side: Length of the shorter side; 0 for the stored size.
      size: Side of a window or crop in pixels.
      multiple: Whole images are padded to multiples of this number of pixels.
    """

    mode: Mode
    shorter_side: int
    size: int
    multiple: int

    def place(self, stored: Size) -> Placement:
        """Returns how an image of a stored size is placed in its arrays."""
        size = np.array(stored, np.int32)
        scaled = mask_geometry.scaled_size(size, shorter_side=self.shorter_side).numpy()
        if self.mode == "crop":
            start = mask_geometry.center_start(scaled, self.size).numpy()
            canvas = (self.size, self.size)
            return Placement(
                scaled=_pair(scaled),
                start=_pair(start),
                canvas=canvas,
                visible=canvas,
                truth_scaled=_pair(scaled),
                truth_canvas=canvas,
                truth_visible=canvas,
            )
        least = self.size if self.mode == "windows" else 1
        return Placement(
            scaled=_pair(scaled),
            start=(0, 0),
            canvas=self._padded(np.maximum(scaled, least)),
            visible=_pair(scaled),
            truth_scaled=_pair(size),
            truth_canvas=self._padded(size),
            truth_visible=_pair(size),
        )

    def _padded(self, size: np.ndarray) -> Size:
        return _pair(-(-size // self.multiple) * self.multiple)


def _pair(values: Sequence[int]) -> Size:
    return int(values[0]), int(values[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Images with arrays of the same sizes.

    Attributes:
      records: Indices of the records; fewer than the batch size in the last batch of a shape.
      placements: How the images are placed, in the same order.
    """

    records: tuple[int, ...]
    placements: tuple[Placement, ...]


def arrange(sizes: np.ndarray, geometry: Geometry, batch_size: int) -> list[Batch]:
    """Returns the batches of all images, each image once.

    Args:
      sizes: Stored (height, width) of the images, int [N, 2]. Records with (0, 0) have no image
        and are left out.
      geometry: How they are placed.
      batch_size: Largest number of images in a batch.
    """
    placements = {size: geometry.place(size) for size in set(map(_pair, sizes)) if min(size) > 0}
    by_shape: dict[tuple, list[int]] = {}
    for record, size in enumerate(map(_pair, sizes)):
        if placement := placements.get(size):
            shape = (placement.canvas, placement.truth_canvas)
            by_shape.setdefault(shape, []).append(record)
    batches = []
    for _, records in sorted(by_shape.items()):
        for first in range(0, len(records), batch_size):
            chosen = tuple(records[first : first + batch_size])
            own = tuple(placements[_pair(sizes[record])] for record in chosen)
            batches.append(Batch(records=chosen, placements=own))
    return batches
