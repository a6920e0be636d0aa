"""Reads PyTorch files without PyTorch and without running code from them.

Formats: .safetensors, and the files of `torch.save`. The latter are zip archives with a pickle and
the storages of its tensors; before PyTorch 1.6, a pickle followed by the storages.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from mmjax import files
from mmjax.errors import UserError, about
from mmjax.formats import published_checkpoints, safetensors
from mmjax.formats.torch_pickle import TorchUnpickler
from mmjax.formats.zip_members import ZipMembers

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", safetensors.SUFFIX)
INDEX = ".index.json"  # end of the name of an index of several files
_MAX_DEPTH, _MAX_ENTRIES = 50, 100_000  # of nested containers
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # start of files before PyTorch 1.6
_checked: set[tuple] = set()  # (file, its version, member) with a correct CRC
_UNPACK = "Unpack it, and pass the file in it."
_OTHERS = (  # (first bytes in lower case, what they are, the way out)
    *(
        (magic, "a web page", "Download the file itself.")
        for magic in (b"<!doctype html", b"<html")
    ),
    (b"ustar", "a tar archive", _UNPACK),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"\xfd7zxz", "an xz archive", _UNPACK),
    (b"bzh", "a bzip2 archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"\x93numpy", "a .npy array", "Pass the file of the model."),
    (b"\x89hdf\r\n", "an HDF5 file", "Convert it to .safetensors with the library that wrote it."),
)
_BIG_ENDIAN = "the file was written on a big-endian machine, which mmjax does not support."


def is_file(source: str | os.PathLike) -> bool:
    """Returns whether a source is a PyTorch file, judging by its content or its suffix.

    Any name will do for a file that begins as PyTorch's do (`checkpoint.pth.tar`). The prefix of a
    TensorFlow checkpoint may have the same suffix, and is not one.
    """
    path = pathlib.Path(source)
    if path.is_dir() or path.with_name(f"{path.name}.index").is_file():
        return False
    if path.suffix in SUFFIXES or path.name.endswith(INDEX):
        return True
    return path.is_file() and _has_content(path)


def _has_content(path: pathlib.Path) -> bool:
    """Returns whether a file begins as a file of PyTorch does."""
    start = _start(path)
    if start[:2] == b"PK":
        with contextlib.suppress(UserError), ZipMembers(path) as members:
            return any(name.endswith("data.pkl") for name in members.names)
    header = int.from_bytes(start[:8], "little")
    is_safetensors = start[8:9] == b"{" and header < path.stat().st_size
    return is_safetensors or _LEGACY in start[:32] or _is_first_format(start)


def _start(path: pathlib.Path) -> bytes:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return file.read(512)
    return b""


def _is_first_format(start: bytes) -> bool:
    """Returns whether a file begins as a tar archive of PyTorch before version 0.1.10."""
    names = (b"pickle", b"storages", b"sys_info", b"tensors")
    return start[257:262] == b"ustar" and start[:100].rstrip(b"\0").removeprefix(b"./") in names


def open_file(source: str | os.PathLike) -> Any:
    """Returns the content of a file: nested dicts, lists and tuples, with arrays for tensors.

    Arrays are read-only views of the file, read lazily. Tensors that share memory in PyTorch share
    it here. An argparse.Namespace is returned as a dict, and a dtype as its name.

    Raises:
      UserError: The file does not exist, is damaged, has an unsupported format, or contains a name
        that is not allowed.
    """
    path = pathlib.Path(source)
    if not path.is_file():
        raise UserError(f"{source}: no such file.{published_checkpoints.hint(source)}")
    try:
        with about(source):
            return _open_shards(path) if path.name.endswith(INDEX) else _open(path)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        raise UserError(
            f"{source} cannot be read: {type(error).__name__}: {error}. It may be damaged or "
            "truncated; copy it again."
        ) from error


def entries(source: str | os.PathLike) -> dict[str, Any]:
    """Returns {name: array or other value} of a file; nested keys are joined by '.'.

    Raises:
      UserError: The file cannot be read (see `open_file`), or two entries have the same name.
    """
    result: dict[str, Any] = {}

    def add(name: str, value: Any, depth: int) -> None:
        if depth > _MAX_DEPTH or len(result) > _MAX_ENTRIES:
            raise UserError(
                f"{source}: entries are nested too deeply, or more than {_MAX_ENTRIES:,}, at "
                f"{name[:80]}."
            )
        if isinstance(value, Mapping) and value:
            items = list(value.items())
        elif isinstance(value, list | tuple) and any(map(_is_container, value)):
            items = list(enumerate(value))
        elif name in result:
            raise UserError(f"{source} has two entries named {name}.")
        else:
            result[name] = value
            return
        for key, item in items:
            add(f"{name}.{key}" if name else str(key), item, depth + 1)

    add("", open_file(source), 0)
    return result


def _is_container(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple | np.ndarray)


def tensors(source: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns {name: array} of the tensors in a file; see `entries`."""
    return {name: x for name, x in entries(source).items() if isinstance(x, np.ndarray)}


def _open_shards(path: pathlib.Path) -> dict[str, Any]:
    """Returns {name: array} of the files that an index of Hugging Face lists."""
    index = files.read_json(path)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(x, str) for x in names.values()):
        raise UserError('expected {"weight_map": {array: file, …}}. Copy the file again.')
    content: dict[str, Any] = {}
    for file in sorted(set(names.values())):
        if pathlib.PurePath(file).name != file:
            raise UserError(f"the file {file!r} is not in the same directory.")
        shard = open_file(path.with_name(file))
        listed = {name for name, other in names.items() if other == file}
        if not isinstance(shard, Mapping) or not listed <= set(shard):
            missing = sorted(listed - set(shard if isinstance(shard, Mapping) else ()))[:3]
            raise UserError(f"{file} has no array {', '.join(missing)}. Download all files again.")
        content |= {name: shard[name] for name in listed}
    return content


def _open(path: pathlib.Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(512)
    if start[:2] == b"PK":
        return _Archive(path).load()
    if _LEGACY in start[:32]:
        return _Legacy(path).load()
    if _is_first_format(start):
        raise UserError(
            "the file has PyTorch's first format, a tar archive. Save it again with PyTorch: "
            "torch.save(torch.load(FILE), NEW)"
        )
    if start.startswith(b"version https://git-lfs"):
        raise UserError("this is a Git LFS pointer. Run `git lfs pull` to get the file.")
    for magic, name, advice in _OTHERS:
        if start.lower().startswith(magic) or start[257:262] == magic:
            raise UserError(
                f"this is {name}; expected a file of torch.save or a .safetensors file. {advice}"
            )
    if path.suffix == safetensors.SUFFIX or start[8:9] == b"{":
        return safetensors.read(path)
    raise UserError(
        "this is not a file of torch.save or a .safetensors file. It may be damaged or "
        "truncated; copy it again."
    )


class _Archive:
    """A zip archive of `torch.save`."""

    def __init__(self, path: pathlib.Path):
        self._zip = ZipMembers(path)
        self._bytes = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        self._storages: dict[str, np.ndarray] = {}
        status = os.stat(path)
        self._version = (os.fspath(path), status.st_ino, status.st_mtime_ns, status.st_size)
        names = self._zip.names
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("data.pkl")]
        roots = [root for root in roots if root.count("/") <= 1]
        if not roots:
            raise UserError("this zip archive was not written by torch.save.")
        self._root = roots[0]
        if f"{self._root}constants.pkl" in names:
            raise UserError(
                "this is a TorchScript program. Save its weights with PyTorch: "
                "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), NEW)"
            )
        order = f"{self._root}byteorder"
        if order in names and self._member(order).tobytes() != b"little":
            raise UserError(_BIG_ENDIAN)

    def load(self) -> Any:
        data = self._member(f"{self._root}data.pkl").tobytes()
        return TorchUnpickler(io.BytesIO(data), self.storage).load()

    def storage(self, key: str, dtype: np.dtype, count: int) -> np.ndarray:
        """Returns a storage as a flat array; the same array for every call."""
        name = f"{self._root}data/{key}"
        size, expected = self._zip.info(name).file_size, count * dtype.itemsize
        if size != expected:
            raise UserError(
                f"storage {key} has {size} bytes; expected {expected}. The file is damaged; copy "
                "it again."
            )
        if key not in self._storages:
            self._storages[key] = self._member(name)
        return self._storages[key].view(dtype)

    def _member(self, name: str) -> np.ndarray:
        """Returns the bytes of a member, as a view of the file if they are not compressed."""
        info = self._zip.info(name)
        if info.compress_type != zipfile.ZIP_STORED:
            with self._zip.open(name) as member:
                return np.frombuffer(member.read(), np.uint8)
        header = self._bytes[info.header_offset : info.header_offset + 30].tobytes()
        before = sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        start = info.header_offset + 30 + before
        if header[:4] != b"PK\x03\x04" or start + info.file_size > len(self._bytes):
            raise UserError(f"the member {name} is damaged. Copy the file again.")
        data = self._bytes[start : start + info.file_size]
        # Files are opened several times (to detect, describe and convert them), but checked once.
        version = (*self._version, name)
        if info.CRC and version not in _checked:  # 0: written without checksums
            if zlib.crc32(data) != info.CRC:
                raise UserError(
                    f"the member {name} is damaged: its CRC is wrong. Copy the file again."
                )
            _checked.add(version)
        return data


class _Legacy:
    """A file of `torch.save` before PyTorch 1.6.

    It contains the pickles of a magic number, the format version, properties of the machine, the
    saved object, and the keys of its storages. The storages follow, each after its length.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._bytes = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        self._dtypes: dict[str, np.dtype] = {}
        self._storages: dict[str, np.ndarray] = {}

    def load(self) -> Any:
        with open(self._path, "rb") as file:
            for _ in range(2):
                self._skip(file)
            machine = self._skip(file)
            if not (isinstance(machine, dict) and machine.get("little_endian", True)):
                raise UserError(_BIG_ENDIAN)
            start = file.tell()
            self._skip(file)
            keys = self._skip(file)
            self._find_storages(file.tell(), keys)
            file.seek(start)
            return TorchUnpickler(file, self._storage).load()

    def _skip(self, file: IO[bytes]) -> Any:
        """Reads a pickle without creating tensors, and keeps the dtypes of its storages."""

        def note(key: str, dtype: np.dtype, count: int) -> None:
            self._dtypes[key] = dtype

        return TorchUnpickler(file, note, tensors=False).load()

    def _find_storages(self, offset: int, keys: Sequence[Any]) -> None:
        for key in map(str, keys):
            count = int.from_bytes(self._bytes[offset : offset + 8].tobytes(), "little")
            end = offset + 8 + count * self._dtypes[key].itemsize
            if end > len(self._bytes):
                raise UserError(f"storage {key} is truncated. Copy the file again.")
            self._storages[key] = self._bytes[offset + 8 : end].view(self._dtypes[key])
            offset = end
        if offset != len(self._bytes):
            raise UserError(
                f"the storages end at byte {offset:,} of {len(self._bytes):,}. The file is "
                "damaged; copy it again."
            )

    def _storage(self, key: str, dtype: np.dtype, count: int) -> np.ndarray:
        storage = self._storages[key]
        if len(storage) != count or storage.dtype != dtype:
            raise UserError(
                f"storage {key} has {len(storage)} items of {storage.dtype}; expected {count} of "
                f"{dtype}. The file is damaged; copy it again."
            )
        return storage
