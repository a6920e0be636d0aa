"""How the file of a target becomes a map: the values that a head has to predict.

A target is read as one Pillow image per channel, resized together with its image, and then
converted: classes to int32 [H, W, 1] with -1 for ignored pixels, and all others to float32
[H, W, K] with NaN for ignored pixels.

With `paper`, the formats do what pyVTAB does. docs/end_tasks.md lists the differences.

Source: the datasets of pyVTAB (Kotar et al. 2021, arXiv 2103.14005).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from mmjax import registry
from mmjax.data.storage import image_decoding
from mmjax.data.storage.mask_files import read_map
from mmjax.errors import UserError

Read = Callable[[bytes, str], list[Image.Image]]
Convert = Callable[[np.ndarray, bool], np.ndarray]

CITYSCAPES_CLASSES = {
    label: index + 1
    for index, label in enumerate(
        (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
    )
}
_NUM_COCO_CLASSES = 201
_TASKONOMY_FAR, _TASKONOMY_UNKNOWN = 10_000, 65_535
# The statistics of ImageNet with which pyVTAB normalizes images.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetFormat:
    """How the file of a target becomes a map.

    Attributes:
      read: Function (content of the file, location for messages) -> one image per channel.
      convert: Function (stored values [H, W, K], paper) -> target, see the module docstring. It
        raises ValueError for values out of range.
      paper_filter: Filter with which `paper` resizes the target. Palette and 1-bit images, and all
        targets without `paper` or a filter, take the nearest pixel.
      is_flow: Whether the values are displacements in pixels, which are scaled with the image.
      from_image: Whether the target is the image itself, and the input an image with a hole.
    """

    convert: Convert
    read: Read | None = None
    paper_filter: Image.Resampling | None = None
    is_flow: bool = False
    from_image: bool = False


def find_format(name: str) -> TargetFormat:
    """Returns a format: a key of `FORMATS`, or `package.module:Name`.

    Raises:
      UserError: There is no such format.
    """
    found = registry.resolve("target_format of an end task", name, FORMATS)
    if not isinstance(found, TargetFormat):
        raise UserError(
            f"target_format={name}: expected an instance of "
            f"mmjax.data.end_tasks.targets.TargetFormat; got {type(found).__name__}."
        )
    return found


# --------------------------------------------------------------------------------------------------
# Reading.


def _read_gray(data: bytes, where: str) -> list[Image.Image]:
    with image_decoding.reading(where), image_decoding.opened(data, where) as image:
        return [image.convert("L")]


def _read_luminance(data: bytes, where: str) -> list[Image.Image]:
    """Returns the luminance of a color image in [0, 255], not rounded."""
    with image_decoding.reading(where), image_decoding.opened(data, where) as image:
        return [image.convert("RGB").convert("F")]


def _read_flow(data: bytes, where: str) -> list[Image.Image]:
    """Returns a flow in the format of KITTI as (x, y) in pixels; NaN where it is unknown."""
    if not data.startswith(image_decoding.PNG_START):
        raise UserError(f"{where} is not a PNG; flow is stored as a 16-bit PNG of 3 channels.")
    with image_decoding.reading(where):
        # Pillow reads only 8 bits of PNG files with several channels.
        with image_decoding.opened(data, where):
            depth, color = data[24], data[25]
        if (depth, color) != (16, 2):
            raise ValueError(
                f"it has {depth} bits per channel and color type {color}; expected a "
                "16-bit RGB PNG with (64 x + 2^15, 64 y + 2^15, valid)"
            )
        coded = tf.io.decode_png(data, 3, tf.uint16).numpy()
    flow = (coded[..., :2].astype(np.float32) - 2**15) / 64
    flow[coded[..., 2] == 0] = np.nan
    return [Image.fromarray(np.ascontiguousarray(flow[..., k])) for k in range(2)]


# --------------------------------------------------------------------------------------------------
# Conversion.


def _classes(count: int, *, ignored: int | None = None) -> Convert:
    """Returns a conversion of class indices; the class `ignored` becomes -1."""

    def convert(values: np.ndarray, paper: bool) -> np.ndarray:
        del paper
        _check_range(values, 0, count - 1)
        values = values.astype(np.int32)
        return values if ignored is None else np.where(values == ignored, -1, values)

    return convert


def _cityscapes(values: np.ndarray, paper: bool) -> np.ndarray:
    """Returns 19 classes from 1; 0 (void), which is ignored by default, for all other ids."""
    table = np.full(256, 0 if paper else -1, np.int32)
    table[list(CITYSCAPES_CLASSES)] = list(CITYSCAPES_CLASSES.values())
    _check_range(values, -1, 255)
    return table[np.asarray(values, np.int64) % 256]


def _trimap(values: np.ndarray, paper: bool) -> np.ndarray:
    """Returns 1 for the object, 0 for the background, NaN for the border between them.

    pyVTAB returns 1 for background and border, and 0 for the object.
    """
    _check_range(values, 1, 3)
    if paper:
        return (values != 1).astype(np.float32)
    return np.array([np.nan, 1, 0, np.nan], np.float32)[values]


def _nonzero(values: np.ndarray, paper: bool) -> np.ndarray:
    del paper
    return (values != 0).astype(np.float32)


def _depth(values: np.ndarray, paper: bool) -> np.ndarray:
    """Returns the stored depth; NaN where it is not positive."""
    values = values.astype(np.float32)
    if paper:
        return values
    return np.where(np.isfinite(values) & (values > 0), values, np.float32(np.nan))


def _thor_depth(values: np.ndarray, paper: bool) -> np.ndarray:
    """Returns 8-bit depth in [-2, 2]."""
    del paper
    return ((values.astype(np.float32) / 255 - 0.5) / 0.25).astype(np.float32)


def _taskonomy_depth(values: np.ndarray, paper: bool) -> np.ndarray:
    """Returns depth in [0, 1], in units of 10000/512 m; NaN where it is unknown.

    In pyVTAB, the unit is the largest value of each image, and the smallest one is subtracted.
    """
    clipped = np.clip(values, None, _TASKONOMY_FAR).astype(np.float32)
    if paper:
        scaled = clipped / max(float(clipped.max()), 1e-12)
        return scaled - scaled.min()
    known = (values > 0) & (values < _TASKONOMY_UNKNOWN)
    return np.where(known, clipped / _TASKONOMY_FAR, np.float32(np.nan))


def _taskonomy_edges(values: np.ndarray, paper: bool) -> np.ndarray:
    """Returns the strength of edges in [0, 1], as a fraction of 16 bits.

    In pyVTAB, the smallest value of each image becomes 0, and the largest one 1.
    """
    values = values.astype(np.float32)
    if not paper:
        return values / 65_535
    shifted = values - values.min()
    return shifted / max(float(shifted.max()), 1e-12)


def _flow_luminance(values: np.ndarray, paper: bool) -> np.ndarray:
    """Returns luminance in [0, 1]; NaN where it is 0, which means that the flow is unknown."""
    del paper
    return np.where(values == 0, np.float32(np.nan), values.astype(np.float32) / 255)


def _unchanged(values: np.ndarray, paper: bool) -> np.ndarray:
    del paper
    return values.astype(np.float32)


def _normalized(values: np.ndarray, paper: bool) -> np.ndarray:
    """Returns an image normalized as pyVTAB's inputs."""
    del paper
    return ((values.astype(np.float32) / 255 - MEAN) / STD).astype(np.float32)


def _check_range(values: np.ndarray, low: int, high: int) -> None:
    if not values.size:
        return
    least, most = values.min(), values.max()
    if least < low or most > high:
        outside = least if least < low else most
        raise ValueError(f"it contains the value {outside}; expected values from {low} to {high}")


_DEFAULT = Image.Resampling.BICUBIC  # filter of Pillow's `Image.resize`

FORMATS: dict[str, TargetFormat] = {
    "cityscapes": TargetFormat(read=read_map, convert=_cityscapes),
    "egohands": TargetFormat(read=read_map, convert=_classes(5)),
    "coco": TargetFormat(read=read_map, convert=_classes(_NUM_COCO_CLASSES, ignored=0)),
    "trimap": TargetFormat(read=read_map, convert=_trimap, paper_filter=_DEFAULT),
    "nonzero": TargetFormat(read=read_map, convert=_nonzero, paper_filter=_DEFAULT),
    "depth": TargetFormat(read=read_map, convert=_depth, paper_filter=_DEFAULT),
    "thor_depth": TargetFormat(
        read=_read_gray, convert=_thor_depth, paper_filter=Image.Resampling.BILINEAR
    ),
    "taskonomy_depth": TargetFormat(read=read_map, convert=_taskonomy_depth, paper_filter=_DEFAULT),
    "taskonomy_edges": TargetFormat(read=read_map, convert=_taskonomy_edges, paper_filter=_DEFAULT),
    "flow_luminance": TargetFormat(
        read=_read_luminance, convert=_flow_luminance, paper_filter=_DEFAULT
    ),
    "flow": TargetFormat(read=_read_flow, convert=_unchanged, is_flow=True),
    "inpainting": TargetFormat(convert=_normalized, from_image=True),
}


def stacked(channels: Sequence[Image.Image]) -> np.ndarray:
    """Returns the stored values of a target, [H, W, K]."""
    arrays = [np.asarray(channel) for channel in channels]
    if arrays[0].dtype == bool:
        arrays = [array.astype(np.uint8) for array in arrays]
    return np.stack(arrays, -1)
