"""Reads the contexts of records (captions, labels, file names) without their images.

A serialized record starts with its context, a few hundred bytes, before images and audio.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tensorflow as tf

from mmjax.data.sources.base import Source
from mmjax.data.storage import lazy_frames, schema
from mmjax.errors import UserError

_HEAD_BYTES = 1024  # read first; the whole record is read if its context is longer
_CONTEXT_TAG = 0x0A  # on the wire: field 1 of a SequenceExample, and of an Example
_RECORDS_PER_TASK = 512
_THREADS = 16

Value = TypeVar("Value")


def read(
    source: Source,
    records: Sequence[int],
    *,
    from_context: Callable[[Mapping[str, Any]], Value | None],
    from_example: Callable[[schema.Example], Value],
    damaged: Value | None = None,
) -> Iterator[Value]:
    """Yields one value per record, in the order of `records`.

    Args:
      source: A source from `mmjax.data.sources.registry.open_source`.
      records: Indices of the records.
      from_context: Computes the value from a context, {key: tf.train.Feature}. Returns None if the
        context does not contain it; the whole record is read then.
      from_example: Computes the value from a whole record.
      damaged: Value for records that cannot be read; None raises an error for them.

    Raises:
      UserError: A record cannot be read.
    """
    starts = range(0, len(records), _RECORDS_PER_TASK)
    parts = [records[start : start + _RECORDS_PER_TASK] for start in starts]

    def read_part(part: Sequence[int]) -> list[Value]:
        reader, values = _Reader(source), []
        try:
            for record in map(int, part):
                try:
                    values.append(_value(source, reader, record, from_context, from_example))
                except UserError:
                    if damaged is None:
                        raise
                    values.append(damaged)
        finally:
            reader.close()
        return values

    with concurrent.futures.ThreadPoolExecutor(min(_THREADS, len(parts) or 1)) as pool:
        yield from itertools.chain.from_iterable(pool.map(read_part, parts))


def _value(
    source: Source, reader: _Reader, record: int, from_context: Callable, from_example: Callable
) -> Any:
    payload = None if source.files is not None else source.fetch(record)
    try:
        context = reader.context(record) if payload is None else context_of(payload)
        value = from_context(tf.train.Features.FromString(context).feature)
    except Exception as error:  # protobuf's DecodeError, whose module differs between versions
        raise UserError(
            f"{source.where(record)} cannot be read: {error}. Run `mmjax validate` to check every "
            "record of the dataset."
        ) from error
    if value is None:
        payload = source.fetch(record) if payload is None else payload
        where = source.where(record)
        value = from_example(schema.decode(payload, waveform_format="unchecked", where=where))
    return value


class _Reader:
    """Reads contexts from shards. Keeps the last shard open for the next record."""

    def __init__(self, source: Source):
        self._source = source
        self._file, self._descriptor = -1, -1

    def context(self, record: int) -> bytes:
        """Returns the serialized context of a record; reads the whole record only if needed."""
        file, offset, length = (int(value) for value in self._source.index[record])
        if file != self._file:
            self.close()
            self._descriptor = os.open(self._source.files[file], os.O_RDONLY)
            self._file = file
        head = os.pread(self._descriptor, min(_HEAD_BYTES, length), offset)
        try:
            return context_of(head)
        except EOFError:
            return context_of(os.pread(self._descriptor, length, offset))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._file, self._descriptor = -1, -1


def context_of(payload: bytes) -> bytes:
    """Returns the serialized context of a record, a tf.train.Features; b'' without a context.

    Args:
      payload: A serialized SequenceExample or Example, or its first bytes.

    Raises:
      EOFError: The context is longer than `payload`.
    """
    if not payload or payload[0] != _CONTEXT_TAG:
        return b""
    try:
        size, start = lazy_frames.varint(memoryview(payload), 1)
    except IndexError as error:
        raise EOFError("the record ends in its header") from error
    if start + size > len(payload):
        raise EOFError("the record ends in its context")
    return payload[start : start + size]
