"""TFRecord shards with an index: written atomically, read at random, checked by CRC.

A record on disk is `uint64 length, uint32 masked CRC32C of the length, payload, uint32 masked
CRC32C of the payload`, little endian. The index of a shard (`<shard>.idx`) holds the offset and
length of each payload, so that one `pread` fetches any record. It can always be built again from
the headers alone, without reading the payloads.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterable, Iterator

import google_crc32c
import numpy as np

from mmjax.errors import UserError

HEADER, FOOTER = 12, 4  # bytes before and after each payload
_INDEX_MAGIC = b"MMJAXIX1"
_INDEX_HEADER = struct.Struct("<8sQQ")  # magic, bytes in the shard, number of records


class CorruptRecord(UserError):
    """A record that cannot be read: number `record` (-1: not known) of the shard `path`."""

    def __init__(self, path: str, record: int, problem: str):
        which = f"record {record}: " if record >= 0 else ""
        super().__init__(f"{path}: {which}{problem}")
        self.path, self.record = path, record


class ShardWriter:
    """Writes one shard and its index. Neither has its final name before it is complete.

    Use as a context manager; an exception inside leaves no file behind.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        self._temporary = f"{self.path}.tmp-{os.getpid()}"
        self._file = open(self._temporary, "wb")
        self._offset, self._rows = 0, []

    def write(self, payload: bytes) -> None:
        """Appends one record."""
        header = struct.pack("<Q", len(payload))
        self._file.write(header + struct.pack("<I", masked_crc(header)))
        self._file.write(payload)
        self._file.write(struct.pack("<I", masked_crc(payload)))
        self._rows.append((self._offset + HEADER, len(payload)))
        self._offset += HEADER + len(payload) + FOOTER

    def close(self) -> None:
        """Completes the shard and its index."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        # In this order no index ever describes another shard than the one beside it.
        if os.path.exists(index_path(self.path)):
            os.remove(index_path(self.path))
        os.replace(self._temporary, self.path)
        _write_index(self.path, np.array(self._rows, np.int64).reshape(-1, 2), self._offset)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
            os.remove(self._temporary)


def write_shard(path: str | os.PathLike, payloads: Iterable[bytes]) -> int:
    """Writes a shard and its index; returns the number of records."""
    with ShardWriter(path) as writer:
        for payload in payloads:
            writer.write(payload)
        return len(writer._rows)


def index_path(shard: str | os.PathLike) -> str:
    """The name of the index of a shard."""
    return f"{os.fspath(shard)}.idx"


def build_index(shard: str | os.PathLike, *, save: bool = False) -> np.ndarray:
    """int64 [N, 2]: offset and length of each payload, from the headers of a shard.

    Args:
      shard: a TFRecord file without compression.
      save: also write the index beside the shard.

    Raises:
      CorruptRecord: a header with a wrong CRC, or a shard that ends inside a record.
    """
    shard = os.fspath(shard)
    rows, problem = _scan(shard)
    if problem:
        raise problem
    if save:
        _write_index(shard, rows, os.path.getsize(shard))
    return rows


def read_index(shard: str | os.PathLike) -> np.ndarray:
    """int64 [N, 2]: offset and length of each payload, from the index or else from the shard.

    An index with an earlier date than its shard is compared with the shard's headers, and is
    accepted if it
    agrees: copying a dataset may change the order of the dates.

    Raises:
      UserError: an index that is damaged, or does not belong to the shard as it is now.
      CorruptRecord: see `build_index`.
    """
    shard = os.fspath(shard)
    path = index_path(shard)
    if not os.path.exists(path):
        return build_index(shard)
    advice = f"Build it again with `mmjax index {os.path.dirname(shard) or '.'}`, or remove it."
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < _INDEX_HEADER.size or data[:8] != _INDEX_MAGIC:
        raise UserError(f"{path} is not an index written by mmjax. {advice}")
    _, shard_bytes, count = _INDEX_HEADER.unpack_from(data)
    if len(data) != _INDEX_HEADER.size + 16 * count:
        raise UserError(f"{path} is damaged: {len(data)} bytes for {count} records. {advice}")
    rows = np.frombuffer(data, "<i8", 2 * count, _INDEX_HEADER.size).reshape(-1, 2)
    rows = rows.astype(np.int64)
    size = os.path.getsize(shard)
    if size != shard_bytes:
        if _scan(shard)[1]:  # a truncated shard is the more useful thing to know
            build_index(shard)
        raise UserError(
            f"{path} is out of date: it describes {shard_bytes} bytes, the shard has {size}. "
            f"{advice}"
        )
    if os.stat(path).st_mtime_ns < os.stat(shard).st_mtime_ns:
        if not np.array_equal(rows, build_index(shard)):
            raise UserError(f"{path} is older than its shard and does not describe it. {advice}")
    return rows


def read_record(
    shard: str | os.PathLike, offset: int, length: int, *, check_crc: bool = True, record: int = -1
) -> bytes:
    """One payload.

    Args:
      shard: the file.
      offset: of the payload in the file, from the index.
      length: of the payload in bytes, from the index.
      check_crc: verify the payload (well below a millisecond per megabyte).
      record: the record's number in the shard, for messages.

    Raises:
      CorruptRecord: the file ends too early, or the CRC is wrong.
    """
    with borrowed_record(shard, offset, length, check_crc=check_crc, record=record) as payload:
        return bytes(payload)


_buffers: list[np.ndarray] = []  # fresh memory would cost more than reading from a cached file


@contextlib.contextmanager
def borrowed_record(
    shard: str | os.PathLike, offset: int, length: int, *, check_crc: bool = True, record: int = -1
) -> Iterator[memoryview]:
    """As `read_record`, without a copy: within the context, in memory that is then used again."""
    size = length + FOOTER
    try:
        buffer = _buffers.pop()
    except IndexError:
        buffer = np.empty(0, np.uint8)
    if len(buffer) < size:
        buffer = np.empty(size + size // 4, np.uint8)
    try:
        descriptor = os.open(shard, os.O_RDONLY)
        try:
            found = os.preadv(descriptor, [buffer[:size]], offset)
        finally:
            os.close(descriptor)
        path = os.fspath(shard)
        if found != size:
            problem = f"the file ends {size - found} bytes too early (truncated)."
            raise CorruptRecord(path, record, problem)
        payload = buffer[:length]
        if check_crc:
            (crc,) = struct.unpack_from("<I", buffer, length)
            if crc != masked_crc(payload):
                raise CorruptRecord(path, record, _bad_crc("payload", offset))
        yield memoryview(payload)
    finally:
        _buffers.append(buffer)


def iterate(shard: str | os.PathLike, *, check_crc: bool = True) -> Iterator[bytes]:
    """All payloads of a shard in order; errors as in `read_record` and `build_index`."""
    for record, (offset, length) in enumerate(build_index(shard)):
        yield read_record(shard, int(offset), int(length), check_crc=check_crc, record=record)


def verify(shard: str | os.PathLike) -> list[CorruptRecord]:
    """Every problem of a shard: all CRCs, and a truncated tail. An empty list is a sound shard."""
    shard = os.fspath(shard)
    rows, tail = _scan(shard)
    problems = []
    for record, (offset, length) in enumerate(rows):
        try:
            read_record(shard, int(offset), int(length), record=record)
        except CorruptRecord as problem:
            problems.append(problem)
    return problems + ([tail] if tail else [])


def masked_crc(data: bytes | np.ndarray) -> int:
    """TFRecord's checksum: CRC32C rotated right by 15 bits, plus 0xa282ead8."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _scan(shard: str) -> tuple[np.ndarray, CorruptRecord | None]:
    """(offset and length of the records up to the first bad header, what is wrong there)."""
    rows, offset, problem = [], 0, None
    with open(shard, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while offset < size:
            header = os.pread(file.fileno(), HEADER, offset)
            if len(header) < HEADER:
                problem = f"the file ends inside the header at byte {offset} (truncated)."
                break
            length, crc = struct.unpack("<QI", header)
            if crc != masked_crc(header[:8]):
                problem = _bad_crc("header", offset)
                break
            end = offset + HEADER + length + FOOTER
            if end > size:
                problem = f"the file ends {end - size} bytes too early (truncated)."
                break
            rows.append((offset + HEADER, length))
            offset = end
    error = CorruptRecord(shard, len(rows), problem) if problem else None
    return np.array(rows, np.int64).reshape(-1, 2), error


def _bad_crc(part: str, offset: int) -> str:
    hint = " (is the shard compressed, or not a TFRecord file?)" if not offset else ""
    return (
        f"the CRC of the {part} at byte {offset} is wrong: the file is damaged{hint}. Copy or "
        "build it again, or skip such records with `--config.data.corrupt=skip`."
    )


def _write_index(shard: str, rows: np.ndarray, shard_bytes: int) -> None:
    temporary = f"{index_path(shard)}.tmp-{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(_INDEX_HEADER.pack(_INDEX_MAGIC, shard_bytes, len(rows)))
        file.write(rows.astype("<i8").tobytes())
    os.replace(temporary, index_path(shard))
