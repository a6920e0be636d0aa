"""Data from a DMVR factory: an object with the methods `configure` and `make_dataset`.

Such a factory samples, decodes and shuffles by itself and returns a stream of batches. Step n can
be reached only by reading and dropping the batches before it, and every host reads the whole batch
and keeps its part.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from mmjax.data.pipeline.config import DataConfig
from mmjax.data.pipeline.order import HostBatch
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.errors import UserError

log = logging.getLogger(__name__)

# Names that DMVR's and VATT's factories give to the batch fields.
_FIELDS = {
    "video": ("image", "vision", "video"),
    "audio": ("audio", "waveform"),
    "text": ("text_indices", "text"),
    "label": ("label", "label_index"),
}


def is_stream(spec: str) -> bool:
    """Returns whether a source specification names a factory: `dmvr:package.module:Factory`."""
    return spec.startswith("dmvr:")


class Factory:
    """An object with DMVR's `configure` and `make_dataset`.

    Args:
      spec: `dmvr:package.module:Factory`. If Factory takes arguments it is called with the split,
        as `subset` if it has such a parameter, else without arguments.
      split: Split to read.
      train: Value of `is_training` for `configure`.
      options: Values for those parameters of `configure` that it has, for example `num_frames`.

    Raises:
      UserError: The object cannot be imported or made, or lacks one of the two methods.
    """

    def __init__(self, spec: str, *, split: str, train: bool, options: dict[str, Any]):
        make = _import(spec)
        self.name = spec
        self._factory = _make(make, split)
        for method in ("configure", "make_dataset"):
            if not hasattr(self._factory, method):
                raise UserError(
                    f"{spec} is not a DMVR factory: it has no method {method}(). See "
                    "github.com/google-deepmind/dmvr."
                )
        parameters = inspect.signature(self._factory.configure).parameters
        options = options | {"is_training": train, "zero_centering_image": False}
        self._factory.configure(**{k: v for k, v in options.items() if k in parameters})

    def batches(self, *, batch_size: int, train: bool, skip: int = 0) -> tf.data.Dataset:
        """Returns the factory's batches: endless in training, all examples once in evaluation.

        Args:
          batch_size: Number of examples per batch.
          train: Whether to shuffle and repeat.
          skip: Number of batches to drop.
        """
        dataset = self._factory.make_dataset(
            shuffle=train,
            num_epochs=-1 if train else 1,
            batch_size=batch_size,
            drop_remainder=train,
        )
        if skip:
            log.warning(
                "%s is a stream without random access: reading and dropping %d batches to resume.",
                self.name,
                skip,
            )
        return dataset.skip(skip)


def _import(spec: str) -> Callable | Any:
    """Returns the object that a specification names."""
    module, colon, name = spec.partition(":")[2].partition(":")
    if not colon:
        raise UserError(f"{spec}: a DMVR factory is specified as dmvr:package.module:Factory.")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"Cannot import {spec}: {error}. Install the package, or add its directory to "
            "PYTHONPATH."
        ) from error


def _make(make: Callable | Any, split: str) -> Any:
    """Returns the factory object: the imported one, or the result of calling it."""
    if hasattr(make, "configure") and not inspect.isclass(make):
        return make
    parameters = inspect.signature(make).parameters
    if "subset" in parameters:
        return make(subset=split)
    return make(split) if parameters else make()


def batch_fields(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a factory's batch with the names and types of ours.

    Frames that are floats in [0, 1] become uint8. Tokens [B, W] become [B, 1, W]. Labels with one
    value per class stay float32 [B, C]; others become int32 [B].

    Raises:
      UserError: Frames are neither uint8 nor floats in [0, 1].
    """
    values = {
        field: next((batch[name] for name in names if name in batch), None)
        for field, names in _FIELDS.items()
    }
    fields = {}
    if (video := values["video"]) is not None:
        if video.dtype != np.uint8:
            if video.min() < 0 or video.max() > 1:
                raise UserError(
                    f"A DMVR factory returned frames in [{video.min():g}, {video.max():g}]; "
                    "expected uint8, or floats in [0, 1] (zero_centering_image=False)."
                )
            video = np.round(video * 255).astype(np.uint8)
        fields["video"] = video
    if (audio := values["audio"]) is not None:
        fields["audio"] = audio.reshape(len(audio), -1).astype(np.float32)  # maybe [B, S, 1]
    if (text := values["text"]) is not None and np.issubdtype(text.dtype, np.integer):
        fields["text"] = (text[:, None] if text.ndim == 2 else text).astype(np.int32)
    if (label := values["label"]) is not None:
        single = label.ndim == 1 or label.shape[-1] == 1
        fields["label"] = label.reshape(-1).astype(np.int32) if single else label.astype(np.float32)
    return fields


class _Stream:
    """The part that training and evaluation share. There is no `pipeline`: the factory is one.

    Attributes:
      info: Description from the options of the config; a factory does not provide one.
      tokenizer: None: the factory tokenizes.
      num_classes: Number of classes from the options; None without labels.
      sample_rate: Sample rate of the audio from the options, in Hz; None without audio.
      corrupt: 0: corrupt records are the factory's responsibility.
      batch_size: Number of examples of a global batch.
    """

    tokenizer = None
    corrupt = 0

    def __init__(self, cfg: DataConfig, *, spec: str, split: str, train: bool, host: HostBatch):
        _check_supported(cfg, spec)
        self.batch_size, self._host, self._train = host.batch_size, host, train
        self.num_classes = (cfg.label.num_classes or None) if cfg.label else None
        self._names = sorted(name for name in _FIELDS if getattr(cfg, name))
        self._factory = Factory(spec, split=split, train=train, options=_factory_options(cfg))
        self.info = DatasetInfo(
            name=spec, modalities=tuple(self._names), num_classes=self.num_classes or 0
        )
        self.sample_rate = cfg.audio.rate(0) if cfg.audio else None
        self._views: dict[str, tuple[int, int]] = {}  # (number of views, length)
        if cfg.video:
            self._views["video"] = (cfg.video.views, cfg.video.num_frames)
        if cfg.audio:
            self._views["audio"] = (cfg.audio.num_clips, cfg.audio.num_samples)

    def _fields(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        fields = batch_fields(batch)
        for name in self._names:
            if name not in fields:
                raise UserError(
                    f"{self._factory.name} returns no {name}; its batches have "
                    f"{', '.join(sorted(batch))}. Set data.{name}=None."
                )
        fields = {name: fields[name] for name in self._names}
        if not self._train:
            fields |= {
                name: self._split_views(name, fields[name])
                for name in self._views
                if name in fields
            }
        for name in fields.keys() & {"video", "audio"}:
            fields[f"{name}_mask"] = np.ones(len(fields[name]), np.float32)
        if "text" in fields:
            fields["text_mask"] = (fields["text"] != 0).any(-1).astype(np.float32)
        return fields

    def _split_views(self, name: str, value: np.ndarray) -> np.ndarray:
        """Returns [B, V, length, …]. DMVR puts the views of an example along time or the batch."""
        views, length = self._views[name]
        return value.reshape(-1, views, length, *value.shape[2:])

    def iterate(self) -> Iterator[dict[str, np.ndarray]]:
        raise NotImplementedError

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the batches of one host; reads one batch."""
        batch = next(iter(self.iterate()))
        return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def _check_supported(cfg: DataConfig, spec: str) -> None:
    """Raises UserError if the config has options that a DMVR factory does not support."""
    for name in ("image", "touch"):
        if getattr(cfg, name):
            raise UserError(
                f"data.{name} is not supported by {spec}: DMVR factories return no such images. "
                f"Train on a dataset folder (`mmjax build`), or set data.{name}=None."
            )
    unset = {"keywords": "None", "features": "''"}
    for key, value in unset.items():
        if cfg.text and getattr(cfg.text, key):
            raise UserError(
                f"data.text.{key} is not supported by {spec}: DMVR factories return token ids "
                f"instead of records with captions. Set data.text.{key}={value}, or train on a "
                "dataset folder (`mmjax build`)."
            )


class StreamTrainData(_Stream):
    """Endless training batches of a factory; see `mmjax.data.pipeline.loader.TrainData`.

    Attributes:
      num_examples: None: the length of a stream is unknown.
    """

    num_examples = None

    def __init__(self, cfg: DataConfig, *, spec: str, seed: int, host: HostBatch):
        super().__init__(cfg, spec=spec, split=cfg.split, train=True, host=host)
        if cfg.limit:
            raise UserError(
                f"data.limit={cfg.limit} is not supported by {spec}: it is a stream. Set "
                "data.limit=0, and limit the number of examples in the factory."
            )
        self._seed = seed

    def iterate(self, first_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields this host's part from `first_step` on; `example_id` is the stream position."""
        # The best order that is possible here: hosts must agree on the batch.
        tf.random.set_seed(self._seed)
        dataset = self._factory.batches(batch_size=self.batch_size, train=True, skip=first_step)
        for step, batch in enumerate(dataset.as_numpy_iterator(), first_step):
            fields = self._fields(batch)
            fields["example_id"] = (
                np.arange(self.batch_size, dtype=np.int32) + step * self.batch_size
            )
            yield {k: v[self._host.slice] for k, v in fields.items()}

    def batch_ids(self, step: int) -> dict[str, np.ndarray]:
        """Returns the stream positions of a global batch: `position`, int64 [batch_size]."""
        return {"position": np.arange(self.batch_size) + step * self.batch_size}


class StreamEvalData(_Stream):
    """One pass over a factory's examples; see `mmjax.data.pipeline.loader.EvalData`."""

    def __init__(
        self, cfg: DataConfig, *, spec: str, split: str, max_examples: int, host: HostBatch
    ):
        super().__init__(cfg, spec=spec, split=split, train=False, host=host)
        self._max_examples = max_examples or None

    @property
    def num_batches(self) -> int:
        """Number of batches; reads the whole stream."""
        return math.ceil(self.num_examples / self.batch_size)

    @property
    def num_examples(self) -> int:
        """Number of examples; reads the whole stream."""
        return sum(len(next(iter(batch.values()))) for batch in self._examples())

    def iterate(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields this host's part of each batch, padded; `mask` is 1 for an example."""
        first = 0
        for batch in self._examples():
            count = len(next(iter(batch.values())))
            batch["example_id"] = np.arange(first, first + count, dtype=np.int32)
            batch["mask"] = np.ones(count, np.float32)
            first += count
            missing = self.batch_size - count
            padded = {
                k: np.concatenate([v, np.zeros((missing, *v.shape[1:]), v.dtype)])
                for k, v in batch.items()
            }
            yield {k: v[self._host.slice] for k, v in padded.items()}

    def _examples(self) -> Iterator[dict[str, np.ndarray]]:
        left = self._max_examples
        batches = self._factory.batches(batch_size=self.batch_size, train=False)
        for batch in batches.as_numpy_iterator():
            fields = self._fields(batch)
            if left is not None:
                fields = {k: v[:left] for k, v in fields.items()}
                left -= len(next(iter(fields.values())))
            yield fields
            if left == 0:
                return


def _factory_options(cfg: DataConfig) -> dict[str, Any]:
    """Returns our options under the names of DMVR's and VATT's factories."""
    options: dict[str, Any] = {}
    if video := cfg.video:
        options |= {
            "num_frames": video.num_frames,
            "stride": video.stride,
            "crop_size": video.size,
            "min_resize": video.min_resize or video.size,
            "crop_resize_style": {"vgg": "VGG", "inception": "Inception"}[video.crop],
            "num_test_clips": video.num_clips,
            "multi_crop": video.multi_crop,
        }
    if audio := cfg.audio:
        options |= {"num_samples": audio.num_samples, "audio_stride": audio.stride}
    if text := cfg.text:
        options |= {"max_num_words": text.max_tokens, "max_context_sentences": text.candidates}
    if cfg.label:
        options |= {"one_hot_label": cfg.label.multi_label}
    return options
