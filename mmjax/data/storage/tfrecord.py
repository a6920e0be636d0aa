"""TFRecord shards with an index: atomic writes, random access, CRC checks.

A record on disk is `uint64 length, uint32 masked CRC32C of the length, payload, uint32 masked
CRC32C of the payload`, little endian. The index of a shard (`<shard>.idx`) holds the offset and
length of each payload, so one `pread` fetches any record. It can always be rebuilt from the record
headers, without reading payloads.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator

import google_crc32c
import numpy as np

from mmjax import files
from mmjax.errors import UserError

HEADER, FOOTER = 12, 4  # bytes before and after each payload
_INDEX_MAGIC = b"MMJAXIX1"
_INDEX_HEADER = struct.Struct("<8sQQ")  # magic, bytes in the shard, number of records


class CorruptRecord(UserError):
    """A record that cannot be read.

    Attributes:
      path: The shard.
      record: Index of the record in the shard; -1 if unknown.
    """

    def __init__(self, path: str, record: int, problem: str):
        record_name = f"record {record}: " if record >= 0 else ""
        super().__init__(f"{path}: {record_name}{problem}")
        self.path, self.record = path, record


class ShardWriter:
    """Writes one shard and its index. Neither has its final name before it is complete.

    Use it as a context manager, whose end completes the shard. An exception inside leaves no file.

    Args:
      path: The shard. Its directory is created.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._content = files.atomic_open(self.path, "wb")
        self._file = self._content.__enter__()
        self._offset = 0
        self._locations: list[tuple[int, int]] = []  # offset and length of each payload

    def __len__(self) -> int:
        """Returns the number of records written."""
        return len(self._locations)

    def write(self, payload: bytes) -> None:
        """Appends one record."""
        header = struct.pack("<Q", len(payload))
        self._file.write(header + struct.pack("<I", masked_crc(header)))
        self._file.write(payload)
        self._file.write(struct.pack("<I", masked_crc(payload)))
        self._locations.append((self._offset + HEADER, len(payload)))
        self._offset += HEADER + len(payload) + FOOTER

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error) -> None:
        complete = error[0] is None
        if complete:
            # The old index is removed first: an index never describes another version of the shard.
            files.remove(index_path(self.path))
        self._content.__exit__(*error)
        if complete:
            locations = np.array(self._locations, np.int64).reshape(-1, 2)
            _write_index(self.path, locations, self._offset)


def write_shard(path: str | os.PathLike, payloads: Iterable[bytes]) -> int:
    """Writes a shard and its index, and returns the number of records."""
    with ShardWriter(path) as writer:
        for payload in payloads:
            writer.write(payload)
        return len(writer)


def index_path(shard: str | os.PathLike) -> str:
    """Returns the path of a shard's index."""
    return f"{os.fspath(shard)}.idx"


def build_index(shard: str | os.PathLike, *, save: bool = False) -> np.ndarray:
    """Returns the offset and length of each payload, int64 [N, 2], from the headers of a shard.

    Args:
      shard: An uncompressed TFRecord file.
      save: Whether to also write the index file.

    Raises:
      CorruptRecord: A header has a wrong CRC, or the shard ends inside a record.
    """
    shard = os.fspath(shard)
    locations, problem = _scan(shard)
    if problem:
        raise problem
    if save:
        _write_index(shard, locations, os.path.getsize(shard))
    return locations


def read_index(shard: str | os.PathLike) -> np.ndarray:
    """Returns the offset and length of each payload, int64 [N, 2].

    They are read from the index file, or from the shard if there is no index. An index older than
    its shard is compared with the headers of the shard and accepted if it agrees, because copying a
    dataset may change the order of modification times.

    Args:
      shard: An uncompressed TFRecord file.

    Raises:
      UserError: The index is damaged or does not describe the shard.
      CorruptRecord: As `build_index`.
    """
    shard = os.fspath(shard)
    path = index_path(shard)
    if not os.path.exists(path):
        return build_index(shard)
    advice = f"Rebuild it with `mmjax index {os.path.dirname(shard) or '.'}`, or remove it."
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}. {advice}") from error
    if len(data) < _INDEX_HEADER.size or data[:8] != _INDEX_MAGIC:
        raise UserError(f"{path} is not an index written by mmjax. {advice}")
    _, indexed_size, count = _INDEX_HEADER.unpack_from(data)
    if len(data) != _INDEX_HEADER.size + 16 * count:
        raise UserError(
            f"{path} is damaged: it has {len(data)} bytes; expected "
            f"{_INDEX_HEADER.size + 16 * count} for {count} records. {advice}"
        )
    locations = np.frombuffer(data, "<i8", 2 * count, _INDEX_HEADER.size).reshape(-1, 2)
    locations = locations.astype(np.int64)
    if (record := _first_gap(locations, indexed_size)) is not None:
        raise UserError(
            f"{path} is damaged: entry {record} does not follow the one before it, or the last "
            f"one does not end at byte {indexed_size}, the end of the shard. {advice}"
        )
    size = os.path.getsize(shard)
    if size != indexed_size:
        if _scan(shard)[1]:  # a truncated shard is the more useful error
            build_index(shard)
        raise UserError(
            f"{path} is out of date: it describes a shard of {indexed_size} bytes, but the shard "
            f"has {size}. {advice}"
        )
    if os.stat(path).st_mtime_ns < os.stat(shard).st_mtime_ns:
        if not np.array_equal(locations, build_index(shard)):
            raise UserError(f"{path} is older than its shard and does not describe it. {advice}")
    return locations


def read_record(
    shard: str | os.PathLike, offset: int, length: int, *, check_crc: bool = True, record: int = -1
) -> bytes:
    """Returns one payload.

    Args:
      shard: A TFRecord file.
      offset: Offset of the payload in the file, from the index.
      length: Length of the payload in bytes, from the index.
      check_crc: Whether to verify the payload (well below a millisecond per megabyte).
      record: Index of the record in the shard, for error messages.

    Raises:
      CorruptRecord: The file ends inside the record, or the CRC is wrong.
    """
    with borrowed_record(shard, offset, length, check_crc=check_crc, record=record) as payload:
        return bytes(payload)


_buffers: list[np.ndarray] = []  # allocating memory would cost more than reading a cached file


@contextlib.contextmanager
def borrowed_record(
    shard: str | os.PathLike, offset: int, length: int, *, check_crc: bool = True, record: int = -1
) -> Iterator[memoryview]:
    """Yields one payload without copying it; see `read_record`.

    The memory is reused after the context ends.
    """
    size = length + FOOTER
    try:
        buffer = _buffers.pop()
    except IndexError:
        buffer = np.empty(0, np.uint8)
    if len(buffer) < size:
        buffer = np.empty(size + size // 4, np.uint8)
    path = os.fspath(shard)
    try:
        descriptor = os.open(shard, os.O_RDONLY)
        try:
            if os.preadv(descriptor, [buffer[:size]], offset) != size:
                file_size = os.fstat(descriptor).st_size
                raise CorruptRecord(path, record, _truncated(offset + size, file_size))
        finally:
            os.close(descriptor)
        payload = buffer[:length]
        if check_crc:
            (crc,) = struct.unpack_from("<I", buffer, length)
            if crc != masked_crc(payload):
                raise CorruptRecord(path, record, _bad_crc("payload", offset))
        yield memoryview(payload)
    finally:
        _buffers.append(buffer)


def iterate(shard: str | os.PathLike, *, check_crc: bool = True) -> Iterator[bytes]:
    """Yields all payloads of a shard in order; raises as `read_record` and `build_index`."""
    for record, (offset, length) in enumerate(build_index(shard)):
        yield read_record(shard, int(offset), int(length), check_crc=check_crc, record=record)


def verify(shard: str | os.PathLike) -> list[CorruptRecord]:
    """Returns every problem of a shard: wrong CRCs and truncation. An intact shard has none."""
    shard = os.fspath(shard)
    locations, end_problem = _scan(shard)
    problems = []
    for record, (offset, length) in enumerate(locations):
        try:
            read_record(shard, int(offset), int(length), record=record)
        except CorruptRecord as problem:
            problems.append(problem)
    return problems + ([end_problem] if end_problem else [])


def masked_crc(data: bytes | np.ndarray) -> int:
    """Returns TFRecord's checksum: CRC32C rotated right by 15 bits, plus 0xa282ead8."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _scan(shard: str) -> tuple[np.ndarray, CorruptRecord | None]:
    """Returns the locations of all records before the first bad header, and its problem."""
    if os.path.isdir(shard):
        problem = "this is a directory, not a TFRecord file. Copy or build it again."
        return np.zeros((0, 2), np.int64), CorruptRecord(shard, -1, problem)
    locations, offset, problem = [], 0, None
    with open(shard, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while offset < size:
            header = os.pread(file.fileno(), HEADER, offset)
            if len(header) < HEADER:
                problem = _truncated(offset + HEADER, size, part="header")
                break
            length, crc = struct.unpack("<QI", header)
            if crc != masked_crc(header[:8]):
                problem = _bad_crc("header", offset)
                break
            end = offset + HEADER + length + FOOTER
            if end > size:
                problem = _truncated(end, size)
                break
            locations.append((offset + HEADER, length))
            offset = end
    error = CorruptRecord(shard, len(locations), problem) if problem else None
    return np.array(locations, np.int64).reshape(-1, 2), error


def _truncated(end: int, size: int, *, part: str = "record") -> str:
    return (
        f"the file is truncated: the {part} ends at byte {end}, but the file has only {size} "
        "bytes. Copy or build it again."
    )


def _bad_crc(part: str, offset: int) -> str:
    hint = " (is the shard compressed, or not a TFRecord file?)" if not offset else ""
    return (
        f"the CRC of the {part} at byte {offset} is wrong, so the file is damaged{hint}. Copy or "
        "build it again, or skip such records with `--config.data.corrupt=skip`."
    )


def _first_gap(locations: np.ndarray, size: int) -> int | None:
    """Returns the first record that is not directly after the one before; None if all are.

    Args:
      locations: Offset and length of each payload, int64 [N, 2].
      size: Size of the shard in bytes, where the last record ends.
    """
    if not len(locations):
        return None if size == 0 else 0
    outside = (locations < 0) | (locations > size)
    if outside.any():
        return int(outside.any(axis=1).argmax())
    starts = locations[:, 0] - HEADER
    ends = locations.sum(axis=1) + FOOTER
    wrong = starts != np.concatenate([[0], ends[:-1]])
    wrong[-1] |= ends[-1] != size
    return int(wrong.argmax()) if wrong.any() else None


def _write_index(shard: str, locations: np.ndarray, shard_size: int) -> None:
    with files.atomic_open(index_path(shard), "wb") as file:
        file.write(_INDEX_HEADER.pack(_INDEX_MAGIC, shard_size, len(locations)))
        file.write(locations.astype("<i8").tobytes())
