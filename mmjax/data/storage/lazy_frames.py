"""Records without their images: each is replaced by a reference, which says where in the file it
lies.

Of a long clip a few frames are used. Copying all of them from the file's bytes to a tensor and
parsing them costs more than half as much as decoding the few. So a large record is read into a
buffer that is used again, checked, and handed on as a SequenceExample whose images are
references; those of the frames that were chosen are then replaced by what they refer to.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MAGIC = b"\0mmjaxref"  # no image begins like this
_REFERENCE = struct.Struct(f"<{len(_MAGIC)}sIQQ")  # magic, file, offset, length
_DELIMITED = 0x0A  # on the wire: field 1, a length and so many bytes
_FEATURE_LISTS = 0x12  # field 2 of a SequenceExample
# A reference as the one value of a BytesList, of a Feature, in a FeatureList.
_FRAME = b"".join(bytes([_DELIMITED, _REFERENCE.size + more]) for more in (4, 2, 0))


def shorten(payload: memoryview, key: str, *, file: int, offset: int) -> bytes:
    """The record, the values of its feature list `key` replaced by references.

    Args:
      payload: a serialized SequenceExample.
      key: a feature list of bytes, one value each.
      file: number of the file that the references name.
      offset: of the payload in that file.

    Returns:
      A serialized SequenceExample; what is not laid out like this is left as it is.
    """
    try:
        return _without(payload, key.encode(), file, offset)
    except (IndexError, ValueError):  # not ours to judge: the parser names what is wrong
        return bytes(payload)


def parse(value: bytes) -> tuple[int, int, int] | None:
    """(file, offset, length) of a reference; None for anything else."""
    if len(value) != _REFERENCE.size or not value.startswith(_MAGIC):
        return None
    return _REFERENCE.unpack(value)[1:]


def _without(data: memoryview, key: bytes, file: int, offset: int) -> bytes:
    parts = []
    for tag, at, start, end in _fields(data, 0, len(data)):
        if tag != _FEATURE_LISTS:
            parts.append(data[at:end])
            continue
        lists = []
        for _, entry_at, entry, entry_end in _fields(data, start, end):
            fields = list(_fields(data, entry, entry_end))  # of a map: the key, the value
            if len(fields) == 2 and data[fields[0][2] : fields[0][3]] == key:
                frames = b"".join(
                    _FRAME + _REFERENCE.pack(_MAGIC, file, offset + first, length)
                    for first, length in _places(data, *fields[1][2:])
                )
                name = data[fields[0][1] : fields[0][3]]
                lists += _message(0x0A, [name, *_message(0x12, [frames])])
            else:
                lists.append(data[entry_at:entry_end])
        parts += _message(_FEATURE_LISTS, lists)
    return b"".join(parts)


def _places(data: memoryview, at: int, end: int) -> list[tuple[int, int]]:
    """(start, length) of the only value of each feature of a FeatureList of bytes."""
    places = []
    while at < end:
        ends = []
        for _ in range(3):  # Feature, BytesList, value
            if data[at] != _DELIMITED:
                raise ValueError
            size, at = varint(data, at + 1)
            ends.append(at + size)
        if not ends[0] == ends[1] == ends[2] <= end:
            raise ValueError
        places.append((at, size))
        at = ends[2]
    return places


def _fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(tag, start of the field, start of its value, end) of each field of a message."""
    while at < end:
        tag = data[at]
        if tag & 7 != 2 or tag > 127:
            raise ValueError
        size, start = varint(data, at + 1)
        if start + size > end:
            raise ValueError
        yield tag, at, start, start + size
        at = start + size


def _message(tag: int, parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """A message field made of parts, in parts."""
    size, header = sum(map(len, parts)), bytearray([tag])
    while size > 127:
        header.append(size & 127 | 128)
        size >>= 7
    header.append(size)
    return [bytes(header), *parts]


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """(the whole number that begins at `at`, where it ends), as protobuf writes them."""
    value = shift = 0
    while (byte := data[at]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
    return value | byte << shift, at + 1
