"""Records whose images are replaced by references to byte ranges of the shard.

Training uses a few frames of a long clip. Copying all frames to a tensor and parsing them costs
more than half as much as decoding the few. So a large record is read into a reused buffer, checked,
and passed on as a SequenceExample with references instead of images. Only the references of the
sampled frames are then replaced by the images, with another read of the shard.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MAGIC = b"\0mmjaxref"  # no image starts with these bytes
_REFERENCE = struct.Struct(f"<{len(_MAGIC)}sIQQ")  # magic, file, offset, length
# Tags of the protobuf wire format: field number, and the type 'length-delimited'.
_FIELD_1 = 0x0A
_FIELD_2 = 0x12
_FEATURE_LISTS = _FIELD_2  # of a SequenceExample
# The bytes before a reference that is the only value of a BytesList in a Feature of a FeatureList.
_FRAME = b"".join(bytes([_FIELD_1, _REFERENCE.size + more]) for more in (4, 2, 0))


def shorten(payload: memoryview, key: str, *, file: int, offset: int) -> bytes:
    """Returns a record with the values of the feature list `key` replaced by references.

    Args:
      payload: A serialized SequenceExample.
      key: A feature list of bytes with one value per feature.
      file: Index of the file, to put into the references.
      offset: Offset of the payload in that file.

    Returns:
      A serialized SequenceExample. A record in another layout is returned unchanged.
    """
    try:
        return _without(payload, key.encode(), file, offset)
    except (IndexError, ValueError):  # the parser of the record reports the problem
        return bytes(payload)


def parse(value: bytes) -> tuple[int, int, int] | None:
    """Returns (file, offset, length) of a reference, or None for any other value."""
    if len(value) != _REFERENCE.size or not value.startswith(_MAGIC):
        return None
    return _REFERENCE.unpack(value)[1:]


def _without(data: memoryview, key: bytes, file: int, offset: int) -> bytes:
    parts = []
    for tag, field_start, start, end in _fields(data, 0, len(data)):
        if tag != _FEATURE_LISTS:
            parts.append(data[field_start:end])
            continue
        entries = []
        for _, entry_start, entry, entry_end in _fields(data, start, end):
            fields = list(_fields(data, entry, entry_end))  # of a map entry: key and value
            if len(fields) == 2 and data[fields[0][2] : fields[0][3]] == key:
                frames = b"".join(
                    _FRAME + _REFERENCE.pack(_MAGIC, file, offset + first, length)
                    for first, length in _value_ranges(data, *fields[1][2:])
                )
                name = data[fields[0][1] : fields[0][3]]
                entries += _message(_FIELD_1, [name, *_message(_FIELD_2, [frames])])
            else:
                entries.append(data[entry_start:entry_end])
        parts += _message(_FEATURE_LISTS, entries)
    return b"".join(parts)


def _value_ranges(data: memoryview, position: int, end: int) -> list[tuple[int, int]]:
    """Returns (start, length) of the only value of each feature of a FeatureList of bytes."""
    ranges = []
    while position < end:
        ends = []
        for _ in range(3):  # Feature, BytesList, value
            if data[position] != _FIELD_1:
                raise ValueError
            size, position = varint(data, position + 1)
            ends.append(position + size)
        if not ends[0] == ends[1] == ends[2] <= end:
            raise ValueError
        ranges.append((position, size))
        position = ends[2]
    return ranges


def _fields(data: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields (tag, start of the field, start of its value, end) of each field of a message."""
    while position < end:
        tag = data[position]
        if tag & 7 != 2 or tag > 127:
            raise ValueError
        size, start = varint(data, position + 1)
        if start + size > end:
            raise ValueError
        yield tag, position, start, start + size
        position = start + size


def _message(tag: int, parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """Returns the parts of a length-delimited field that contains `parts`."""
    size, header = sum(map(len, parts)), bytearray([tag])
    while size > 127:
        header.append(size & 127 | 128)
        size >>= 7
    header.append(size)
    return [bytes(header), *parts]


def varint(data: memoryview, position: int) -> tuple[int, int]:
    """Returns the protobuf varint that starts at `position`, and the position after it."""
    value = shift = 0
    while (byte := data[position]) > 127:
        value |= (byte & 127) << shift
        shift += 7
        position += 1
    return value | byte << shift, position + 1
