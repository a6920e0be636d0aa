"""Video clips: the section `data.video` and its functions of the input pipeline."""

from __future__ import annotations

import dataclasses
from typing import Literal

import tensorflow as tf

from mmjax.data.pipeline import crops
from mmjax.data.pipeline.common import Context, check_positive, encoded_parser, random_below
from mmjax.data.pipeline.phases import Features, Function, Pipeline, seed_of
from mmjax.data.storage import schema
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """The section `data.video`.

    Attributes:
      num_frames: Number of frames of a clip.
      stride: Take every stride-th frame.
      fps: Reference frame rate in Hz. The stride is multiplied by int(frame rate of the dataset /
        fps), as in VATT with fps=10. 0 leaves the stride unchanged.
      size: Height and width of a crop in pixels.
      crop: Random crop of training: VATT's VGG-style crop or an Inception crop. Evaluation takes
        the central crop.
      min_resize: Length in pixels to which the shorter side is resized before a VGG crop; 0 for
        `size`.
      scale_jitter: For VGG crops, whether to scale height and width by up to 20 % each, in 4 of 5
        clips.
      exact: For VGG crops, whether to process whole frames in VATT's order of operations, instead
        of decoding only the crop.
      area: For Inception crops, the range of the crop's fraction of the frame.
      aspect: For Inception crops, the range of width / height.
      flip: Whether to mirror half of the training clips.
      flip_on: Where clips are mirrored. On the 'device' it is free: the batch field `video_flip`
        selects the clips, and `mmjax.preprocess.inputs` mirrors them.
      dct: Arithmetic of JPEG decoding.
      num_clips: Number of clips of an evaluation example, spread over its length.
      multi_crop: Whether evaluation takes three crops along the longer side instead of the central
        one.
    """

    num_frames: int = 32
    stride: int = 1
    fps: float = 0.0
    size: int = 224
    crop: Literal["vgg", "inception"] = "vgg"
    min_resize: int = 0
    scale_jitter: bool = True
    exact: bool = False
    area: tuple[float, ...] = (0.08, 1.0)
    aspect: tuple[float, ...] = (0.5, 2.0)
    flip: bool = True
    flip_on: Literal["device", "host"] = "device"
    dct: Literal["fast", "accurate"] = "fast"
    num_clips: int = 1
    multi_crop: bool = False

    def __post_init__(self) -> None:
        check_positive("video", self, "num_frames", "stride", "size", "num_clips")
        if self.min_resize and self.min_resize < self.size:
            raise UserError(
                f"data.video.min_resize={self.min_resize} must be at least "
                f"data.video.size={self.size}, so that a crop fits, or 0 for the same."
            )
        for name in ("area", "aspect"):
            value = getattr(self, name)
            if len(value) != 2 or not 0 < value[0] <= value[1]:
                numbers = ", ".join(f"{number:g}" for number in value)
                raise UserError(
                    f"data.video.{name} must be (low, high) with 0 < low <= high; got ({numbers})."
                )

    @property
    def views(self) -> int:
        """Number of views of an evaluation example."""
        return self.num_clips * (3 if self.multi_crop else 1)


def add_video(pipeline: Pipeline, options: Video, context: Context) -> None:
    """Adds the batch fields of video clips.

    Fields: `video`, uint8 [T, H, W, 3] ([V, T, H, W, 3] in evaluation), and `video_mask` []. In
    training with `flip` on the device also `video_flip`, bool [].

    Functions: parse 'video'; sample 'video' and, in training, 'crop'; decode 'video'; preprocess
    'resize' and 'flip' in training, 'views' in evaluation. Private features between them:
    `_frames` (encoded), `_first_frame`, `_num_frames`, `_window`.
    """
    pipeline.add(
        "parse", "video", encoded_parser(pipeline, schema.FRAMES[0], "_frames", "video_mask")
    )
    pipeline.add("sample", "video", _sample(pipeline, options, context))
    num_frames = options.num_frames * (1 if context.train else options.num_clips)

    def decode(features: Features) -> Features:
        video = crops.decode(
            features["_frames"], features.get("_window"), count=num_frames, dct=options.dct
        )
        return features | {"video": video}

    pipeline.add("decode", "video", decode)
    if not context.train:
        pipeline.add("preprocess", "views", _views(options))
        return
    if not (options.exact and options.crop == "vgg"):
        pipeline.add("sample", "crop", _crop(options))
    pipeline.add("preprocess", "resize", _resize(options))
    if options.flip:
        pipeline.add("preprocess", "flip", _flip(options))


def _sample(pipeline: Pipeline, options: Video, context: Context) -> Function:
    """Returns the function that chooses the frames."""
    strides = [
        options.stride * max(1, int(info.fps // options.fps) if options.fps and info.fps else 1)
        for info in context.infos
    ]
    stride_of = tf.constant(strides, tf.int32)
    num_frames = options.num_frames * (1 if context.train else options.num_clips)

    def sample(features: Features) -> Features:
        frames, stride = features["_frames"], stride_of[features["_source"]]
        length = tf.size(frames)
        if context.train:
            # The span that must fit ends with the last frame: (n - 1) strides after the first.
            room = tf.maximum(length - (options.num_frames - 1) * stride, 1)
            start = random_below(room, seed_of(features, "instant"))
        else:
            start = crops.window_starts(length, options.num_frames * stride, options.num_clips)
        index = crops.looped(start, options.num_frames, stride, length)
        index = tf.reshape(index, [num_frames])
        return features | {
            "_frames": pipeline.resolve(features["_source"], tf.gather(frames, index)),
            "_first_frame": start,
            "_num_frames": length,
        }

    return sample


def _vgg_options(options: Video) -> dict[str, int | bool]:
    return dict(
        size=options.size,
        min_resize=options.min_resize or options.size,
        scale_jitter=options.scale_jitter,
    )


def _crop(options: Video) -> Function:
    """Returns the function that chooses the part of the frames to decode."""

    def crop(features: Features) -> Features:
        shape, seed = crops.encoded_size(features["_frames"][0]), seed_of(features, "crop")
        if options.crop == "inception":
            window = crops.inception_window(shape, seed, area=options.area, aspect=options.aspect)
        else:
            window = crops.vgg_window(shape, seed, **_vgg_options(options))
        return features | {"_window": window}

    return crop


def _resize(options: Video) -> Function:
    """Returns the function that resizes the decoded part in training."""

    def resize(features: Features) -> Features:
        video = features["video"]
        if options.exact and options.crop == "vgg":
            video = crops.vgg_exact(video, seed_of(features, "crop"), **_vgg_options(options))
        else:
            rounded = options.crop == "inception"  # VATT resizes these as floats.
            video = crops.resize(video, (options.size,) * 2, rounded=rounded)
        shape = [options.num_frames, options.size, options.size, 3]
        return features | {"video": tf.ensure_shape(video, shape)}

    return resize


def _flip(options: Video) -> Function:
    """Returns the function that mirrors half of the clips, or selects them for the device."""

    def flip(features: Features) -> Features:
        mirror = crops.random_flip(seed_of(features, "flip"))
        if options.flip_on == "device":
            return features | {"video_flip": mirror}
        return features | {"video": crops.flip(features["video"], mirror)}

    return flip


def _views(options: Video) -> Function:
    """Returns the function that resizes and crops evaluation clips."""

    def views(features: Features) -> Features:
        video = crops.resize_shortest(features["video"], options.size)
        crop = crops.multi_crop if options.multi_crop else crops.central_crop
        shape = [options.views, options.num_frames, options.size, options.size, 3]
        return features | {"video": tf.reshape(crop(video, options.size), shape)}

    return views
