"""Batches of examples as a stream, with the policy for corrupt records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline.config import DataConfig
from mmjax.data.pipeline.corrupt import CorruptRecords
from mmjax.data.pipeline.examples import Examples, plain_graph
from mmjax.data.pipeline.order import HostBatch, Order, as_numpy
from mmjax.data.pipeline.phases import Features
from mmjax.data.sources.base import Source

Batch = dict[str, np.ndarray]

_MAX_STEP = np.iinfo(np.int64).max
_ATTEMPT = "_attempt"  # number of examples that failed at this position; private to this module


class BatchStream:
    """The batches of one host.

    With `data.corrupt='skip'`, an example that cannot be made is replaced by the next one of the
    order, up to its `max_attempts`, and after these by zeros.

    Args:
      cfg: The section `data`.
      sources: The sources, by index.
      order: Order of the examples. A finite one ends with an incomplete batch.
      examples: Makes examples from ids.
      host: The part of each batch to read.
    """

    def __init__(
        self,
        cfg: DataConfig,
        sources: Sequence[Source],
        *,
        order: Order,
        examples: Examples,
        host: HostBatch,
    ):
        self._cfg, self._order, self._examples, self._host = cfg, order, examples, host
        self._corrupt = CorruptRecords(
            sources, order=order, examples=examples, max_corrupt=cfg.max_corrupt
        )

    @property
    def corrupt(self) -> int:
        """Number of corrupt records that were skipped so far."""
        return self._corrupt.total

    def iterate(self, first_step: int = 0) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yields `(batch, valid)` of each step; `valid`, bool [B], is False for corrupt examples.

        Raises:
          UserError: A record is corrupt and `data.corrupt='fail'`, or there are too many of them.
        """
        iterator = self._dataset(first_step).as_numpy_iterator()
        step = first_step
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except tf.errors.OpError as error:
                # Records are read ahead, so that the error may be one of later batches.
                ahead = 1 + math.ceil((self._examples.records_per_read - 1) / self._host.size)
                batches = [self._host_ids(step + n) for n in range(ahead)]
                raise self._corrupt.first_error(batches) or error from error
            attempts = batch.pop(_ATTEMPT, np.zeros(len(batch["example_id"]), np.int64))
            if attempts.any():
                self._corrupt.count(attempts, self._host_ids(step))
            yield batch, attempts < self._order.max_attempts
            step += 1

    def _host_ids(self, step: int) -> dict[str, np.ndarray]:
        """Returns the ids of this host's examples of a step."""
        ids = as_numpy(self._ids(tf.constant(step, tf.int64)))
        exists = ids["position"] < (self._order.length or _MAX_STEP)
        return {name: value[exists] for name, value in ids.items()}

    def _ids(self, step: tf.Tensor) -> Features:
        return self._order.ids(self._host.positions(step))

    def _dataset(self, first_step: int) -> tf.data.Dataset:
        length = self._order.length
        last_step = _MAX_STEP if length is None else math.ceil(length / self._host.batch_size)
        ids = tf.data.Dataset.range(first_step, last_step).map(plain_graph(self._ids)).unbatch()
        if length is not None:  # Padding is not read. It can only be at the end of a host's part.
            ids = ids.filter(plain_graph(lambda item: item["position"] < length))
        skip = self._cfg.corrupt == "skip"
        examples = self._with_replacements(ids) if skip else self._examples.dataset(ids)
        dataset = examples.batch(self._host.size, drop_remainder=length is None)
        if self._examples.pipeline.names()["postprocess"]:
            dataset = dataset.map(plain_graph(self._postprocess))
        options = tf.data.Options()
        options.autotune.enabled = False
        # Examples are made in parallel. The ops of one example need no threads of their own.
        options.threading.max_intra_op_parallelism = 1
        options.threading.private_threadpool_size = self._examples.threads
        options.deterministic = True
        return dataset.prefetch(self._cfg.prefetch).with_options(options)

    def _postprocess(self, features: Features) -> Features:
        private = {key: features[key] for key in features if key == _ATTEMPT}
        return self._examples.pipeline.batch(features) | private

    def _with_replacements(self, ids: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the dataset of the examples, or their replacements, with `_attempt`."""
        threads = self._examples.threads
        return ids.interleave(
            plain_graph(self._attempts),
            cycle_length=threads,
            num_parallel_calls=threads,
            deterministic=True,
        )

    def _attempts(self, ids: Features) -> tf.data.Dataset:
        """Returns a dataset of one example: the first one that can be made, or else zeros."""
        limit = self._order.max_attempts

        @plain_graph
        def try_example(attempt: tf.Tensor) -> tf.data.Dataset:
            item = self._order.replacement(ids, attempt)

            def make(records: tf.Tensor) -> Features:
                return self._examples.make(item, records) | {_ATTEMPT: attempt}

            return self._examples.records(item).map(plain_graph(make)).ignore_errors()

        examples = tf.data.Dataset.range(limit).flat_map(try_example)
        zeros = {key: tf.zeros(s.shape, s.dtype) for key, s in self._examples.spec.items()}
        zeros["example_id"] = tf.cast(ids["record"], tf.int32)
        zeros[_ATTEMPT] = tf.constant(limit, tf.int64)
        return examples.concatenate(tf.data.Dataset.from_tensors(zeros)).take(1)


def padded(batch: Batch, size: int) -> Batch:
    """Returns a batch of `size` examples, the missing ones zeros."""
    missing = size - len(batch["example_id"])
    if not missing:
        return batch
    return {
        key: np.concatenate([value, np.zeros((missing, *value.shape[1:]), value.dtype)])
        for key, value in batch.items()
    }
