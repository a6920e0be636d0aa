"""Training and evaluation batches from the section `data` of a recipe.

    data = make_train_data(cfg.data, batch_size=64, seed=0)
    for step, batch in enumerate(data.iterate(first_step), first_step): ...

A batch is a dict of NumPy arrays with the examples of this host; see `TrainData.spec`. The parts
behind it: `order` says which example is at which position, `examples` makes an example from its
ids, and `stream` batches examples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from mmjax.data.pairs.positives import Positives
from mmjax.data.pipeline import precomputed_features
from mmjax.data.pipeline.common import Context
from mmjax.data.pipeline.config import DataConfig, parse_config
from mmjax.data.pipeline.dmvr.construct import is_stream
from mmjax.data.pipeline.dmvr.stream import StreamEvalData, StreamTrainData
from mmjax.data.pipeline.end_task import count_outputs
from mmjax.data.pipeline.examples import Examples, build_pipeline, build_positive_pipeline
from mmjax.data.pipeline.feature_table import TableEvalData, TableTrainData, is_table
from mmjax.data.pipeline.label import Label, count_classes
from mmjax.data.pipeline.order import EvalOrder, HostBatch, Order, TrainOrder, as_numpy
from mmjax.data.pipeline.phases import Pipeline
from mmjax.data.pipeline.segmentation import class_names
from mmjax.data.pipeline.stream import Batch, BatchStream, padded
from mmjax.data.pipeline.tokenizer import open_tokenizer
from mmjax.data.sources import registry as sources
from mmjax.data.sources.base import Source
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.data.text.tokenizers import Tokenizer
from mmjax.errors import UserError
from mmjax.modalities import stored_name

Spec = dict[str, jax.ShapeDtypeStruct]


class _Loader:
    """The parts that training and evaluation share: `TrainData` and `EvalData` add the order.

    Attributes:
      cfg: The section `data`.
      sources: The sources, by index.
      info: Description of the dataset of the first source.
      infos: Those of all sources.
      order: Which example is at which position.
      examples: Makes an example from its ids.
      tokenizer: Tokenizer of the text; None without text.
      num_classes: Number of classes: of an end task, of segmentation masks, or of labels. None
        without any of them.
      mask_classes: Class names of segmentation masks by value; () without masks.
      num_examples: Number of examples of all sources.
      sample_rate: Sample rate of the audio windows in Hz; None without audio.
      batch_size: Number of examples of a global batch.
      host: The part of the global batch that this host reads.
    """

    def __init__(
        self,
        cfg: DataConfig,
        opened: Sequence[Source],
        *,
        order: Order,
        host: HostBatch,
        seed: int,
        train: bool,
    ):
        self.cfg, self.sources, self.order, self.host = cfg, opened, order, host
        self.infos = [source.info for source in opened]
        self.info: DatasetInfo = self.infos[0]
        self.batch_size, self.num_examples = host.batch_size, order.num_examples
        self.sample_rate = cfg.audio.rate(self.info.sample_rate) if cfg.audio else None
        self.tokenizer: Tokenizer | None = open_tokenizer(cfg) if cfg.text else None
        self.num_classes = count_classes(cfg.label, self.infos) if cfg.label else None
        if cfg.end_task:
            self.num_classes = count_outputs(cfg.end_task, self.infos)
        label_classes = self.num_classes
        self.mask_classes: tuple[str, ...] = ()
        if cfg.segmentation:
            self.mask_classes = tuple(class_names(cfg.segmentation, self.infos))
            self.num_classes = len(self.mask_classes)
        paired = train and cfg.pairs is not None
        context = Context(
            train=train,
            infos=self.infos,
            tokenizer=self.tokenizer,
            num_classes=label_classes,
            features=_open_features(cfg, opened) if train else {},
            # The pipeline of the paired record makes view 1.
            views=[v for v in range(len(cfg.image.crops)) if v != 1] if paired else None,
        )
        self.examples = Examples(
            cfg,
            opened,
            id_names=order.id_names,
            pipeline=build_pipeline(cfg, context),
            positive_pipeline=build_positive_pipeline(cfg) if paired else None,
            seed=seed,
        )
        self._stream = BatchStream(cfg, opened, order=order, examples=self.examples, host=host)

    @property
    def pipeline(self) -> Pipeline:
        """Phases of named functions. Change them before the first call of `iterate`."""
        return self.examples.pipeline

    @property
    def positive_pipeline(self) -> Pipeline | None:
        """The phases of the paired record; None without `data.pairs`."""
        return self.examples.positive_pipeline

    @property
    def threads(self) -> int:
        """Number of threads of the input pipeline."""
        return self.examples.threads

    @property
    def corrupt(self) -> int:
        """Number of corrupt records that this host has skipped so far."""
        return self._stream.corrupt

    @property
    def spec(self) -> Spec:
        """Shapes and types of the batches of one host."""
        zeros = {
            key: tf.zeros([self.host.size, *value.shape], value.dtype)
            for key, value in self.examples.spec.items()
        }
        return {
            key: jax.ShapeDtypeStruct(tuple(value.shape), value.dtype.as_numpy_dtype)
            for key, value in self.pipeline.batch(zeros).items()
        }


def _open_features(cfg: DataConfig, opened: Sequence[Source]) -> dict[str, list[np.ndarray]]:
    """Returns the precomputed features by modality that training reads."""
    return {
        name: precomputed_features.open_features(
            options.features, name, sources=opened, split=cfg.split
        )
        for name, options in cfg.sections.items()
        if getattr(options, "features", "")
    }


class TrainData(_Loader):
    """Endless training batches: batch n is a function of (config, seed, n).

    Args:
      cfg: The section `data`.
      opened: The sources, by index.
      seed: Seed of shuffling, sampling and crops.
      host: The part of the global batch to read.

    Raises:
      UserError: The section does not match the sources.
    """

    def __init__(self, cfg: DataConfig, opened: Sequence[Source], *, seed: int, host: HostBatch):
        positives = None
        if cfg.pairs:
            positives = Positives(cfg.pairs, sources=opened, split=cfg.split)
        order = TrainOrder(
            [source.num_examples for source in opened],
            weights=cfg.weights,
            limit=cfg.limit,
            seed=seed,
            positives=positives,
        )
        super().__init__(cfg, opened, order=order, host=host, seed=seed, train=True)

    def iterate(self, first_step: int = 0) -> Iterator[Batch]:
        """Yields this host's part of the batches of steps `first_step`, `first_step` + 1, …"""
        for batch, _ in self._stream.iterate(first_step):
            yield batch

    def batch_ids(self, step: int) -> dict[str, np.ndarray]:
        """Returns the ids of the global batch of a step.

        Returns:
          `position`, `source`, `record` and, with `data.pairs`, `positive`, int64 [batch_size]
          each; see `mmjax.data.pipeline.order.Order`.
        """
        positions = step * self.batch_size + tf.range(self.batch_size, dtype=tf.int64)
        return as_numpy(self.order.ids(positions))


class EvalData(_Loader):
    """Every example once, in order, padded to whole batches on every host.

    Args:
      cfg: The section `data`.
      source: The source.
      host: The part of the global batch to read.
      max_examples: If positive, only this many examples, the first ones.

    Attributes:
      num_batches: Number of batches.

    Raises:
      UserError: The section does not match the source.
    """

    def __init__(self, cfg: DataConfig, source: Source, *, host: HostBatch, max_examples: int = 0):
        order = EvalOrder(source.num_examples, max_examples=max_examples)
        super().__init__(cfg, [source], order=order, host=host, seed=0, train=False)
        self.num_batches = math.ceil(self.num_examples / self.batch_size)

    @property
    def spec(self) -> Spec:
        """Shapes and types of the batches of one host."""
        mask = jax.ShapeDtypeStruct((self.host.size,), np.float32)
        return super().spec | {"mask": mask}

    def iterate(self) -> Iterator[Batch]:
        """Yields this host's part of each batch.

        `mask` is 1 for an example, and 0 for padding or a corrupt record.
        """
        num_read = 0
        for batch, valid in self._stream.iterate():
            yield padded(batch | {"mask": valid.astype(np.float32)}, self.host.size)
            num_read += 1
        empty = {key: np.zeros(s.shape, s.dtype) for key, s in self.spec.items()}
        for _ in range(num_read, self.num_batches):
            yield {key: value.copy() for key, value in empty.items()}


def make_train_data(
    data_cfg: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainData | StreamTrainData | TableTrainData:
    """Returns the training data of a recipe.

    Args:
      data_cfg: The section `data`; see `mmjax.data.pipeline.config.DataConfig`.
      batch_size: Size of the global batch, over all hosts.
      seed: Seed of shuffling, sampling and crops.
      process_index: Index of this host.
      process_count: Number of hosts; must divide `batch_size`.

    Raises:
      UserError: The section, a dataset or the vocabulary is invalid.
    """
    cfg = parse_config(data_cfg)
    host = HostBatch(
        batch_size=batch_size, process_index=process_index, process_count=process_count
    )
    if len(cfg.specs) == 1 and is_stream(cfg.specs[0]):
        return StreamTrainData(cfg, spec=cfg.specs[0], seed=seed, host=host)
    if len(cfg.specs) == 1 and is_table(cfg.specs[0]):
        return TableTrainData(cfg, spec=cfg.specs[0], seed=seed, host=host)
    if cfg.dmvr:
        raise UserError(
            f"config.data.dmvr is set, but config.data.train={data_cfg.get('train')!r} is not one "
            "DMVR factory (dmvr:package.module:Factory). Remove config.data.dmvr."
        )
    opened = [
        sources.open_source(spec, split=cfg.split, check_crc=cfg.check_crc) for spec in cfg.specs
    ]
    _check_modalities(cfg, opened)
    return TrainData(cfg, opened, seed=seed, host=host)


def make_eval_data(
    data_cfg: Mapping[str, Any],
    *,
    data: str = "",
    split: str = "test",
    batch_size: int,
    num_clips: int | None = None,
    num_audio_clips: int | None = None,
    multi_crop: bool | None = None,
    max_examples: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> EvalData | StreamEvalData | TableEvalData:
    """Returns evaluation data with the modalities and the vocabulary of a recipe.

    Batches have labels whenever the dataset has them.

    Args:
      data_cfg: The section `data` of the training recipe.
      data: Source to evaluate on, as in `data.train`; '' for the first training source.
      split: Split of the source.
      batch_size: Size of the global batch, over all hosts.
      num_clips: Replaces `data.video.num_clips`.
      num_audio_clips: Replaces `data.audio.num_clips`.
      multi_crop: Replaces `data.video.multi_crop`.
      max_examples: If positive, only this many examples, the first ones.
      process_index: Index of this host.
      process_count: Number of hosts; must divide `batch_size`.

    Raises:
      UserError: The section, the dataset or the vocabulary is invalid.
    """
    section = dict(data_cfg)
    changes = (
        ("video", "num_clips", num_clips),
        ("video", "multi_crop", multi_crop),
        ("audio", "num_clips", num_audio_clips),
    )
    for name, key, value in changes:
        if value is not None and section.get(name) is not None:
            section[name] = {**section[name], key: value}
    cfg = parse_config(section)
    spec = data or cfg.specs[0]
    host = HostBatch(
        batch_size=batch_size, process_index=process_index, process_count=process_count
    )
    if is_stream(spec):
        return StreamEvalData(cfg, spec=spec, split=split, max_examples=max_examples, host=host)
    if is_table(spec):
        return TableEvalData(spec=spec, split=split, max_examples=max_examples, host=host)
    source = sources.open_source(spec, split=split, check_crc=cfg.check_crc)
    if cfg.label is None and cfg.end_task is None and source.info.num_classes:
        cfg = dataclasses.replace(cfg, label=Label(multi_label=source.info.multi_label))
    return EvalData(cfg, source, max_examples=max_examples, host=host)


def _check_modalities(cfg: DataConfig, opened: Sequence[Source]) -> None:
    """Raises UserError if no example has a modality of the config: it would be all zeros.

    Only datasets that `mmjax build` wrote count the modalities of all examples. For others they
    are taken from the first record, so they are not checked.
    """
    counts = [source.info.statistics.get("examples_with") for source in opened]
    if not all(counts):
        return
    for name in cfg.sections:
        if name == "end_task":  # its records have keys of their own
            continue
        needed = ("video", "mask") if name == "segmentation" else (stored_name(name),)
        absent = [stored for stored in needed if not any(count.get(stored) for count in counts)]
        if not absent:
            continue
        stored = absent[0]
        listed = "; ".join(
            f"{source.info.name} ({source.directory or source.name}) has "
            f"{', '.join(source.info.modalities)}"
            for source in opened
        )
        raise UserError(
            f"config.data.{name} is set, but no example of config.data.train has {stored}: "
            f"{listed}. Set config.data.{name}=None, or train on another dataset."
        )
