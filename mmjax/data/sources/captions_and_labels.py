"""What the beginnings of records say, without reading their images.

A record begins with its context, which has captions, labels and file names, and goes on with
images and sound: a few hundred bytes of each are enough.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tensorflow as tf

from mmjax.data.storage import lazy_frames, schema
from mmjax.errors import UserError

if TYPE_CHECKING:  # which reads labels by this module
    from mmjax.data.sources.registry import Source

_HEAD = 1024  # bytes of a record that are read first
_CONTEXT = 0x0A  # on the wire: field 1, of a SequenceExample as of an Example
_SLICE = 512  # records that a thread reads at a time
_THREADS = 16

Value = TypeVar("Value")


def read(
    source: Source,
    numbers: Sequence[int],
    said: Callable[[Mapping[str, Any]], Value | None],
    otherwise: Callable[[schema.Example], Value],
    *,
    damaged: Value | None = None,
) -> Iterator[Value]:
    """What `said` makes of the contexts of records, in order.

    Args:
      source: of `mmjax.data.sources.registry.open_source`.
      numbers: of the records.
      said: from a context, {key: tf.train.Feature}; None if it does not say, and the whole record
        is to be read.
      otherwise: the same from a whole record.
      damaged: what stands for a record that cannot be read; None: that is an error.

    Raises:
      UserError: a record that cannot be read.
    """
    parts = [numbers[at : at + _SLICE] for at in range(0, len(numbers), _SLICE)]

    def part(numbers: Sequence[int]) -> list[Value]:
        reader, found = _Reader(source), []
        try:
            for number in map(int, numbers):
                try:
                    found.append(_value(source, reader, number, said, otherwise))
                except UserError:
                    if damaged is None:
                        raise
                    found.append(damaged)
        finally:
            reader.close()
        return found

    with concurrent.futures.ThreadPoolExecutor(min(_THREADS, len(parts) or 1)) as pool:
        yield from itertools.chain.from_iterable(pool.map(part, parts))


def _value(source: Source, reader: _Reader, number: int, said: Callable, otherwise: Callable):
    payload = None if source.files is not None else source.fetch(number)
    try:
        head = reader.context(number) if payload is None else context_of(payload)
        value = said(tf.train.Features.FromString(head).feature)
    except Exception as error:  # protobuf's DecodeError, whose module differs between versions
        raise UserError(
            f"{source.where(number)} cannot be read: {error}. `mmjax validate` looks at every "
            "record of a dataset."
        ) from error
    if value is None:
        payload = source.fetch(number) if payload is None else payload
        value = otherwise(schema.decode(payload, waveform_format="unchecked"))
    return value


class _Reader:
    """Reads the contexts of records in files, and keeps the file open that it has come to."""

    def __init__(self, source: Source):
        self._source = source
        self._file, self._descriptor = -1, -1

    def context(self, number: int) -> bytes:
        """The context of a record, of which no more is read than need be."""
        file, offset, length = (int(value) for value in self._source.index[number])
        if file != self._file:
            self.close()
            self._descriptor = os.open(self._source.files[file], os.O_RDONLY)
            self._file = file
        head = os.pread(self._descriptor, min(_HEAD, length), offset)
        try:
            return context_of(head)
        except EOFError:
            return context_of(os.pread(self._descriptor, length, offset))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._file, self._descriptor = -1, -1


def context_of(payload: bytes) -> bytes:
    """The serialized context of a record, a tf.train.Features; b'' if it has none.

    Args:
      payload: a serialized SequenceExample or Example, or as much of its beginning as is there.

    Raises:
      EOFError: the context goes on behind what is given.
    """
    if not payload or payload[0] != _CONTEXT:
        return b""
    try:
        size, start = lazy_frames.varint(memoryview(payload), 1)
    except IndexError as error:
        raise EOFError("the record ends in its header") from error
    if start + size > len(payload):
        raise EOFError("the record ends in its context")
    return payload[start : start + size]
