"""Measures how a predicted mask differs from the true one: what, where and how much.

Two masks give a list of deviations. Small ones are left out: pixels within a few pixels of the true
boundary only count for its quality, and connected regions below a minimum area not at all. Void
pixels never count.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from scipy import ndimage

Type = Literal["missed", "hallucinated", "over_extended", "under_extended", "shifted", "coarse"]

_BAND = 0.015  # width of the band along the true boundary, as a share of the side
_MIN_REGION = 0.0005  # area of the smallest connected region that counts, as a share of the image
_MIN_EXTENSION = 0.03  # smallest over- or under-extension, as a share of the true area
_MATCHED = 0.1  # a region is missed or hallucinated if less of it is in the other mask
_OVERLAP = 0.05  # smallest IoU of a shifted mask; without overlap it is missed and hallucinated
_COARSE = 0.2  # share of wrong pixels in the band above which the boundary is coarse
_EIGHT = np.ones((3, 3), bool)  # connectivity
_SIDES = ("left", "right", "top", "bottom")


@dataclasses.dataclass(frozen=True)
class Deviation:
    """One way in which the prediction is wrong.

    Attributes:
      type: What is wrong.
      amount: How much: a share of the true area (missed, over- and under-extended), of the image
        (hallucinated), of the diameter of the true mask (shifted), or of the pixels next to the
        boundary (coarse).
      where: Position in the image, such as 'top left' or 'center'; of a shift, its direction.
      sides: Sides of the object, such as ('left', 'top'); all four for an even extension.
      count: Number of connected regions (missed, hallucinated).
      whole: Whether the class has no correct pixel at all.
    """

    type: Type
    amount: float
    where: str
    sides: tuple[str, ...] = ()
    count: int = 1
    whole: bool = False


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
      iou: Intersection over union without void pixels; 1 if both masks are empty.
      deviations: The deviations, the most severe first.
      where: Position of the true mask in the image; of the prediction if the class is absent.
      boundary_error: Share of wrong pixels next to the true boundary; None if it is not visible.
      absent: Whether the true mask is empty.
    """

    iou: float
    deviations: tuple[Deviation, ...]
    where: str
    boundary_error: float | None
    absent: bool


def compare(
    truth: np.ndarray, prediction: np.ndarray, void: np.ndarray | None = None
) -> Comparison:
    """Returns how a prediction differs from the truth.

    Args:
      truth: True mask, bool [S, S].
      prediction: Predicted mask, bool [S, S].
      void: Pixels to leave out, bool [S, S].
    """
    valid = np.ones_like(truth) if void is None else ~void
    truth, prediction = truth & valid, prediction & valid
    where = position(truth if truth.any() else prediction)
    absent = not truth.any()
    if absent or not prediction.any():
        deviations = _whole(truth, prediction, where)
        return Comparison(float(not deviations), deviations, where, None, absent)
    iou = _iou(truth, prediction)
    deviations, boundary_error = [], None
    aligned = prediction
    if (shift := _shift(truth, prediction, iou)) is not None:
        offset, deviation = shift
        deviations.append(deviation)
        aligned = _move(prediction, offset) & valid
    missed, kept_truth = _unmatched("missed", truth, aligned, truth.sum())
    extra, kept_prediction = _unmatched("hallucinated", aligned, truth, truth.size)
    deviations += [*missed, *extra]
    if kept_truth.any() and kept_prediction.any():
        extensions, extended = _extensions(kept_truth, kept_prediction, valid)
        deviations += extensions
        # An extension moves the boundary; that does not make it coarse.
        extended = ndimage.binary_dilation(extended, _EIGHT, 2 * _band(truth))
        boundary_error = _boundary_error(kept_truth, kept_prediction, valid & ~extended)
        if boundary_error is not None and boundary_error > _COARSE:
            deviations.append(Deviation("coarse", boundary_error, position(kept_truth)))
    # A coarse boundary weighs less than a wrong area of the same share.
    severity = {id(d): d.amount * (0.2 if d.type == "coarse" else 1) for d in deviations}
    ordered = sorted(deviations, key=lambda d: -severity[id(d)])
    return Comparison(iou, tuple(ordered), where, boundary_error, absent)


def position(mask: np.ndarray) -> str:
    """Returns where a mask is in the image: a cell of a 3 x 3 grid, such as 'top left'."""
    if not mask.any():
        return "center"
    row, column = (c / n for c, n in zip(_centroid(mask), mask.shape, strict=True))
    vertical = "top" if row < 1 / 3 else "bottom" if row > 2 / 3 else ""
    horizontal = "left" if column < 1 / 3 else "right" if column > 2 / 3 else ""
    return f"{vertical} {horizontal}".strip() or "center"


def _centroid(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    return float(rows.mean()) + 0.5, float(columns.mean()) + 0.5


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.count_nonzero(a & b) / np.count_nonzero(a | b))


def _whole(truth: np.ndarray, prediction: np.ndarray, where: str) -> tuple[Deviation, ...]:
    """Returns the deviation if at most one of the masks has pixels."""
    count = len(_regions(truth | prediction)) or 1
    if truth.any():
        return (Deviation("missed", 1.0, where, count=count, whole=True),)
    if prediction.any():
        share = float(prediction.mean())
        return (Deviation("hallucinated", share, where, count=count, whole=True),)
    return ()


def _regions(mask: np.ndarray) -> list[np.ndarray]:
    """Returns the connected regions that are large enough to count, the largest first."""
    labels, count = ndimage.label(mask, _EIGHT)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    minimum = max(4, _MIN_REGION * mask.size)
    order = sorted(range(count), key=lambda index: -areas[index])
    return [labels == index + 1 for index in order if areas[index] >= minimum]


def _unmatched(
    type_: Type, mask: np.ndarray, other: np.ndarray, total: int
) -> tuple[list[Deviation], np.ndarray]:
    """Returns the deviation of regions of `mask` that `other` lacks, and `mask` without them."""
    other = ndimage.binary_dilation(other, _EIGHT, _band(mask))  # fragments along the boundary
    regions = [
        region
        for region in _regions(mask)
        if np.count_nonzero(region & other) < _MATCHED * np.count_nonzero(region)
    ]
    if not regions:
        return [], mask
    union = np.any(regions, axis=0)
    share = float(np.count_nonzero(union) / total)
    deviation = Deviation(type_, share, position(regions[0]), count=len(regions))
    return [deviation], mask & ~union


def _shift(
    truth: np.ndarray, prediction: np.ndarray, iou: float
) -> tuple[tuple[int, int], Deviation] | None:
    """Returns the offset (rows, columns) that aligns the prediction if it is only displaced."""
    from_row, from_column = _centroid(truth)
    to_row, to_column = _centroid(prediction)
    rows, columns = to_row - from_row, to_column - from_column
    offset = (-round(rows), -round(columns))
    if offset == (0, 0) or iou < _OVERLAP:
        return None
    aligned = _move(prediction, offset)
    if not aligned.any() or (better := _iou(truth, aligned)) < 0.6 or better - iou < 0.2:
        return None
    distance = float(np.hypot(rows, columns))
    diameter = 2 * float(np.sqrt(np.count_nonzero(truth) / np.pi))
    vertical = ("top" if rows < 0 else "bottom") if abs(rows) > 0.4 * distance else ""
    horizontal = ("left" if columns < 0 else "right") if abs(columns) > 0.4 * distance else ""
    direction = f"{vertical} {horizontal}".strip()
    return offset, Deviation("shifted", distance / diameter, direction)


def _move(mask: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    return ndimage.shift(mask.astype(np.uint8), offset, order=0).astype(bool)


def _extensions(
    truth: np.ndarray, prediction: np.ndarray, valid: np.ndarray
) -> tuple[list[Deviation], np.ndarray]:
    """Returns where the prediction exceeds the truth or falls short of it, and these pixels.

    Pixels within the band along the boundary do not count.
    """
    result, extended = [], np.zeros_like(truth)
    for type_, larger, smaller in (
        ("over_extended", prediction, truth),
        ("under_extended", truth, prediction),
    ):
        distance, nearest = ndimage.distance_transform_edt(~smaller, return_indices=True)
        regions = _regions(larger & (distance > _band(truth)) & valid)
        region = np.any(regions, axis=0) if regions else np.zeros_like(truth)
        amount = float(np.count_nonzero(region) / np.count_nonzero(truth))
        if amount >= _MIN_EXTENSION:
            sides = _sides(region, nearest)
            result.append(Deviation(type_, amount, position(region), sides))
            extended |= region
    return result, extended


def _band(mask: np.ndarray) -> int:
    return max(1, round(_BAND * mask.shape[0]))


def _sides(region: np.ndarray, nearest: np.ndarray) -> tuple[str, ...]:
    """Returns the sides on which a region is, seen from the nearest pixels of the smaller mask."""
    rows, columns = np.nonzero(region)
    up, across = rows - nearest[0][region], columns - nearest[1][region]
    vertical = np.abs(up) > np.abs(across)
    masks = (~vertical & (across < 0), ~vertical & (across > 0), vertical & (up < 0))
    shares = [float(mask.mean()) for mask in masks]
    shares.append(1 - sum(shares))
    if min(shares) >= 0.15:
        return _SIDES
    chosen = [index for index in np.argsort(shares)[::-1] if shares[index] >= 0.25]
    return tuple(_SIDES[index] for index in chosen[:2])


def _boundary_error(truth: np.ndarray, prediction: np.ndarray, valid: np.ndarray) -> float | None:
    """Returns the share of wrong pixels among valid ones next to the true boundary."""
    width = _band(truth)
    outer = ndimage.binary_dilation(truth, _EIGHT, width)
    inner = ndimage.binary_erosion(truth, _EIGHT, width, border_value=1)
    ring = outer & ~inner & valid
    if np.count_nonzero(ring) < 8:
        return None
    return float(np.mean((truth != prediction)[ring]))
