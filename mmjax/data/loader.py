"""From the section `data` of a recipe to batches: what the training loop and the evaluators call.

    data = make_train_data(cfg.data, batch_size=64, seed=0)
    for step, batch in enumerate(data.iterate(first_step), first_step): ...

A batch is a dict of numpy arrays, the rows of this host: see `TrainData.spec`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from mmjax.data import dmvr, keywords, modalities, schema, sources, stills, stored
from mmjax.data.config import DataConfig, parse_config
from mmjax.data.corrupt import ATTEMPTS, CorruptRecords
from mmjax.data.dataset import DatasetInfo
from mmjax.data.pipeline import (
    Features,
    Order,
    Pipeline,
    host_positions,
    pure_reader,
    reader,
    resolver,
    rows_of_host,
)
from mmjax.data.sources import Source
from mmjax.data.tokenizers import Tokenizer, WordTokenizer, make_tokenizer, split_words
from mmjax.errors import UserError

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

_FOREVER = np.iinfo(np.int64).max
# Our functions are written in TensorFlow's own terms; translating their Python first only costs
# time.
_as_is = tf.autograph.experimental.do_not_convert


class _Data:
    """What training and evaluation share: sources, the pipeline, and the policy for corrupt
    records.

    Attributes:
      pipeline: phases of named functions; change them before the first call of `iterate`.
      info: of the first source; `infos` of all.
      sample_rate: of the windows of sound in Hz; None without sound.
      tokenizer: or None without text.
      num_classes: or None without labels.
      num_examples: records of all sources together.
      corrupt: how many records this host had to skip so far.
    """

    def __init__(
        self,
        cfg: DataConfig,
        opened: Sequence[Source],
        *,
        train: bool,
        seed: int,
        batch_size: int,
        process_index: int,
        process_count: int,
    ):
        self.cfg, self.train, self.seed, self.batch_size = cfg, train, seed, batch_size
        self.process_index, self.process_count = process_index, process_count
        self.rows = rows_of_host(batch_size, process_count)
        self.sources = opened
        self.infos = [source.info for source in opened]
        self.info: DatasetInfo = self.infos[0]
        self.sample_rate = cfg.audio.rate(self.info.sample_rate) if cfg.audio else None
        self.num_examples = sum(source.num_examples for source in opened)
        self.tokenizer = open_tokenizer(cfg) if cfg.text else None
        self.num_classes = _num_classes(cfg.label, self.infos) if cfg.label else None
        self.pipeline = self._pipeline()
        self._stock = self.pipeline.functions("parse", "sample")
        self._corrupt = CorruptRecords(cfg, opened, train=train, example=self._try_example)

    @property
    def corrupt(self) -> int:
        return self._corrupt.number

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of what `iterate` yields on one host."""
        features = {key: tf.zeros([self.rows, *s.shape], s.dtype) for key, s in self._spec.items()}
        batch = self.pipeline.batch(features) | self._extra(features)
        return {
            key: jax.ShapeDtypeStruct(tuple(value.shape), value.dtype.as_numpy_dtype)
            for key, value in batch.items()
        }

    def _extra(self, features: Features) -> Features:
        return {}

    def _pipeline(self) -> Pipeline:
        cfg, pipeline, train = self.cfg, Pipeline(), self.train
        if cfg.video:
            modalities.add_video(pipeline, cfg.video, infos=self.infos, train=train)
        if cfg.audio:
            modalities.add_audio(pipeline, cfg.audio, infos=self.infos, train=train)
        if cfg.text:
            modalities.add_text(
                pipeline,
                cfg.text,
                tokenizer=self.tokenizer,
                train=train,
                features=self._features("text"),
            )
        if cfg.label:
            modalities.add_label(pipeline, cfg.label, num_classes=self.num_classes)
        for options in (cfg.image, cfg.touch):
            if options:
                features = self._features(options.SECTION)
                stills.add_picture(pipeline, options, train=train, features=features)
        return pipeline

    def _features(self, modality: str) -> list[np.ndarray] | None:
        """What training takes in place of a modality, see `mmjax.data.stored`."""
        folders = getattr(self.cfg, modality).features
        if not (folders and self.train):
            return None
        return stored.open_features(folders, modality, sources=self.sources, split=self.cfg.split)

    def _example(self, ids: Features, serialized: tf.Tensor) -> Features:
        """One example; `ids` says position, source, record and attempt."""
        seed = tf.stack([tf.constant(self.seed, tf.int64), ids["position"]])
        features = self.pipeline.example(
            {
                "_serialized": serialized,
                "_seed": seed,
                "_source": ids["source"],
                "_record": ids["record"],
            }
        )
        features["example_id"] = tf.cast(ids["record"], tf.int32)
        if len(self.sources) > 1:
            features["source"] = tf.cast(ids["source"], tf.int32)
        return features

    @functools.cached_property
    def _function(self):
        """`_example`, traced once for the stream, its types and single records."""
        if self._without:
            self.pipeline.resolve = resolver(self.sources)
        ids = {key: tf.TensorSpec([], tf.int64) for key in _IDS}
        function = tf.function(self._example, autograph=False)
        return function.get_concrete_function(ids, tf.TensorSpec([], tf.string))

    @property
    def _spec(self) -> dict[str, tf.TensorSpec]:
        outputs = self._function.structured_outputs
        return {key: tf.TensorSpec(value.shape, value.dtype) for key, value in outputs.items()}

    def _examples(self, ids: tf.data.Dataset) -> tf.data.Dataset:
        """Dataset of ids → dataset of examples, in the same order."""
        pure = self.cfg.read == "tf"
        read = pure_reader(self.sources) if pure else reader(self.sources, without=self._without)
        several = dict(num_parallel_calls=self.threads, deterministic=True)

        if self.cfg.corrupt == "skip":
            attempts = _as_is(lambda item: self._attempts(item, read))
            return ids.interleave(attempts, cycle_length=self.threads, **several)

        @_as_is
        def opened(item: Features) -> tf.data.Dataset:
            return read(item["source"], item["record"]).map(_as_is(lambda text: (item, text)))

        @_as_is
        def fetched(items: Features) -> tuple[Features, tf.Tensor]:
            return items, read(items["source"], items["record"])

        @_as_is
        def alone(item: Features) -> Features:
            serialized = read(item["source"][None], item["record"][None])
            return self._function(item, tf.reshape(serialized, []))

        together = self._records_per_read()
        if not pure and together == 1:  # large records: unbatch would copy them
            return ids.map(alone, **several)
        if pure:
            records = ids.interleave(opened, cycle_length=self.threads, **several)
        else:
            records = ids.batch(together).map(fetched, **several).unbatch()
        return records.map(_as_is(lambda *record: self._function(*record)), **several)

    @functools.cached_property
    def _without(self) -> str | None:
        """The feature list of which only what is sampled is read: the frames, if records are
        large. Functions of the user's own may want all of it."""
        own = self.pipeline.functions("parse", "sample") != self._stock
        indexed = all(source.index is not None for source in self.sources)
        if own or not indexed or self.cfg.read == "tf" or not (self.cfg.video or self.cfg.image):
            return None
        return schema.FRAMES[0] if self._records_per_read() == 1 else None

    def _records_per_read(self) -> int:
        """About a megabyte: small records share the cost of a call, large ones are read in "
        "parallel."""
        lengths = [np.mean(s.index[:, 2]) for s in self.sources if s.index is not None]
        return int(np.clip(2**20 / max(lengths), 1, 32)) if lengths else 1

    def _attempts(self, item: Features, read: Callable) -> tf.data.Dataset:
        """The example, or what the policy puts in its place; adds '_attempt'."""
        sizes = tf.constant([source.num_examples for source in self.sources], tf.int64)

        @_as_is
        def attempt(number):
            now = item | {"record": (item["record"] + number) % sizes[item["source"]]}

            @_as_is
            def example(serialized):
                return self._function(now, serialized) | {"_attempt": number}

            # The reading too must happen where its errors can be ignored: not here, but in `map`.
            if self.cfg.read == "tf":
                serialized = read(now["source"], now["record"])
            else:
                one = tf.data.Dataset.from_tensors((now["source"][None], now["record"][None]))
                serialized = one.map(_as_is(lambda *which: read(*which)[0]))
            return serialized.map(example).ignore_errors()

        tries = tf.data.Dataset.range(ATTEMPTS if self.train else 1).flat_map(attempt)
        nothing = {key: tf.zeros(spec.shape, spec.dtype) for key, spec in self._spec.items()}
        nothing["example_id"] = tf.cast(item["record"], tf.int32)
        nothing["_attempt"] = tf.constant(ATTEMPTS, tf.int64)
        return tries.concatenate(tf.data.Dataset.from_tensors(nothing)).take(1)

    @property
    def threads(self) -> int:
        return self.cfg.threads or len(os.sched_getaffinity(0))

    def _batches(self, ids: tf.data.Dataset, *, drop_remainder: bool) -> tf.data.Dataset:
        # What begins with '_' is for us, not for the phases: '_attempt' goes around postprocess.
        @_as_is
        def postprocess(features: Features) -> Features:
            kept = {key: features[key] for key in features if key == "_attempt"}
            return self.pipeline.batch(features) | kept

        dataset = self._examples(ids).batch(self.rows, drop_remainder=drop_remainder)
        if self.pipeline.names()["postprocess"]:
            dataset = dataset.map(postprocess)
        options = tf.data.Options()
        options.autotune.enabled = False
        # Examples are made side by side; the operations of one example need no threads of their
        # own.
        options.threading.max_intra_op_parallelism = 1
        options.threading.private_threadpool_size = self.threads
        options.deterministic = True
        return dataset.prefetch(self.cfg.prefetch).with_options(options)

    def _run(self, dataset: tf.data.Dataset, ids_of: Callable[[int], Features]) -> Iterator[Batch]:
        """Batches of `dataset`; `ids_of` gives the ids of this host's rows in batch number n."""
        number = 0
        iterator = dataset.as_numpy_iterator()
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except tf.errors.OpError as error:
                ahead = 1 + math.ceil((self._records_per_read() - 1) / self.rows)
                batches = [ids_of(n) for n in range(number, number + ahead)]
                raise self._corrupt.culprit(batches) or error from error
            if self.cfg.corrupt == "skip" and batch["_attempt"].any():
                self._corrupt.count(batch["_attempt"], ids_of(number))
            yield self._finished(batch)
            number += 1

    def _finished(self, batch: Batch) -> Batch:
        batch.pop("_attempt", None)
        return batch

    def _try_example(self, item: dict[str, int], serialized: bytes) -> None:
        """Makes one example outside of the stream, for the error that comes with it."""
        ids = {key: tf.constant(value, tf.int64) for key, value in item.items()}
        self._function(ids, tf.constant(serialized))


_IDS = ("position", "source", "record")


class TrainData(_Data):
    """Endless training batches, batch n a function of (configuration, seed, n)."""

    def __init__(self, cfg: DataConfig, opened: Sequence[Source], **kwargs):
        super().__init__(cfg, opened, train=True, **kwargs)
        self._sizes = [source.num_examples for source in opened]
        self._used = [min(size, cfg.limit or size) for size in self._sizes]
        self.num_examples = sum(self._used)
        self._order = Order(self._used, weights=cfg.weights or None, seed=self.seed)

    def iterate(self, first_step: int = 0) -> Iterator[Batch]:
        """This host's rows of the batches of steps `first_step`, `first_step` + 1, …"""
        ids = tf.data.Dataset.range(first_step, _FOREVER).map(_as_is(self._ids)).unbatch()
        dataset = self._batches(ids, drop_remainder=True)
        return self._run(dataset, lambda number: self._host_ids(first_step + number))

    def batch_ids(self, step: int) -> dict[str, np.ndarray]:
        """int64 [global batch] each: `position`, `source`, `record` of the rows of a step."""
        positions = step * self.batch_size + tf.range(self.batch_size, dtype=tf.int64)
        source, record = self._records(positions)
        return {
            "position": positions.numpy(),
            "source": source.numpy(),
            "record": record.numpy(),
        }

    def _host_ids(self, step: int) -> dict[str, np.ndarray]:
        first = self.process_index * self.rows
        return {k: v[first : first + self.rows] for k, v in self.batch_ids(step).items()}

    def _ids(self, step: tf.Tensor) -> Features:
        positions = host_positions(
            step,
            batch_size=self.batch_size,
            process_index=self.process_index,
            process_count=self.process_count,
        )
        source, record = self._records(positions)
        return {"position": positions, "source": source, "record": record}

    def _records(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Source and record of each position; `limit` takes records at even distances."""
        source, number = self._order(positions)
        if self._used == self._sizes:
            return source, number
        size, used = tf.constant(self._sizes, tf.int64), tf.constant(self._used, tf.int64)
        return source, number * tf.gather(size, source) // tf.gather(used, source)


class EvalData(_Data):
    """Every example once, in order, padded to whole batches on every host. See `make_eval_data`."""

    def __init__(
        self, cfg: DataConfig, opened: Sequence[Source], *, max_examples: int = 0, **kwargs
    ):
        super().__init__(cfg, opened, train=False, seed=0, **kwargs)
        if max_examples:
            self.num_examples = min(self.num_examples, max_examples)
        self.num_batches = math.ceil(self.num_examples / self.batch_size)

    def iterate(self) -> Iterator[Batch]:
        """This host's rows; `mask` is 1 for an example, 0 for padding or a corrupt record."""
        ids = tf.data.Dataset.range(self.num_batches).map(_as_is(self._ids)).unbatch()
        # Padding can only be at the end of a host's rows: it need not be read.
        ids = ids.filter(_as_is(lambda item: item["position"] < self.num_examples))
        dataset = self._batches(ids, drop_remainder=False)
        produced = 0
        for batch in self._run(dataset, self._host_ids):
            yield batch
            produced += 1
        spec = self.spec
        for _ in range(produced, self.num_batches):
            yield {key: np.zeros(value.shape, value.dtype) for key, value in spec.items()}

    def _extra(self, features: Features) -> Features:
        return {"mask": tf.zeros([self.rows])}

    def _finished(self, batch: Batch) -> Batch:
        rows = len(batch["example_id"])
        batch["mask"] = (batch.pop("_attempt", np.zeros(rows)) == 0).astype(np.float32)
        if rows == self.rows:
            return batch
        return {
            key: np.concatenate(
                [value, np.zeros((self.rows - rows, *value.shape[1:]), value.dtype)]
            )
            for key, value in batch.items()
        }

    def _host_ids(self, number: int) -> dict[str, np.ndarray]:
        ids = self._ids(tf.constant(number, tf.int64))
        ids = {key: value.numpy() for key, value in ids.items()}
        real = ids["position"] < self.num_examples
        return {key: value[real] for key, value in ids.items()}

    def _ids(self, batch: tf.Tensor) -> Features:
        positions = host_positions(
            batch,
            batch_size=self.batch_size,
            process_index=self.process_index,
            process_count=self.process_count,
        )
        return {"position": positions, "source": tf.zeros_like(positions), "record": positions}


def make_train_data(
    data_cfg: Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainData | dmvr.StreamTrainData:
    """Training data of a recipe.

    Args:
      data_cfg: the section `data`, see `DataConfig`.
      batch_size: global, over all hosts.
      seed: of shuffling, sampling, crops.
      process_index: this host.
      process_count: number of hosts; `batch_size` must be a multiple of it.

    Raises:
      UserError: anything wrong with the section, the datasets or the vocabulary.
    """
    cfg = parse_config(data_cfg)
    hosts = dict(batch_size=batch_size, process_index=process_index, process_count=process_count)
    if len(cfg.specs) == 1 and dmvr.is_stream(cfg.specs[0]):
        return dmvr.StreamTrainData(cfg, spec=cfg.specs[0], seed=seed, **hosts)
    opened = [
        sources.open_source(spec, split=cfg.split, check_crc=cfg.check_crc) for spec in cfg.specs
    ]
    _check_present(cfg, [source.info for source in opened])
    return TrainData(cfg, opened, seed=seed, **hosts)


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
) -> EvalData | dmvr.StreamEvalData:
    """A dataset to evaluate on, with the modalities and the vocabulary of a recipe.

    Labels come along whenever the dataset has them.

    Args:
      data_cfg: the section `data` of the training recipe.
      data: a specification as in `data.train`; '' is the first training source.
      split: of it.
      batch_size: global, over all hosts.
      num_clips: instead of `data.video.num_clips`.
      num_audio_clips: instead of `data.audio.num_clips`.
      multi_crop: instead of `data.video.multi_crop`.
      max_examples: only so many, the first; 0 is all.
      process_index: this host.
      process_count: number of hosts; `batch_size` must be a multiple of it.

    Raises:
      UserError: as `make_train_data`.
    """
    section = {key: value for key, value in data_cfg.items()}
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
    hosts = dict(batch_size=batch_size, process_index=process_index, process_count=process_count)
    if dmvr.is_stream(spec):
        return dmvr.StreamEvalData(cfg, spec=spec, split=split, max_examples=max_examples, **hosts)
    source = sources.open_source(spec, split=split, check_crc=cfg.check_crc)
    if cfg.label is None and source.info.num_classes:
        cfg = dataclasses.replace(cfg, label=modalities.Label(multi_label=source.info.multi_label))
    return EvalData(cfg, [source], max_examples=max_examples, **hosts)


def _check_present(cfg: DataConfig, infos: Sequence[DatasetInfo]) -> None:
    """Raises if no example has a modality that is asked for: training would see zeros only.

    Only what `mmjax build` counted is sure; other datasets are known by their first record.
    """
    counts = [info.statistics.get("examples_with") for info in infos]
    if not all(counts):
        return
    for name, counted in {**{name: name for name in schema.MODALITIES}, "image": "video"}.items():
        if getattr(cfg, name, None) and not any(count.get(counted) for count in counts):
            there = "; ".join(f"{i.name}: {', '.join(i.modalities)}" for i in infos)
            raise UserError(
                f"data.{name} is asked for, but no example has it ({there}). Set "
                f"config.data.{name}=None, or train on another dataset."
            )


def open_tokenizer(cfg: DataConfig) -> Tokenizer:
    """The tokenizer of `data.text`. Its vocabulary is `data.text.vocab`, or else the training
    data's, whatever is evaluated on; the log names it.

    Raises:
      UserError: there is no vocabulary, or not one for this tokenizer.
    """
    text, vocab = cfg.text, os.path.expanduser(cfg.text.vocab)
    if not vocab and text.tokenizer == "word":
        vocab = sources.vocabulary(cfg.specs[0], split=cfg.split)
    tokenizer = make_tokenizer(
        text.tokenizer, vocab=vocab, merges=text.merges, max_words=text.max_words
    )
    _name_vocabulary(text.tokenizer, tokenizer.vocab, tokenizer.vocab_size)
    if text.keywords and text.tokenizer == "word":
        _check_inserted(text.keywords, tokenizer)
    return tokenizer


def _check_inserted(options: keywords.Keywords, tokenizer: WordTokenizer) -> None:
    """Raises if `data.text.keywords` inserts words that the vocabulary lacks: all would be the
    same unknown one."""
    words = {word for text in keywords.inserted(options) for word in split_words(text)}
    if unknown_words := sorted(words - set(tokenizer.words)):
        some = ", ".join(unknown_words[:8]) + (" …" if len(unknown_words) > 8 else "")
        more = f" --synonyms {options.synonyms}" if options.synonyms else ""
        more += f' --prompt "{options.prompt}"' if options.prompt else ""
        raise UserError(
            f"data.text.keywords inserts {len(unknown_words)} words that the vocabulary "
            f"{tokenizer.vocab} lacks: {some}. Count them in: mmjax vocab FOLDER --keywords{more}"
        )


@functools.cache  # every dataset that is opened makes a tokenizer: once is enough
def _name_vocabulary(name: str, vocab: str, size: int) -> None:
    log.info("Vocabulary: %s, %d words, tokenizer %s.", vocab, size, name)


def _num_classes(label: modalities.Label, infos: Sequence[DatasetInfo]) -> int:
    if label.num_classes:
        return label.num_classes
    known = {info.num_classes for info in infos}
    if len(known) != 1 or known == {0}:
        raise UserError(
            "data.label.num_classes is not set, and the datasets say: "
            + ", ".join(f"{info.name} {info.num_classes or 'unknown'}" for info in infos)
            + ". Set it."
        )
    return known.pop()
