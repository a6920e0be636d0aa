"""The captions of records, without reading their pictures.

A record begins with its context, which has the captions, and goes on with pictures and sound: a few
hundred bytes of each are enough.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
from collections.abc import Iterator, Sequence

import tensorflow as tf

from mmjax.data import references, schema
from mmjax.data.sources import Source
from mmjax.errors import UserError

_HEAD = 1024  # bytes of a record that are read first
_CONTEXT = 0x0A  # on the wire: field 1, of a SequenceExample as of an Example
_SLICE = 512  # records that a thread reads at a time
_THREADS = 16


def read_captions(source: Source, numbers: Sequence[int]) -> list[list[str]]:
    """The captions of records, in order; [] of a record without.

    Args:
      source: of `mmjax.data.sources.open_source`.
      numbers: of the records.

    Raises:
      UserError: a record that cannot be read.
    """
    return [captions for captions, _ in read_contexts(source, numbers)]


def read_contexts(source: Source, numbers: Sequence[int]) -> Iterator[tuple[list[str], str]]:
    """(captions, file name) of records, in order; see `read_captions`."""
    parts = [numbers[at : at + _SLICE] for at in range(0, len(numbers), _SLICE)]
    with concurrent.futures.ThreadPoolExecutor(min(_THREADS, len(parts) or 1)) as pool:
        yield from itertools.chain.from_iterable(
            pool.map(lambda part: _Reader(source).read(part), parts)
        )


class _Reader:
    """Reads some records of a source, and keeps the file open that it has come to."""

    def __init__(self, source: Source):
        self._source = source
        self._file, self._descriptor = -1, -1

    def read(self, numbers: Sequence[int]) -> list[tuple[list[str], str]]:
        try:
            return [self._read(int(number)) for number in numbers]
        finally:
            self._close()

    def _read(self, number: int) -> tuple[list[str], str]:
        source = self._source
        payload = None if source.files is not None else source.fetch(number)
        try:
            head = self._context(number) if payload is None else context_of(payload)
            context = tf.train.Features.FromString(head).feature
        except Exception as error:  # protobuf's DecodeError, whose module differs between versions
            raise UserError(
                f"{source.where(number)} cannot be read: {error}. `mmjax validate` looks at every "
                "record of a dataset."
            ) from error
        if schema.CAPTIONS[0] in context:
            captions = context[schema.CAPTIONS[0]].bytes_list.value
            names = [v for key in schema.FILENAME for v in context[key].bytes_list.value]
            texts = [value.decode(errors="replace") for value in (*captions, *names[:1])]
            return texts[: len(captions)], "".join(texts[len(captions) :])
        # They may lie among the pictures, as some writers of DMVR's format have it.
        payload = source.fetch(number) if payload is None else payload
        example = schema.decode(payload, waveform_format="unchecked")
        return example.captions, example.filename

    def _context(self, number: int) -> bytes:
        """The context of a record in a file, of which no more is read than need be."""
        file, offset, length = (int(value) for value in self._source.index[number])
        if file != self._file:
            self._close()
            self._descriptor = os.open(self._source.files[file], os.O_RDONLY)
            self._file = file
        head = os.pread(self._descriptor, min(_HEAD, length), offset)
        try:
            return context_of(head)
        except EOFError:
            return context_of(os.pread(self._descriptor, length, offset))

    def _close(self) -> None:
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
        size, start = references.varint(memoryview(payload), 1)
    except IndexError as error:
        raise EOFError("the record ends in its header") from error
    if start + size > len(payload):
        raise EOFError("the record ends in its context")
    return payload[start : start + size]
