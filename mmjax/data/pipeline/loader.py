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

from mmjax.data.pairs import positives
from mmjax.data.pipeline import dmvr, image_modality, keywords, modalities, precomputed_features
from mmjax.data.pipeline.config import DataConfig, parse_config
from mmjax.data.pipeline.corrupt import ATTEMPTS, CorruptRecords
from mmjax.data.pipeline.phases import (
    Features,
    Order,
    Pipeline,
    examples_per_host,
    host_positions,
    permuted,
    pure_reader,
    reader,
    resolver,
)
from mmjax.data.sources import registry as sources
from mmjax.data.sources.base import Source
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.data.text.tokenizers import Tokenizer, WordTokenizer, make_tokenizer
from mmjax.data.text.word_vocab import split_words
from mmjax.errors import UserError
from mmjax.modalities import MODALITIES, stored_name

log = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

_DRAWS = 2**31 - 1  # among which the remainder of a division by a few neighbors favors none
_FOREVER = np.iinfo(np.int64).max
# Our functions are written in TensorFlow's own terms; translating their Python first only costs
# time.
_as_is = tf.autograph.experimental.do_not_convert


class _Data:
    """What training and evaluation share: sources, the pipeline, and the policy for corrupt
    records.

    Attributes:
      pipeline: phases of named functions; change them before the first call of `iterate`.
      partner_pipeline: those of the neighbor's image; None without `data.pairs`.
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
        self.rows = examples_per_host(batch_size, process_count)
        self.sources = opened
        self.infos = [source.info for source in opened]
        self.info: DatasetInfo = self.infos[0]
        self.sample_rate = cfg.audio.rate(self.info.sample_rate) if cfg.audio else None
        self.num_examples = sum(source.num_examples for source in opened)
        self.tokenizer = open_tokenizer(cfg) if cfg.text else None
        self.num_classes = _num_classes(cfg.label, self.infos) if cfg.label else None
        paired = train and cfg.pairs is not None
        self._id_names = (*_IDS, "positive") if paired else _IDS
        self.positive_pipeline = Pipeline() if paired else None
        self.pipeline = self._pipeline()
        self._stock = self._reading_functions()
        self._corrupt = CorruptRecords(
            cfg, opened, train=train, example=self._try_example, following=self._try_following
        )

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
                views = None
                if options is cfg.image and self.positive_pipeline:
                    image_modality.add_image(self.positive_pipeline, options, train=True, views=[1])
                    views = [view for view in range(len(options.crops)) if view != 1]
                image_modality.add_image(
                    pipeline, options, train=train, features=features, views=views
                )
        return pipeline

    def _reading_functions(self) -> list:
        """What may look at a record as it was read."""
        pipelines = (self.pipeline, self.positive_pipeline)
        return [f for pipeline in pipelines if pipeline for f in pipeline.functions(*_READING)]

    def _features(self, modality: str) -> list[np.ndarray] | None:
        """What training takes in place of a modality, see `mmjax.data.pipeline.precomputed_features`."""
        directories = getattr(self.cfg, modality).features
        if not (directories and self.train):
            return None
        return precomputed_features.open_features(
            directories, modality, sources=self.sources, split=self.cfg.split
        )

    def _example(self, ids: Features, serialized: tf.Tensor) -> Features:
        """One example of its records, string [R]; `ids` says which and where."""
        seed = tf.stack([tf.constant(self.seed, tf.int64), ids["position"]])
        given = {"_seed": seed, "_source": ids["source"]}
        features = self.pipeline.example(
            {**given, "_serialized": serialized[0], "_record": ids["record"]}
        )
        if self.positive_pipeline:
            other = self.positive_pipeline.example(
                {**given, "_serialized": serialized[1], "_record": ids["positive"]}
            )
            own = features["image"]
            features["image"] = tf.concat([own[:1], other["image"], own[1:]], 0)
            features["image_mask"] *= other["image_mask"]
        features["example_id"] = tf.cast(ids["record"], tf.int32)
        if len(self.sources) > 1:
            features["source"] = tf.cast(ids["source"], tf.int32)
        return features

    @functools.cached_property
    def _function(self):
        """`_example`, traced once for the stream, its types and single records."""
        if self._without:
            for pipeline in filter(None, (self.pipeline, self.positive_pipeline)):
                pipeline.resolve = resolver(self.sources)
        ids = {key: tf.TensorSpec([], tf.int64) for key in self._id_names}
        function = tf.function(self._example, autograph=False)
        number = len(self._id_names) - len(_IDS) + 1
        return function.get_concrete_function(ids, tf.TensorSpec([number], tf.string))

    @property
    def _spec(self) -> dict[str, tf.TensorSpec]:
        outputs = self._function.structured_outputs
        return {key: tf.TensorSpec(value.shape, value.dtype) for key, value in outputs.items()}

    def _examples(self, ids: tf.data.Dataset) -> tf.data.Dataset:
        """Dataset of ids → dataset of examples, in the same order."""
        pure = self.cfg.read == "tf"
        read = pure_reader(self.sources) if pure else reader(self.sources, without=self._without)
        several = dict(num_parallel_calls=self.threads, deterministic=True)

        def texts(items: Features) -> tf.Tensor:  # ids [...] → string [..., R]
            records = self._records_of(items)
            sources = tf.broadcast_to(items["source"][..., None], tf.shape(records))
            found = read(tf.reshape(sources, [-1]), tf.reshape(records, [-1]))
            return tf.ensure_shape(tf.reshape(found, tf.shape(records)), records.shape)

        def opened(item: Features) -> tf.data.Dataset:  # ids [] → dataset of one string [R]
            if not pure:
                # The reading too must happen where its errors can be ignored: in `map`.
                return tf.data.Dataset.from_tensors(item).map(_as_is(texts))
            each = tuple(read(item["source"], r) for r in tf.unstack(self._records_of(item)))
            return tf.data.Dataset.zip(each).map(_as_is(lambda *found: tf.stack(found)))

        if self.cfg.corrupt == "skip":
            attempts = _as_is(lambda item: self._attempts(item, opened))
            return ids.interleave(attempts, cycle_length=self.threads, **several)

        together = self._records_per_read()
        if not pure and together == 1:  # large records: unbatch would copy them
            return ids.map(_as_is(lambda item: self._function(item, texts(item))), **several)
        if pure:
            named = _as_is(lambda item: opened(item).map(_as_is(lambda found: (item, found))))
            records = ids.interleave(named, cycle_length=self.threads, **several)
        else:
            fetched = _as_is(lambda items: (items, texts(items)))
            records = ids.batch(together).map(fetched, **several).unbatch()
        return records.map(_as_is(lambda *record: self._function(*record)), **several)

    def _records_of(self, items: Features) -> tf.Tensor:
        """int64 [..., R]: the numbers of all records of each example."""
        return tf.stack([items[name] for name in self._id_names[len(_IDS) - 1 :]], -1)

    @functools.cached_property
    def _without(self) -> str | None:
        """The feature list of which only what is sampled is read: the frames, if records are
        large. Functions of the user's own may want all of it."""
        own = self._reading_functions() != self._stock
        indexed = all(source.index is not None for source in self.sources)
        if own or not indexed or self.cfg.read == "tf" or not (self.cfg.video or self.cfg.image):
            return None
        return schema.FRAMES[0] if self._records_per_read() == 1 else None

    def _records_per_read(self) -> int:
        """About a megabyte: small records share a call's cost, large ones are read in parallel."""
        lengths = [np.mean(s.index[:, 2]) for s in self.sources if s.index is not None]
        return int(np.clip(2**20 / max(lengths), 1, 32)) if lengths else 1

    def _attempts(self, item: Features, opened: Callable) -> tf.data.Dataset:
        """The example, or what the policy puts in its place; adds '_attempt'."""

        @_as_is
        def attempt(number):
            now = self._following(item, number)
            example = _as_is(lambda texts: self._function(now, texts) | {"_attempt": number})
            return opened(now).map(example).ignore_errors()

        tries = tf.data.Dataset.range(ATTEMPTS if self.train else 1).flat_map(attempt)
        nothing = {key: tf.zeros(spec.shape, spec.dtype) for key, spec in self._spec.items()}
        nothing["example_id"] = tf.cast(item["record"], tf.int32)
        nothing["_attempt"] = tf.constant(ATTEMPTS, tf.int64)
        return tries.concatenate(tf.data.Dataset.from_tensors(nothing)).take(1)

    def _following(self, item: Features, number: tf.Tensor) -> Features:
        """Ids of the example that comes in the place of another after so many attempts."""
        sizes = tf.constant([source.num_examples for source in self.sources], tf.int64)
        return item | {"record": (item["record"] + number) % sizes[item["source"]]}

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

    def _try_example(self, item: dict[str, int], serialized: list[bytes]) -> None:
        """Makes one example outside of the stream, for the error that comes with it."""
        self._function(_tensors(item), tf.constant(serialized))

    def _try_following(self, item: dict[str, int], number: int) -> dict[str, int]:
        following = self._following(_tensors(item), tf.constant(number, tf.int64))
        return {key: int(value) for key, value in following.items()}


_IDS = ("position", "source", "record")  # and with pairs, 'positive'
_READING = ("parse", "sample")


def _tensors(item: Mapping[str, int]) -> Features:
    return {key: tf.constant(value, tf.int64) for key, value in item.items()}


class TrainData(_Data):
    """Endless training batches, batch n a function of (configuration, seed, n)."""

    def __init__(self, cfg: DataConfig, opened: Sequence[Source], **kwargs):
        super().__init__(cfg, opened, train=True, **kwargs)
        self._sizes = [source.num_examples for source in opened]
        self._positives = None
        if cfg.pairs:
            self._positives = positives.Positives(cfg.pairs, sources=opened, split=cfg.split)
            self._sizes = self._positives.sizes
        self._used = [min(size, cfg.limit or size) for size in self._sizes]
        self.num_examples = sum(self._used)
        self._order = Order(self._used, weights=cfg.weights or None, seed=self.seed)

    def iterate(self, first_step: int = 0) -> Iterator[Batch]:
        """This host's rows of the batches of steps `first_step`, `first_step` + 1, …"""
        ids = tf.data.Dataset.range(first_step, _FOREVER).map(_as_is(self._ids)).unbatch()
        dataset = self._batches(ids, drop_remainder=True)
        return self._run(dataset, lambda number: self._host_ids(first_step + number))

    def batch_ids(self, step: int) -> dict[str, np.ndarray]:
        """int64 [global batch] each: `position`, `source`, `record` of the rows of a step; with
        `data.pairs` also `positive`, the record of the neighbor."""
        positions = step * self.batch_size + tf.range(self.batch_size, dtype=tf.int64)
        return {key: value.numpy() for key, value in self._ids_at(positions).items()}

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
        return self._ids_at(positions)

    def _ids_at(self, positions: tf.Tensor) -> Features:
        """Ids of the examples of some positions; `limit` takes records at even distances."""
        source, number = self._order(positions)
        if self._used != self._sizes:
            size, used = tf.constant(self._sizes, tf.int64), tf.constant(self._used, tf.int64)
            number = number * tf.gather(size, source) // tf.gather(used, source)
        ids = {"position": positions, "source": source, "record": number}
        if self._positives:
            ids |= self._paired(self._positives.pair, positions, source, number)
        return ids

    def _paired(self, function: Callable, positions: tf.Tensor, *given: tf.Tensor) -> Features:
        """What a method of `Positives` gives for examples [n], the neighbor being drawn."""
        drawn = permuted(
            tf.zeros_like(positions), tf.constant(_DRAWS, tf.int64), self.seed, -2, positions
        )
        types = [tf.int64, tf.int64]
        pair = tf.numpy_function(function, [*given, drawn], types, stateful=False)
        return {
            name: tf.ensure_shape(value, positions.shape)
            for name, value in zip(("record", "positive"), pair, strict=True)
        }

    def _following(self, item: Features, number: tf.Tensor) -> Features:
        if not self._positives:
            return super()._following(item, number)
        given = [x[None] for x in (item["position"], item["source"], item["record"], number)]
        pair = self._paired(self._positives.following, *given)
        return item | {name: value[0] for name, value in pair.items()}


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
    for name in MODALITIES:
        stored = stored_name(name)
        if getattr(cfg, name, None) and not any(count.get(stored) for count in counts):
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
        text.tokenizer, vocab=vocab, merges=text.merges, max_tokens=text.max_tokens
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
