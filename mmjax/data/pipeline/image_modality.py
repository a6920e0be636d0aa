"""Single images: the sections `data.image` and `data.touch`, and what a stored image becomes.

An image is decoded, cut to the part that matters, made square, resized, and turned; it travels as
uint8. What evaluation does to an image, `prepare` does to one that a user has at hand.

Source: the cropping, padding, turning and resizing of TVL's published code (Fu et al. 2024, A
Touch, Vision, and Language Dataset for Multimodal Alignment, arXiv 2402.13232).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline import crops as images
from mmjax.data.pipeline.modalities import encoded_parser, random_below
from mmjax.data.pipeline.phases import Features, Function, Pipeline, seed_of
from mmjax.data.pipeline.precomputed_features import add_precomputed
from mmjax.data.storage import schema
from mmjax.data.storage.image_files import read_image
from mmjax.errors import UserError, unknown

_SQUARES = ("crop", "crop_resized", "pad")
RECORDING = "recording"  # the background that a record itself brings


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Square:
    """What images of all kinds have in common; see `Image`."""

    size: int = 224
    square: str = "crop"
    quarter_turns: int = 0
    antialias: bool = True
    resize: str = "bilinear"
    features: str | tuple[str, ...] = ""

    SECTION = ""

    def __post_init__(self):
        if self.size < 1:
            raise UserError(f"data.{self.SECTION}.size must be at least 1, not {self.size}.")
        if self.square not in _SQUARES:
            raise unknown(f"data.{self.SECTION}.square", self.square, _SQUARES)
        if self.resize not in ("bilinear", "bicubic"):
            raise unknown(f"data.{self.SECTION}.resize", self.resize, ("bilinear", "bicubic"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image(_Square):
    """The section `data.image`: one of a record's frames.

    Attributes:
      size: height and width.
      roi: cut to the part of the image that the record says matters (`schema.ROI`), if it does.
      jitter: training only: move this part by up to so much of its shorter side: down, and half as
        far to either side, within the stored image (TVL's randomized crop: 0.05).
      square: how a part that is not square becomes so: 'crop' takes its middle, 'pad' gives it a
        black margin. 'crop_resized' takes the middle once the shorter side is `size`, as PyTorch's
        Resize and CenterCrop: the same up to half a pixel, for figures that must be met exactly.
      quarter_turns: counter-clockwise.
      antialias: resize as PIL does; without, as PyTorch resizes tensors.
      resize: 'bilinear' or 'bicubic'.
      features: folders of `mmjax.data.pipeline.precomputed_features`, one for each source: in training, these features of
        the frozen tower come in place of images.
      crops: training only: the ranges (low, high) of several views' shares of this part. Each view
        is a crop of random place, area and shape, resized: torchvision's RandomResizedCrop.
        `square` is then for evaluation alone.
    """

    roi: bool = True
    jitter: float = 0.0
    crops: tuple[tuple[float, ...], ...] = ()

    SECTION = "image"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.jitter < 1:
            raise UserError(
                f"data.image.jitter={self.jitter} must be at least 0 and below 1: it is a share "
                "of the image's side."
            )
        for number, area in enumerate(self.crops):
            if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
                raise UserError(
                    f"data.image.crops[{number}]={area} must be (low, high) with "
                    "0 < low <= high <= 1: shares of the image's area."
                )
        if self.crops and self.jitter:
            raise UserError(
                f"data.image.jitter={self.jitter} moves the one image of an example, but the "
                "places of data.image.crops are random already: set data.image.jitter=0."
            )
        if self.crops and self.features:
            raise UserError(
                "data.image.features come in place of images, of which data.image.crops are "
                "cut: leave one of them out."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Touch(_Square):
    """The section `data.touch`: one of a record's touch images.

    Attributes:
      size, square, quarter_turns, antialias, resize, features: see `Image`. TVL pads, and turns
        once.
      background: an image of the sensor untouched, which comes along as `touch_background` in the
        same shape: '' is none, 'recording' the record's own, anything else a file for all.
    """

    background: str = ""

    SECTION = "touch"


def add_image(
    pipeline: Pipeline,
    options: Image | Touch,
    *,
    train: bool,
    features: Sequence[np.ndarray] | None = None,
    views: Sequence[int] | None = None,
) -> None:
    """Adds `image` or `touch`, uint8 [H, W, 3] ([1, H, W, 3] for tests, [V, H, W, 3] with `crops`
    in training), its mask [], and `touch_background` if it is asked for; or the `features` of
    `stored.open_features` as float32 [D], and the mask.

    Functions: parse, sample, decode and preprocess 'image' or 'touch', the same but sample
    'touch_background'. In training any of the record's images is taken, for tests the middle one.
    `views` are the numbers of the crops to make, None is all.
    """
    name = options.SECTION
    key, stored = (schema.FRAMES if name == "image" else schema.TOUCH)[0], f"_{name}"
    pipeline.add("parse", name, encoded_parser(pipeline, key, stored, f"{name}_mask"))
    if features is not None:
        add_precomputed(pipeline, name, features)
        return
    if name == "image":
        pipeline.context(schema.ROI[0], tf.int64)

    def sample(features: Features) -> Features:
        pictures = features[stored]
        number = tf.size(pictures)
        index = random_below(number, seed_of(features, name)) if train else number // 2
        chosen = pictures[index][None]
        if name == "image":
            chosen = pipeline.resolve(features["_source"], chosen)
        return features | {stored: chosen}

    if train and getattr(options, "crops", ()):
        decode, preprocess = _cropping(options, views)
    else:
        decode, preprocess = _showing(options, train=train)
    pipeline.add("sample", name, sample)
    pipeline.add("decode", name, decode)
    pipeline.add("preprocess", name, preprocess)
    if name == "touch" and options.background:
        _add_background(pipeline, options, train=train)


def _showing(options: Image | Touch, *, train: bool) -> tuple[Function, Function]:
    """The functions of the decode and the preprocess phase: one square image."""
    name = options.SECTION

    def decode(features: Features) -> Features:
        picture = features[f"_{name}"]
        seed = seed_of(features, f"{name} jitter") if train else None
        shape = images.encoded_size(picture[0])
        part = window(shape, options, roi=_roi(features, options), seed=seed)
        if train:
            decoded = images.decode(picture, part, number=1, dct="accurate")
        else:  # where a JPEG is decoded in part, colors at its edges may differ by a little
            decoded = _cut(images.decode(picture, number=1, dct="accurate"), part)
        return features | {name: decoded}

    def preprocess(features: Features) -> Features:
        picture = shaped(features[name], options)
        return features | {name: picture[0] if train else picture}

    return decode, preprocess


def _cropping(options: Image, views: Sequence[int] | None) -> tuple[Function, Function]:
    """The functions of the decode and the preprocess phase: random crops, one for each view."""
    views = range(len(options.crops)) if views is None else views

    def decode(features: Features) -> Features:
        picture = features["_image"]
        start, extent = _shown(images.encoded_size(picture[0]), _roi(features, options))
        parts = []
        for view in views:
            seed = seed_of(features, f"image crop {view}")
            part = images.resized_crop_window(extent, seed, area=options.crops[view])
            parts.append(tf.concat([start + part[:2], part[2:]], 0))
        if len(parts) == 1:
            cut = [images.decode(picture, parts[0], number=1, dct="accurate")]
        else:
            whole = images.decode(picture, number=1, dct="accurate")
            cut = [_cut(whole, part) for part in parts]
        return features | {f"_crop/{view}": crop for view, crop in zip(views, cut, strict=True)}

    def preprocess(features: Features) -> Features:
        crops = [_resized(features[f"_crop/{view}"], options) for view in views]
        return features | {"image": tf.concat(crops, 0)}

    return decode, preprocess


def _roi(features: Features, options: Image | Touch) -> tf.Tensor | None:
    """int32 [4], or [0] if the record does not say what matters; None if nobody asks."""
    if not getattr(options, "roi", False):
        return None
    present = tf.cast(features["image_mask"], tf.int32)
    return tf.cast(features[f"_context/{schema.ROI[0]}"][: 4 * present], tf.int32)


def _add_background(pipeline: Pipeline, options: Touch, *, train: bool) -> None:
    name = "touch_background"
    if options.background != RECORDING:
        try:
            picture = prepare(read_image(options.background), options)
        except UserError as error:
            raise UserError(f"data.touch.background: {error}") from error
        constant = tf.constant(picture if train else picture[None])
        pipeline.add("preprocess", name, lambda features: features | {name: constant})
        return
    read = encoded_parser(pipeline, schema.TOUCH_BACKGROUND[0], "_background", "_has_background")

    def parse(features: Features) -> Features:
        features = read(features)
        tf.debugging.Assert(
            (features["_has_background"] > 0) | (features["touch_mask"] == 0),
            [
                "there is a touch image without its background, which "
                "data.touch.background asks for: give it the file of an image for all instead, "
                "or leave it empty"
            ],
        )
        return features

    def decode(features: Features) -> Features:
        pictures = features["_background"][:1]
        return features | {name: images.decode(pictures, number=1, dct="accurate")}

    def preprocess(features: Features) -> Features:
        part = window(tf.shape(features[name])[1:3], options)
        picture = shaped(_cut(features[name], part), options)
        return features | {name: picture[0] if train else picture}

    pipeline.add("parse", name, parse)
    pipeline.add("decode", name, decode)
    pipeline.add("preprocess", name, preprocess)


def window(
    shape: tf.Tensor,
    options: Image | Touch,
    *,
    roi: tf.Tensor | None = None,
    seed: tf.Tensor | None = None,
) -> tf.Tensor:
    """int32 [4], top, left, height, width: the part of a stored image that is shown.

    Args:
      shape: int32 [2], of the stored image.
      options: of the section.
      roi: int32 [4], or [0] or None where the whole image matters. One that leaves the image is
        an error.
      seed: of the jitter; None is evaluation.
    """
    start, extent = _shown(shape, roi)
    side = tf.reduce_min(extent)
    if options.square == "crop":
        start, extent = start + (extent - side) // 2, tf.stack([side, side])
    jitter = getattr(options, "jitter", 0.0)
    if seed is not None and jitter:
        reach = tf.cast(jitter * tf.cast(side, tf.float64), tf.int32)
        drawn = random_below(tf.maximum(reach, 1), seed, shape=[2])
        start += drawn - tf.stack([0, (reach + 1) // 2])
        start = tf.clip_by_value(start, 0, shape - extent)
    return tf.ensure_shape(tf.concat([start, extent], 0), [4])


def _shown(shape: tf.Tensor, roi: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """int32 [2] top and left, int32 [2] height and width of an image's part that matters."""
    start, extent = tf.zeros([2], tf.int32), shape
    if roi is not None:
        start, extent = tf.cond(
            tf.size(roi) > 0, lambda: (roi[:2], roi[2:4]), lambda: (start, extent)
        )
        inside = tf.reduce_all((start >= 0) & (extent > 0) & (start + extent <= shape))
        message = [f"{schema.ROI[0]} (top, left, height, width) leaves the image:", roi]
        tf.debugging.Assert(inside, [*message, "of height and width", shape], summarize=4)
    return tf.ensure_shape(start, [2]), tf.ensure_shape(extent, [2])


def shaped(picture: tf.Tensor, options: Image | Touch) -> tf.Tensor:
    """uint8 [1, H, W, 3] → uint8 [1, size, size, 3]: made square, resized, turned."""
    if options.square == "crop_resized":
        return _turned(_middle(picture, options), options)
    height, width = tf.unstack(tf.shape(picture)[1:3])
    side = tf.maximum(height, width)  # a crop is square already
    top, left = (side - height) // 2, (side - width) // 2
    return _resized(tf.image.pad_to_bounding_box(picture, top, left, side, side), options)


def _resized(picture: tf.Tensor, options: Image | Touch) -> tf.Tensor:
    """uint8 [1, H, W, 3] → uint8 [1, size, size, 3], turned."""
    return _turned(_scaled(picture, (options.size, options.size), options), options)


def _middle(picture: tf.Tensor, options: Image | Touch) -> tf.Tensor:
    """The middle of an image whose shorter side was made `size`, in torchvision's rounding."""
    shape = images.shortest_side(tf.shape(picture)[1:3], options.size)
    # Half a pixel goes to the even side.
    start = tf.cast(tf.round(tf.cast(shape - options.size, tf.float32) / 2), tf.int32)
    size = tf.fill([2], options.size)
    return _cut(_scaled(picture, shape, options), tf.concat([start, size], 0))


def _scaled(
    picture: tf.Tensor, size: tf.Tensor | tuple[int, int], options: Image | Touch
) -> tf.Tensor:
    return images.resize(
        picture, size, rounded=True, antialias=options.antialias, method=options.resize
    )


def _turned(picture: tf.Tensor, options: Image | Touch) -> tf.Tensor:
    # Turned last, when it is small: a turn commutes with what goes before.
    picture = tf.image.rot90(picture, options.quarter_turns % 4)
    return tf.ensure_shape(picture, [1, options.size, options.size, 3])


def prepare(
    picture: np.ndarray, options: Image | Touch, *, roi: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """An image as evaluation batches hold it: uint8 [H, W, 3] → uint8 [size, size, 3].

    Args:
      image: RGB; `mmjax.data.storage.image_files.read_image` reads one from a file.
      options: of `data.image` or `data.touch`.
      roi: top, left, height and width of what matters, as a record may have it.

    Raises:
      UserError: not uint8 [H, W, 3], or a roi that leaves the image.
    """
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
        raise UserError(
            f"An image is uint8 [height, width, 3], not {picture.dtype} {list(picture.shape)}."
        )
    wanted = tf.constant(roi, tf.int32) if roi and getattr(options, "roi", False) else None
    try:
        part = window(tf.constant(picture.shape[:2], tf.int32), options, roi=wanted)
    except tf.errors.InvalidArgumentError as error:
        raise UserError(
            f"roi={tuple(roi)} (top, left, height, width) leaves the image of "
            f"{picture.shape[0]} x {picture.shape[1]} pixels."
        ) from error
    return shaped(_cut(tf.constant(picture[None]), part), options).numpy()[0]


def _cut(picture: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
    """The part of [1, H, W, 3] at top, left, height, width."""
    top, left, height, width = tf.unstack(part)
    return picture[:, top : top + height, left : left + width]
