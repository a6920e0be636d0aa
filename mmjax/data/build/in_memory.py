"""Evaluation batches from a user's files and arrays, without writing a dataset.

A file is converted to the example that `mmjax build` would store. The example passes through the
evaluation pipeline of the section `data`, like a record of a dataset.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mmjax.cpus import available_cpus
from mmjax.data.build.examples import Reader, make_example
from mmjax.data.build.manifest import Clip
from mmjax.data.build.options import BuildOptions
from mmjax.data.pipeline import image_modality
from mmjax.data.pipeline.common import Context
from mmjax.data.pipeline.config import MODALITIES, DataConfig
from mmjax.data.pipeline.examples import Examples, build_pipeline
from mmjax.data.pipeline.image_modality import Image, Touch
from mmjax.data.pipeline.order import EvalOrder, as_tensors
from mmjax.data.sources import registry as sources
from mmjax.data.sources.base import Source
from mmjax.data.storage import image_decoding, image_files, schema
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.errors import UserError

_NDIM = {"video": 4, "audio": 1, "image": 3, "touch": 3}  # of the array of one input


def training_info(data: DataConfig) -> DatasetInfo | None:
    """Returns the description of the (first) training dataset; None if it cannot be opened."""
    try:
        return sources.open_source(data.specs[0], split=data.split, check_crc=False).info
    except UserError:
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredFormat:
    """How the examples that a model was trained on are stored.

    Attributes:
      fps: Frames per second; None if unknown.
      sample_rate: Sample rate of waveforms in Hz; None if unknown.
      size: Largest shorter side of the frames in pixels; None for no limit.
      quality: JPEG quality of the frames, 1 to 100.
    """

    fps: float | None = None
    sample_rate: float | None = None
    size: int | None = BuildOptions.size
    quality: int = BuildOptions.quality

    @classmethod
    def of(cls, data: DataConfig, info: DatasetInfo | None) -> StoredFormat:
        """Returns the format of a dataset.

        Args:
          data: The section `data`, for rates that the dataset does not specify.
          info: Description of the dataset; None if it is not available. Options of `mmjax build`
            that it does not contain have their default values.
        """
        info = info or DatasetInfo(name="")
        options = info.source.get("options")
        options = options if isinstance(options, Mapping) else {}
        return cls(
            fps=info.fps or (data.video.fps if data.video else 0.0) or None,
            sample_rate=(data.audio.sample_rate if data.audio else 0.0) or info.sample_rate or None,
            size=options.get("size", cls.size),
            quality=options.get("quality", cls.quality),
        )


def is_single(modality: str, inputs: Any) -> bool:
    """Returns whether `inputs` is one file, image, array or text, and not several of them."""
    if isinstance(inputs, str | os.PathLike) or hasattr(inputs, "getbands"):
        return True
    return modality in _NDIM and getattr(inputs, "ndim", None) == _NDIM[modality]


class ClipBatches:
    """Makes evaluation batches of video or audio.

    Args:
      data: The section `data` that the model was trained with.
      modality: 'video' or 'audio'.
      stored: How the training examples are stored.
      num_clips: Number of clips or windows of each input, evenly spaced over its length.
    """

    def __init__(self, data: DataConfig, modality: str, stored: StoredFormat, *, num_clips: int):
        if num_clips < 1:
            raise UserError(f"num_clips must be at least 1; got {num_clips}.")
        self._modality, self._stored = modality, stored
        # The streams of a file are read together, as `mmjax build` does: both determine its end.
        self._options = BuildOptions(
            fps=stored.fps or BuildOptions.fps,
            sample_rate=round(stored.sample_rate or BuildOptions.sample_rate),
            size=stored.size,
            quality=stored.quality,
            video=data.video is not None,
            audio=data.audio is not None,
        )
        options = dataclasses.replace(getattr(data, modality), num_clips=num_clips)
        others = dict.fromkeys(MODALITIES) | {"pairs": None, modality: options}
        data = dataclasses.replace(data, **others)
        info = DatasetInfo(
            name="input", fps=stored.fps or 0.0, sample_rate=stored.sample_rate or 0.0
        )
        self._examples = Examples(
            data,
            [_NoRecords(info)],
            id_names=EvalOrder.id_names,
            pipeline=build_pipeline(data, Context(train=False, infos=[info])),
            seed=0,
        )

    def __call__(self, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
        """Returns the batch of some files or arrays, for example `video` [N, V, T, H, W, 3].

        Args:
          inputs: Paths of media files (for video also of images or directories of frames); or
            arrays, uint8 [T, H, W, 3] for video and float [S] for audio.

        Raises:
          UserError: A file cannot be read or lacks the modality, or an array has the wrong shape.
        """
        with concurrent.futures.ThreadPoolExecutor(available_cpus()) as threads:
            examples = list(threads.map(self._make, inputs))
        return {name: np.stack([example[name] for example in examples]) for name in examples[0]}

    def _make(self, item: Any) -> dict[str, np.ndarray]:
        is_file = isinstance(item, str | os.PathLike)
        record = schema.encode(self._read(os.fspath(item)) if is_file else self._of_array(item))
        ids = as_tensors(dict.fromkeys(EvalOrder.id_names, 0))
        features = self._examples.make(ids, tf.constant([record]))
        return {
            name: value.numpy()
            for name, value in features.items()
            if name in (self._modality, f"{self._modality}_mask")
        }

    def _read(self, path: str) -> schema.Example:
        known = self._stored.fps if self._modality == "video" else self._stored.sample_rate
        if not known and not (self._modality == "video" and image_files.has_image(path)):
            name = "video.fps" if self._modality == "video" else "audio.sample_rate"
            raise UserError(
                f"{path}: the {'frame' if self._modality == 'video' else 'sample'} rate that the "
                f"model was trained with is unknown: config.data.{name} is 0, and the training "
                f"dataset is not available. Pass overrides=['--config.data.{name}=…'] to "
                "mmjax.load."
            )
        reader = Reader(self._options, media_root="")
        try:
            example = make_example(Clip(path=path), reader, {})
        finally:
            reader.close()
        if self._modality not in example.modalities:
            has = ", ".join(example.modalities) or "nothing"
            raise UserError(f"{path} has no {self._modality}, only {has}. Pass another file.")
        return example

    def _of_array(self, array: Any) -> schema.Example:
        array = np.asarray(array)
        if self._modality == "audio":
            if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.floating):
                raise UserError(
                    "An audio input must be the path of a file, or floating-point [num_samples], "
                    f"mono, in [-1, 1]; got {array.dtype} {list(array.shape)}."
                )
            return schema.Example(
                waveform=array.astype(np.float32), sample_rate=self._stored.sample_rate or 0.0
            )
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not array.size:
            raise UserError(
                "A video input must be the path of a file, or uint8 [num_frames, height, width, "
                f"3]; got {array.dtype} {list(array.shape)}."
            )
        frames = [image_files.encode_jpeg(x, quality=self._options.quality) for x in array]
        return schema.Example(frames=frames, frame_rate=self._stored.fps or 0.0)


class _NoRecords(Source):
    """A source whose records are passed to `Examples.make` by the caller."""

    def __init__(self, info: DatasetInfo):
        self.name, self.info, self.num_examples = info.name, info, 1


def image_batch(
    modality: str, images: Sequence[Any], options: Image | Touch, *, background: Any = None
) -> dict[str, np.ndarray]:
    """Returns the evaluation batch of some images: `image` or `touch`, uint8 [N, 1, H, W, 3].

    Args:
      modality: 'image' or 'touch'.
      images: Paths, Pillow images, or uint8 [H, W, 3] arrays.
      options: The section of the modality.
      background: Image of the touch sensor without contact, for models that subtract it. None for
        the file that the section names.

    Raises:
      UserError: An image cannot be read, or a background is missing or not expected.
    """
    pixels = np.stack([image_modality.prepare(_read_image(image), options) for image in images])
    batch = {modality: pixels[:, None], f"{modality}_mask": np.ones(len(pixels), np.float32)}
    configured = getattr(options, "background", "")
    if configured:
        if background is None and configured == image_modality.RECORDING:
            raise UserError(
                "This model subtracts the background of each recording "
                "(config.data.touch.background='recording'). Pass an image of the sensor without "
                "contact: embed_touch(…, background=…)."
            )
        source = configured if background is None else background
        image = image_modality.prepare(_read_image(source), options)
        batch["touch_background"] = np.broadcast_to(image, batch[modality].shape)
    elif background is not None:
        raise UserError(
            "This model does not subtract a background (config.data.touch.background=''). Remove "
            "the argument background."
        )
    return batch


def _read_image(image: Any) -> np.ndarray:
    """Returns a file, a Pillow image or an array as an array."""
    if isinstance(image, str | os.PathLike):
        return image_files.read_image(image)
    if hasattr(image, "convert"):
        with image_decoding.reading("the Pillow image"):
            return np.asarray(image_decoding.to_rgb(image))
    return np.asarray(image)
