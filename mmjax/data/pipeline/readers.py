"""Functions that read serialized records inside tf.data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline.phases import Resolver
from mmjax.data.sources.base import Source
from mmjax.errors import UserError


def reader(
    sources: Sequence[Source], *, without: str | None = None
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function (source [n], record [n]) -> serialized records, string [n].

    It makes one call into Python, which reads with `os.preadv` and checks CRCs: the fastest way
    for local files. The call costs as much as reading a small record, so it takes vectors.

    Args:
      sources: The sources, by index.
      without: Key of a feature list whose values are replaced by references for `resolver`; None
        reads complete records.
    """

    def fetch(source_indices, records):
        payloads = [
            sources[index].fetch_without(without, record)
            if without
            else sources[index].fetch(record)
            for index, record in zip(source_indices.tolist(), records.tolist(), strict=True)
        ]
        return np.array(payloads, object)

    def read(source, record):
        serialized = tf.numpy_function(fetch, [source, record], tf.string, stateful=False)
        return tf.ensure_shape(serialized, source.shape)

    return read


def resolver(sources: Sequence[Source]) -> Resolver:
    """Returns a function (source [], values [n]) -> values [n] that resolves references.

    It replaces the references of `reader(sources, without=...)` by the bytes that they refer to.
    """

    def fetch(source_index, values):
        return np.array(sources[int(source_index)].resolve(values.tolist()), object)

    def resolve(source, values):
        resolved = tf.numpy_function(fetch, [source, values], tf.string, stateful=False)
        return tf.ensure_shape(resolved, values.shape)

    return resolve


def pure_reader(sources: Sequence[Source]) -> Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]:
    """Returns a function (source [], record []) -> dataset of one serialized record.

    It uses only TensorFlow ops and reads TensorFlow's remote file systems (gs://, s3://). It does
    not check CRCs.

    Raises:
      UserError: A source has no TFRecord shards.
    """
    for source in sources:
        if source.index is None:
            raise UserError(
                f"data.read='tf' reads only TFRecord shards, but the source {source.name} has "
                "none. Set data.read='pread'."
            )
    files = [file for source in sources for file in source.files]
    first_file = np.cumsum([0] + [len(source.files) for source in sources])
    index = np.concatenate(
        [source.index + [[first, 0, 0]] for source, first in zip(sources, first_file, strict=False)]
    )
    first_record = tf.constant(np.cumsum([0] + [s.num_examples for s in sources])[:-1], tf.int64)
    sizes = tf.constant([tf.io.gfile.stat(file).length for file in files], tf.int64)
    files, index = tf.constant(files), tf.constant(index)

    def read(source, record):
        file, offset, length = tf.unstack(index[first_record[source] + record])
        return tf.data.FixedLengthRecordDataset(
            files[file][None],
            record_bytes=length,
            header_bytes=offset,
            footer_bytes=sizes[file] - offset - length,
            buffer_size=length,
        )

    return read
