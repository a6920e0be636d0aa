"""Single images: the sections `data.image`, `data.touch` and `data.reference`, and their functions.

An image is decoded, cropped to the region of interest, made square, resized and rotated. It stays
uint8 until it is on the device. `prepare` does the same to one image of a user as evaluation does.

Source: the cropping, padding, rotation and resizing of TVL's published code (Fu et al. 2024, A
Touch, Vision, and Language Dataset for Multimodal Alignment, arXiv 2402.13232).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline import crops
from mmjax.data.pipeline.common import Context, check_positive, encoded_parser, random_below
from mmjax.data.pipeline.phases import Features, Function, Pipeline, seed_of
from mmjax.data.pipeline.precomputed_features import add_precomputed
from mmjax.data.storage import schema
from mmjax.data.storage.image_files import read_image
from mmjax.errors import UserError

RECORDING = "recording"  # `data.touch.background`: each record has its own background


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ImageOptions:
    """Options of all single images; see `Image`."""

    size: int = 224
    square: Literal["crop", "crop_resized", "pad"] = "crop"
    quarter_turns: int = 0
    antialias: bool = True
    resize: Literal["bilinear", "bicubic"] = "bilinear"
    features: str | tuple[str, ...] = ""

    SECTION: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_positive(self.SECTION, self, "size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image(_ImageOptions):
    """The section `data.image`: one frame of a record.

    Attributes:
      size: Height and width in pixels.
      roi: Whether to crop to the region of interest of the record (`schema.ROI`), if it has one.
      jitter: For training, the largest random shift of this region as a fraction of its shorter
        side: downward by up to this, sideways by up to half of it, within the stored image. TVL's
        randomized crop is 0.05.
      square: How to make the region square. 'crop' takes its center; 'pad' adds a black margin;
        'crop_resized' takes the center after the shorter side was resized to `size`, as PyTorch's
        Resize and CenterCrop. It differs from 'crop' by at most half a pixel; use it to reproduce
        published results.
      quarter_turns: Number of counter-clockwise rotations by 90°.
      antialias: Whether to resize as PIL does; otherwise as PyTorch resizes tensors.
      resize: Interpolation.
      features: Directories of `mmjax.data.pipeline.precomputed_features`, one per source. In
        training, these features of the frozen tower replace the images.
      frame: Index of the frame in the record; negative indices count from the end. None samples one
        in training and takes the middle one in evaluation.
      crops: For training, the views of an image: for each the range (low, high) of its fraction of
        the region. A view is a crop of random position, area and shape, resized, as torchvision's
        RandomResizedCrop. `square` then applies only to evaluation.
    """

    roi: bool = True
    jitter: float = 0.0
    frame: int | None = None
    crops: tuple[tuple[float, ...], ...] = ()

    SECTION: ClassVar[str] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.jitter < 1:
            raise UserError(
                f"data.image.jitter={self.jitter} must be a fraction of the image's side, at least "
                "0 and less than 1."
            )
        for index, area in enumerate(self.crops):
            if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
                raise UserError(
                    f"data.image.crops[{index}]={area} must be (low, high) with "
                    "0 < low <= high <= 1: fractions of the image's area."
                )
        if self.crops and self.jitter:
            raise UserError(
                f"data.image.jitter={self.jitter} cannot be combined with data.image.crops, which "
                "are at random positions already. Set data.image.jitter=0."
            )
        if self.crops and self.features:
            raise UserError(
                "data.image.features replaces the images that data.image.crops would crop. Set "
                "data.image.features='' or data.image.crops=()."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Touch(_ImageOptions):
    """The section `data.touch`: one touch image of a record.

    Attributes:
      size, square, quarter_turns, antialias, resize, features: See `Image`. TVL uses square='pad'
        and quarter_turns=1.
      background: Image of the sensor without contact, which becomes the batch field
        `touch_background` in the same shape: '' for none, 'recording' for that of each record, or
        one image file for all records.
    """

    background: str = ""

    SECTION: ClassVar[str] = "touch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference(_ImageOptions):
    """The section `data.reference`: another frame of the record that `image` shows.

    For example, two frames may show the true and the predicted mask of an image.

    Attributes:
      size, square, quarter_turns, antialias, resize, features, roi: See `Image`.
      frame: Index of the frame; negative indices count from the end.
    """

    roi: bool = True
    frame: int = 0

    SECTION: ClassVar[str] = "reference"


_KEYS = {"image": schema.FRAMES, "reference": schema.FRAMES, "touch": schema.TOUCH}


def add_image(pipeline: Pipeline, options: _ImageOptions, context: Context) -> None:
    """Adds the batch fields of `image`, `reference` or `touch`.

    Fields: the image, uint8 [H, W, 3] ([1, H, W, 3] in evaluation, [V, H, W, 3] in training with
    `crops`), or float32 [D] with precomputed features; its mask [], and `touch_background`.

    Functions: the name of the section in the phases parse, sample, decode and preprocess, and
    'touch_background' in all of these but sample. Unless the options name a frame, training
    samples one of the record's images, and evaluation takes the middle one.
    """
    name = options.SECTION
    key, encoded = _KEYS[name][0], f"_{name}"
    pipeline.add("parse", name, encoded_parser(pipeline, key, encoded, f"{name}_mask"))
    if name in context.features:
        add_precomputed(pipeline, name, context.features[name])
        return
    is_frame, frame = _KEYS[name] == schema.FRAMES, getattr(options, "frame", None)
    if is_frame:
        pipeline.context(schema.ROI[0], tf.int64)

    def sample(features: Features) -> Features:
        images = features[encoded]
        count = tf.size(images)
        if frame is not None:
            index = _frame_index(frame, count, features[f"{name}_mask"], name)
        else:
            index = random_below(count, seed_of(features, name)) if context.train else count // 2
        image = images[index][None]
        if is_frame:
            image = pipeline.resolve(features["_source"], image)
        return features | {encoded: image}

    if context.train and getattr(options, "crops", ()):
        decode, preprocess = _random_crops(options, context.views)
    else:
        decode, preprocess = _single_view(options, train=context.train)
    pipeline.add("sample", name, sample)
    pipeline.add("decode", name, decode)
    pipeline.add("preprocess", name, preprocess)
    if name == "touch" and options.background:
        _add_background(pipeline, options, train=context.train)


def _frame_index(frame: int, count: tf.Tensor, present: tf.Tensor, name: str) -> tf.Tensor:
    """Returns the index of a frame, which may be negative, among `count` frames.

    A record without frames has one black frame and the mask 0.
    """
    index = tf.where(present > 0, frame if frame >= 0 else frame + count, 0)
    tf.debugging.Assert(
        (index >= 0) & (index < count),
        [
            f"data.{name}.frame={frame} does not exist in a record with this number of frames:",
            count,
        ],
    )
    return index


def _single_view(options: _ImageOptions, *, train: bool) -> tuple[Function, Function]:
    """Returns the functions of the phases decode and preprocess for one square image."""
    name = options.SECTION

    def decode(features: Features) -> Features:
        image = features[f"_{name}"]
        seed = seed_of(features, f"{name} jitter") if train else None
        part = window(crops.encoded_size(image[0]), options, roi=_roi(features, options), seed=seed)
        if train:
            decoded = crops.decode(image, part, count=1, dct="accurate")
        else:  # Decoding only a part of a JPEG may change the colors at its edges slightly.
            decoded = _cut(crops.decode(image, count=1, dct="accurate"), part)
        return features | {name: decoded}

    def preprocess(features: Features) -> Features:
        image = shaped(features[name], options)
        return features | {name: image[0] if train else image}

    return decode, preprocess


def _random_crops(options: Image, views: Sequence[int] | None) -> tuple[Function, Function]:
    """Returns the functions of the phases decode and preprocess for random crops.

    Args:
      options: The section.
      views: Indices of the crops to make; None for all.
    """
    views = range(len(options.crops)) if views is None else views

    def decode(features: Features) -> Features:
        image = features["_image"]
        start, extent = _region(crops.encoded_size(image[0]), _roi(features, options))
        parts = []
        for view in views:
            seed = seed_of(features, f"image crop {view}")
            part = crops.resized_crop_window(extent, seed, area=options.crops[view])
            parts.append(tf.concat([start + part[:2], part[2:]], 0))
        if len(parts) == 1:
            cropped = [crops.decode(image, parts[0], count=1, dct="accurate")]
        else:
            whole = crops.decode(image, count=1, dct="accurate")
            cropped = [_cut(whole, part) for part in parts]
        return features | {f"_crop/{view}": crop for view, crop in zip(views, cropped, strict=True)}

    def preprocess(features: Features) -> Features:
        resized = [_resized(features[f"_crop/{view}"], options) for view in views]
        return features | {"image": tf.concat(resized, 0)}

    return decode, preprocess


def _roi(features: Features, options: _ImageOptions) -> tf.Tensor | None:
    """Returns the region of interest, int32 [4], or [0] if the record has none.

    Returns None if the options do not ask for it.
    """
    if not getattr(options, "roi", False):
        return None
    present = tf.cast(features[f"{options.SECTION}_mask"], tf.int32)
    return tf.cast(features[f"_context/{schema.ROI[0]}"][: 4 * present], tf.int32)


def _add_background(pipeline: Pipeline, options: Touch, *, train: bool) -> None:
    """Adds the field `touch_background`."""
    name = "touch_background"
    if options.background != RECORDING:
        try:
            image = prepare(read_image(options.background), options)
        except UserError as error:
            raise UserError(f"data.touch.background: {error}") from error
        constant = tf.constant(image if train else image[None])
        pipeline.add("preprocess", name, lambda features: features | {name: constant})
        return
    read = encoded_parser(pipeline, schema.TOUCH_BACKGROUND[0], "_background", "_has_background")

    def parse(features: Features) -> Features:
        features = read(features)
        tf.debugging.Assert(
            (features["_has_background"] > 0) | (features["touch_mask"] == 0),
            [
                "the record has a touch image but no background, which "
                "data.touch.background='recording' requires. Set data.touch.background to an "
                "image file for all records, or to ''"
            ],
        )
        return features

    def decode(features: Features) -> Features:
        images = features["_background"][:1]
        return features | {name: crops.decode(images, count=1, dct="accurate")}

    def preprocess(features: Features) -> Features:
        part = window(tf.shape(features[name])[1:3], options)
        image = shaped(_cut(features[name], part), options)
        return features | {name: image[0] if train else image}

    pipeline.add("parse", name, parse)
    pipeline.add("decode", name, decode)
    pipeline.add("preprocess", name, preprocess)


def window(
    shape: tf.Tensor,
    options: _ImageOptions,
    *,
    roi: tf.Tensor | None = None,
    seed: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the part of a stored image to show: int32 [4], top, left, height, width.

    Args:
      shape: Height and width of the stored image, int32 [2].
      options: The section.
      roi: Region of interest, int32 [4]; [0] or None for the whole image. A region that exceeds
        the image is an error.
      seed: Seed of the jitter; None in evaluation.
    """
    start, extent = _region(shape, roi)
    side = tf.reduce_min(extent)
    if options.square == "crop":
        start, extent = start + (extent - side) // 2, tf.stack([side, side])
    jitter = getattr(options, "jitter", 0.0)
    if seed is not None and jitter:
        reach = tf.cast(jitter * tf.cast(side, tf.float64), tf.int32)
        shift = random_below(tf.maximum(reach, 1), seed, shape=[2])
        start += shift - tf.stack([0, (reach + 1) // 2])
        start = tf.clip_by_value(start, 0, shape - extent)
    return tf.ensure_shape(tf.concat([start, extent], 0), [4])


def _region(shape: tf.Tensor, roi: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns (top, left) and (height, width) of the region of interest, int32 [2] each."""
    start, extent = tf.zeros([2], tf.int32), shape
    if roi is not None:
        start, extent = tf.cond(
            tf.size(roi) > 0, lambda: (roi[:2], roi[2:4]), lambda: (start, extent)
        )
        inside = tf.reduce_all((start >= 0) & (extent > 0) & (start + extent <= shape))
        message = [f"{schema.ROI[0]} (top, left, height, width) exceeds the image:", roi]
        tf.debugging.Assert(inside, [*message, "with height and width", shape], summarize=4)
    return tf.ensure_shape(start, [2]), tf.ensure_shape(extent, [2])


def shaped(image: tf.Tensor, options: _ImageOptions) -> tf.Tensor:
    """Makes an image square, resizes and rotates it.

    Args:
      image: uint8 [1, H, W, 3].
      options: The section.

    Returns:
      uint8 [1, size, size, 3].
    """
    if options.square == "crop_resized":
        return _rotated(_center(image, options), options)
    height, width = tf.unstack(tf.shape(image)[1:3])
    side = tf.maximum(height, width)  # A crop is square already.
    top, left = (side - height) // 2, (side - width) // 2
    return _resized(tf.image.pad_to_bounding_box(image, top, left, side, side), options)


def _resized(image: tf.Tensor, options: _ImageOptions) -> tf.Tensor:
    """Resizes and rotates an image: uint8 [1, H, W, 3] -> uint8 [1, size, size, 3]."""
    return _rotated(_scaled(image, (options.size, options.size), options), options)


def _center(image: tf.Tensor, options: _ImageOptions) -> tf.Tensor:
    """Resizes the shorter side to `size` and crops the center, rounding as torchvision."""
    shape = crops.shortest_side(tf.shape(image)[1:3], options.size)
    # Half a pixel is rounded to even.
    start = tf.cast(tf.round(tf.cast(shape - options.size, tf.float32) / 2), tf.int32)
    size = tf.fill([2], options.size)
    return _cut(_scaled(image, shape, options), tf.concat([start, size], 0))


def _scaled(
    image: tf.Tensor, size: tf.Tensor | tuple[int, int], options: _ImageOptions
) -> tf.Tensor:
    return crops.resize(
        image, size, rounded=True, antialias=options.antialias, method=options.resize
    )


def _rotated(image: tf.Tensor, options: _ImageOptions) -> tf.Tensor:
    # Last, when the image is small: a rotation commutes with the operations before it.
    image = tf.image.rot90(image, options.quarter_turns % 4)
    return tf.ensure_shape(image, [1, options.size, options.size, 3])


def prepare(
    image: np.ndarray, options: _ImageOptions, *, roi: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Returns an image as it is in evaluation batches, uint8 [size, size, 3].

    Args:
      image: RGB, uint8 [H, W, 3]; `mmjax.data.storage.image_files.read_image` reads a file.
      options: The section of the image, for example `data.image`.
      roi: Region of interest (top, left, height, width), as a record may have it.

    Raises:
      UserError: The image is not uint8 [H, W, 3], or the region exceeds it.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(
            f"An image must be uint8 [height, width, 3]; got {image.dtype} {list(image.shape)}."
        )
    region = tf.constant(roi, tf.int32) if roi and getattr(options, "roi", False) else None
    try:
        part = window(tf.constant(image.shape[:2], tf.int32), options, roi=region)
    except tf.errors.InvalidArgumentError as error:
        raise UserError(
            f"roi={tuple(roi)} (top, left, height, width) exceeds the image of "
            f"{image.shape[0]} x {image.shape[1]} pixels."
        ) from error
    return shaped(_cut(tf.constant(image[None]), part), options).numpy()[0]


def _cut(image: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
    """Returns the part (top, left, height, width) of [1, H, W, 3]."""
    top, left, height, width = tf.unstack(part)
    return image[:, top : top + height, left : left + width]
