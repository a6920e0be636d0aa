"""Datasets that come as a DMVR factory: an object with `configure` and `make_dataset`.

Such a factory samples, decodes and shuffles by itself and gives a stream of batches. So step n can
only be reached by reading and dropping what comes before, and every host reads the whole batch and
keeps its rows.
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
from mmjax.data.pipeline.phases import examples_per_host
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.errors import UserError

log = logging.getLogger(__name__)


def is_stream(spec: str) -> bool:
    """Whether a specification names a factory: `dmvr:package.module:Factory`."""
    return spec.startswith("dmvr:")


class Factory:
    """An object with DMVR's `configure` and `make_dataset`.

    Args:
      spec: `dmvr:package.module:Factory`. Factory is called with the split (as `subset` if it has
        such a parameter) if it takes arguments, else without.
      split: given to the factory.
      train: given to `configure` as `is_training`.
      wishes: values for those parameters of `configure` that it names, such as `num_frames`.

    Raises:
      UserError: the object cannot be imported or made, or lacks one of the two methods.
    """

    # What DMVR's and VATT's factories call the fields of a batch.
    FIELDS = {
        "video": ("image", "vision", "video"),
        "audio": ("audio", "waveform"),
        "text": ("text_indices", "text"),
        "label": ("label", "label_index"),
    }

    def __init__(self, spec: str, *, split: str, train: bool, wishes: dict[str, Any]):
        _, _, path = spec.partition(":")
        module, colon, name = path.partition(":")
        if not colon:
            raise UserError(f"{spec}: write dmvr:package.module:Factory.")
        try:
            make = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"{spec} cannot be imported: {error}. Is the package installed, or on PYTHONPATH?"
            ) from error
        self.name, self.split = spec, split
        self._factory = self._made(make, split)
        for method in ("configure", "make_dataset"):
            if not hasattr(self._factory, method):
                raise UserError(f"{spec} has no method {method}(): not a DMVR factory.")
        named = inspect.signature(self._factory.configure).parameters
        self._factory.configure(
            **{
                k: v
                for k, v in (wishes | {"is_training": train, "zero_centering_image": False}).items()
                if k in named
            }
        )

    @staticmethod
    def _made(make: Callable | Any, split: str):
        if hasattr(make, "configure") and not inspect.isclass(make):
            return make
        parameters = inspect.signature(make).parameters
        if "subset" in parameters:
            return make(subset=split)
        return make(split) if parameters else make()

    def batches(self, *, batch_size: int, train: bool, skip: int = 0) -> tf.data.Dataset:
        """The factory's batches from number `skip` on; endless in training, complete in tests."""
        dataset = self._factory.make_dataset(
            shuffle=train,
            num_epochs=-1 if train else 1,
            batch_size=batch_size,
            drop_remainder=train,
        )
        if skip:
            log.warning(
                "%s is a stream: reading and dropping %d batches to resume.", self.name, skip
            )
        return dataset.skip(skip)

    @classmethod
    def fields(cls, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A factory's batch with our names and types.

        Frames as floats in [0, 1] become uint8; tokens [B, W] become [B, 1, W]; labels given as one
        number per class stay so, others become int32 [B].
        """
        found = {
            ours: next((batch[name] for name in names if name in batch), None)
            for ours, names in cls.FIELDS.items()
        }
        out = {}
        if (video := found["video"]) is not None:
            if video.dtype != np.uint8:
                if video.min() < 0 or video.max() > 1:
                    raise UserError(
                        f"A DMVR factory gives frames in [{video.min():g}, {video.max():g}]; "
                        "expected uint8, or "
                        "floats in [0, 1] (zero_centering_image=False)."
                    )
                video = np.round(video * 255).astype(np.uint8)
            out["video"] = video
        if (audio := found["audio"]) is not None:
            out["audio"] = audio.reshape(len(audio), -1).astype(np.float32)  # maybe [B, S, 1]
        if (text := found["text"]) is not None and np.issubdtype(text.dtype, np.integer):
            out["text"] = (text[:, None] if text.ndim == 2 else text).astype(np.int32)
        if (label := found["label"]) is not None:
            single = label.ndim == 1 or label.shape[-1] == 1
            out["label"] = (
                label.reshape(-1).astype(np.int32) if single else label.astype(np.float32)
            )
        return out


class _Stream:
    """What training and evaluation share. There is no `pipeline`: the factory is one.

    Attributes:
      info: what the options say; a factory says nothing.
      tokenizer: None: the factory's own is used.
      num_classes: what the options say.
      sample_rate: what the options say.
      corrupt: 0.
    """

    tokenizer = None
    corrupt = 0

    def __init__(
        self,
        cfg: DataConfig,
        *,
        spec: str,
        split: str,
        train: bool,
        batch_size: int,
        process_index: int,
        process_count: int,
    ):
        for name in ("image", "touch"):
            if getattr(cfg, name):
                raise UserError(
                    f"data.{name}: {spec} is a stream of DMVR, which has no such images. Use a "
                    f"dataset folder (`mmjax build`), or set data.{name}=None."
                )
        if cfg.text and (cfg.text.keywords or cfg.text.features):
            raise UserError(
                f"data.text.keywords and features need records; {spec} is a stream, whose own "
                "words are taken."
            )
        self.batch_size, self.rows = batch_size, examples_per_host(batch_size, process_count)
        self._first, self._train = process_index * self.rows, train
        self.num_classes = (cfg.label.num_classes or None) if cfg.label else None
        self._wanted = {n for n in ("video", "audio", "text", "label") if getattr(cfg, n)}
        self._factory = Factory(spec, split=split, train=train, wishes=_wishes(cfg, train=train))
        self.info = DatasetInfo(
            name=spec,
            modalities=tuple(sorted(self._wanted)),
            num_classes=self.num_classes or 0,
        )
        self.sample_rate = cfg.audio.rate(0) if cfg.audio else None
        self._views = {}
        if cfg.video:
            self._views["video"] = (cfg.video.views, cfg.video.num_frames)
        if cfg.audio:
            self._views["audio"] = (cfg.audio.num_clips, cfg.audio.num_samples)

    def _fields(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        fields = Factory.fields(batch)
        for name in self._wanted - fields.keys():
            raise UserError(
                f"{self._factory.name} gives no {name}; its batches have "
                f"{', '.join(sorted(batch))}. Set data.{name}=None."
            )
        fields = {name: fields[name] for name in sorted(self._wanted)}
        if not self._train:
            fields |= {
                name: self._with_views(name, fields[name]) for name in self._views if name in fields
            }
        for name in fields.keys() & {"video", "audio"}:
            fields[f"{name}_mask"] = np.ones(len(fields[name]), np.float32)
        if "text" in fields:
            fields["text_mask"] = (fields["text"] != 0).any(-1).astype(np.float32)
        return fields

    def _with_views(self, name: str, value: np.ndarray) -> np.ndarray:
        """[B, V, length, …]; DMVR lays test views out along time, or along the batch."""
        views, length = self._views[name]
        return value.reshape(-1, views, length, *value.shape[2:])

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of what `iterate` yields on one host; reads one batch to know."""
        batch = next(iter(self.iterate()))
        return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


class StreamTrainData(_Stream):
    """Endless training batches of a factory; see `mmjax.data.pipeline.loader.TrainData`.

    Attributes:
      num_examples: None: a stream does not say its length.
    """

    num_examples = None

    def __init__(self, cfg: DataConfig, *, spec: str, seed: int, **hosts: int):
        super().__init__(cfg, spec=spec, split=cfg.split, train=True, **hosts)
        if cfg.limit:
            raise UserError(f"data.limit={cfg.limit}: {spec} is a stream; limit it in the factory.")
        self._seed = seed

    def iterate(self, first_step: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """This host's rows from `first_step` on; `example_id` is the place in the stream."""
        tf.random.set_seed(
            self._seed
        )  # what little order there can be: hosts must agree on the batch
        dataset = self._factory.batches(batch_size=self.batch_size, train=True, skip=first_step)
        for step, batch in enumerate(dataset.as_numpy_iterator(), first_step):
            fields = self._fields(batch)
            fields["example_id"] = (
                np.arange(self.batch_size, dtype=np.int32) + step * self.batch_size
            )
            yield {k: v[self._first : self._first + self.rows] for k, v in fields.items()}

    def batch_ids(self, step: int) -> dict[str, np.ndarray]:
        """int64 [global batch] `position`: the rows' places in the stream."""
        return {"position": np.arange(self.batch_size) + step * self.batch_size}


class StreamEvalData(_Stream):
    """One pass over a factory's examples; see `mmjax.data.pipeline.loader.EvalData`."""

    def __init__(self, cfg: DataConfig, *, spec: str, split: str, max_examples: int, **hosts: int):
        super().__init__(cfg, spec=spec, split=split, train=False, **hosts)
        self._limit = max_examples or None

    @property
    def num_batches(self) -> int:
        """Counted by going through the stream once."""
        return math.ceil(self.num_examples / self.batch_size)

    @property
    def num_examples(self) -> int:
        """Counted by going through the stream once."""
        return sum(len(next(iter(batch.values()))) for batch in self._examples())

    def iterate(self) -> Iterator[dict[str, np.ndarray]]:
        """This host's rows, padded; `mask` is 1 for an example."""
        seen = 0
        for batch in self._examples():
            rows = len(next(iter(batch.values())))
            batch["example_id"] = np.arange(seen, seen + rows, dtype=np.int32)
            batch["mask"] = np.ones(rows, np.float32)
            seen += rows
            missing = self.batch_size - rows
            yield {
                k: np.concatenate([v, np.zeros((missing, *v.shape[1:]), v.dtype)])[
                    self._first : self._first + self.rows
                ]
                for k, v in batch.items()
            }

    def _examples(self) -> Iterator[dict[str, np.ndarray]]:
        left = self._limit
        for batch in self._factory.batches(
            batch_size=self.batch_size, train=False
        ).as_numpy_iterator():
            fields = self._fields(batch)
            if left is not None:
                fields = {k: v[:left] for k, v in fields.items()}
                left -= len(next(iter(fields.values())))
            yield fields
            if left == 0:
                return


def _wishes(cfg: DataConfig, *, train: bool) -> dict[str, Any]:
    """Our options by the names that DMVR's and VATT's factories give them."""
    wishes = {}
    if video := cfg.video:
        wishes |= {
            "num_frames": video.num_frames,
            "stride": video.stride,
            "crop_size": video.size,
            "min_resize": video.min_resize or video.size,
            "crop_resize_style": {"vgg": "VGG", "inception": "Inception"}[video.crop],
            "num_test_clips": video.num_clips,
            "multi_crop": video.multi_crop,
        }
    if audio := cfg.audio:
        wishes |= {"num_samples": audio.num_samples, "audio_stride": audio.stride}
    if text := cfg.text:
        wishes |= {"max_num_words": text.max_tokens, "max_context_sentences": text.candidates}
    if cfg.label:
        wishes |= {"one_hot_label": cfg.label.multi_label}
    return wishes
