"""From ids to examples: reads the records of an example, then runs the phases of the pipeline."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from mmjax.cpus import available_cpus
from mmjax.data.pipeline.common import Context
from mmjax.data.pipeline.config import MODALITIES, DataConfig
from mmjax.data.pipeline.order import as_tensors
from mmjax.data.pipeline.phases import Features, Function, Pipeline
from mmjax.data.pipeline.readers import pure_reader, reader, resolver
from mmjax.data.sources.base import Source
from mmjax.data.storage import schema

# Phases whose functions see the encoded record.
_READING_PHASES = ("parse", "sample")

# Functions for tf.data are written in TensorFlow ops. Converting their Python takes time only.
plain_graph = tf.autograph.experimental.do_not_convert


def build_pipeline(cfg: DataConfig, context: Context) -> Pipeline:
    """Returns the pipeline of all modalities of a config."""
    pipeline = Pipeline()
    for name, options in cfg.sections.items():
        _, add = MODALITIES[name]
        add(pipeline, options, context)
    return pipeline


def build_positive_pipeline(cfg: DataConfig) -> Pipeline:
    """Returns the pipeline of the paired record: it makes the second view of the image."""
    pipeline = Pipeline()
    _, add = MODALITIES["image"]
    add(pipeline, cfg.image, Context(train=True, views=[1]))
    return pipeline


class Examples:
    """Makes examples from their ids.

    An example has R records: its own and, with `data.pairs`, that of the paired record.

    Args:
      cfg: The section `data`.
      sources: The sources, by index.
      id_names: Names of the ids; see `mmjax.data.pipeline.order.Order`.
      pipeline: Phases of the record. Its functions may be changed until the first example is made.
      positive_pipeline: Phases of the paired record; None without `data.pairs`.
      seed: Seed of the random choices.

    Attributes:
      pipeline: As above.
      positive_pipeline: As above.
      threads: Number of threads of the input pipeline.
    """

    def __init__(
        self,
        cfg: DataConfig,
        sources: Sequence[Source],
        *,
        id_names: Sequence[str],
        pipeline: Pipeline,
        positive_pipeline: Pipeline | None = None,
        seed: int,
    ):
        self._cfg, self._sources, self._seed = cfg, sources, seed
        self._id_names = tuple(id_names)
        self._record_names = [name for name in id_names if name in ("record", "positive")]
        self.pipeline, self.positive_pipeline = pipeline, positive_pipeline
        self._built_in = self._reading_functions()

    @property
    def threads(self) -> int:
        return self._cfg.threads or available_cpus()

    @property
    def spec(self) -> dict[str, tf.TensorSpec]:
        """Shapes and types of one example."""
        outputs = self.make.structured_outputs
        return {key: tf.TensorSpec(value.shape, value.dtype) for key, value in outputs.items()}

    @functools.cached_property
    def make(self) -> tf.types.experimental.ConcreteFunction:
        """Function (ids, serialized records string [R]) -> example, traced once for all uses."""
        if self.omitted_list:
            for pipeline in self._pipelines():
                pipeline.resolve = resolver(self._sources)
        ids = {name: tf.TensorSpec([], tf.int64) for name in self._id_names}
        function = tf.function(self._make, autograph=False)
        return function.get_concrete_function(
            ids, tf.TensorSpec([len(self._record_names)], tf.string)
        )

    def make_one(self, ids: Mapping[str, int], serialized: Sequence[bytes]) -> None:
        """Makes one example outside of tf.data, to get the error that it raises, if any."""
        self.make(as_tensors(ids), tf.constant(serialized))

    def dataset(self, ids: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the dataset of the examples of a dataset of ids, in the same order."""
        parallel = dict(num_parallel_calls=self.threads, deterministic=True)

        @plain_graph
        def make(item: Features, serialized: tf.Tensor) -> Features:
            return self.make(item, serialized)

        if self._cfg.read == "tf":

            @plain_graph
            def pair_with_records(item: Features) -> tf.data.Dataset:
                return self.records(item).map(plain_graph(lambda records: (item, records)))

            records = ids.interleave(pair_with_records, cycle_length=self.threads, **parallel)
            return records.map(make, **parallel)

        read, count = self._read, self.records_per_read
        if count == 1:  # large records, which unbatch would copy
            return ids.map(plain_graph(lambda item: make(item, read(item))), **parallel)
        read_many = plain_graph(lambda items: (items, read(items)))
        records = ids.batch(count).map(read_many, **parallel).unbatch()
        return records.map(make, **parallel)

    def records(self, ids: Features) -> tf.data.Dataset:
        """Returns a dataset with the serialized records of one example, string [R].

        Errors of reading are raised by the dataset, where `ignore_errors` can handle them.
        """
        if self._cfg.read == "tf":
            read, source = self._pure_read, ids["source"]
            each = tuple(read(source, record) for record in tf.unstack(self._record_indices(ids)))
            stack = plain_graph(lambda *records: tf.stack(records))
            return tf.data.Dataset.zip(each).map(stack)
        return tf.data.Dataset.from_tensors(ids).map(plain_graph(self._read))

    @functools.cached_property
    def omitted_list(self) -> str | None:
        """Key of a feature list of which only the sampled values are read; None for none.

        These are the frames, if records are large. Custom functions may need all of them.
        """
        custom = self._reading_functions() != self._built_in
        indexed = all(source.index is not None for source in self._sources)
        if custom or not indexed or self._cfg.read == "tf":
            return None
        if not (self._cfg.video or self._cfg.image) or self.records_per_read > 1:
            return None
        return schema.FRAMES[0]

    @functools.cached_property
    def records_per_read(self) -> int:
        """Number of examples whose records one call reads: about a megabyte.

        Small records share the cost of a call. Large ones are read in parallel.
        """
        lengths = [np.mean(s.index[:, 2]) for s in self._sources if s.index is not None]
        return int(np.clip(2**20 / max(lengths), 1, 32)) if lengths else 1

    def _make(self, ids: Features, serialized: tf.Tensor) -> Features:
        seed = tf.stack([tf.constant(self._seed, tf.int64), ids["position"]])
        common = {"_seed": seed, "_source": ids["source"]}
        features = self.pipeline.example(
            {**common, "_serialized": serialized[0], "_record": ids["record"]}
        )
        if self.positive_pipeline:
            positive = self.positive_pipeline.example(
                {**common, "_serialized": serialized[1], "_record": ids["positive"]}
            )
            own = features["image"]
            features["image"] = tf.concat([own[:1], positive["image"], own[1:]], 0)
            features["image_mask"] *= positive["image_mask"]
        features["example_id"] = tf.cast(ids["record"], tf.int32)
        if len(self._sources) > 1:
            features["source"] = tf.cast(ids["source"], tf.int32)
        return features

    def _read(self, ids: Features) -> tf.Tensor:
        """Reads the records of ids [...]; returns string [..., R]."""
        read = reader(self._sources, without=self.omitted_list)
        records = self._record_indices(ids)
        sources = tf.broadcast_to(ids["source"][..., None], tf.shape(records))
        serialized = read(tf.reshape(sources, [-1]), tf.reshape(records, [-1]))
        return tf.ensure_shape(tf.reshape(serialized, tf.shape(records)), records.shape)

    @functools.cached_property
    def _pure_read(self):
        with tf.init_scope():  # its constants are for all datasets, not for the one being traced
            return pure_reader(self._sources)

    def _record_indices(self, ids: Features) -> tf.Tensor:
        """Returns the indices of all records of each example, int64 [..., R]."""
        return tf.stack([ids[name] for name in self._record_names], -1)

    def _pipelines(self) -> list[Pipeline]:
        return [p for p in (self.pipeline, self.positive_pipeline) if p is not None]

    def _reading_functions(self) -> list[Function]:
        """Returns the functions that see the encoded record."""
        return [f for p in self._pipelines() for f in p.functions(*_READING_PHASES)]
