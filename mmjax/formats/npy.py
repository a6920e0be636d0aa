"""Reads .npy and .npz files: no pickles, no more memory than the file justifies.

A .npy file has no checksum. Its size must be exactly the one that its header implies, so that a
file with bytes inserted or missing is refused and not read shifted. In an .npz file, each array
also has a CRC.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import IO

import numpy as np

from mmjax.errors import UserError
from mmjax.formats.zip_members import ZipMembers

SUFFIX = ".npy"


def is_array(path: str | os.PathLike) -> bool:
    """Returns whether an existing file is a .npy file, judging by its content."""
    with _naming(os.fspath(path)), open(path, "rb") as file:
        return file.read(6) == np.lib.format.MAGIC_PREFIX


def open_array(path: str | os.PathLike) -> np.memmap:
    """Returns the array in a .npy file, mapped into memory for reading.

    Raises:
      UserError: The file is missing, damaged or not a .npy file, has another size than its header
        implies, or contains Python objects.
    """
    with _naming(os.fspath(path)):
        if not is_array(path):
            raise UserError(
                "this is not a .npy file with an array. numpy.save(FILE, …) writes one."
            )
        with open(path, "rb") as file:
            _read_header(file, os.fstat(file.fileno()).st_size)
        return np.lib.format.open_memmap(path, mode="r")


class Archive:
    """The arrays in an .npz file, each read only when it is needed. Use it as a context manager.

    Args:
      path: The file.

    Attributes:
      names: Names of the arrays.

    Raises:
      UserError: The file is missing, damaged or not an .npz file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        with _naming(self.path):
            with open(path, "rb") as file:
                if file.read(2) != b"PK":
                    raise UserError("this is not an .npz file. numpy.savez(FILE, …) writes one.")
            self._members = ZipMembers(path)
            self._members.check_names()
        members = [name for name in self._members.names if name.endswith(SUFFIX)]
        self.names = [name.removesuffix(SUFFIX) for name in members]

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_) -> None:
        self._members.close()

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Returns the shape and dtype of an array without unpacking it.

        Raises:
          UserError: There is no such array, or it is damaged.
        """
        with _naming(self.path, name), self._members.open(name + SUFFIX, keep=False) as member:
            return _read_header(member, self._members.info(name + SUFFIX).file_size)

    def read(self, name: str) -> np.ndarray:
        """Returns an array.

        Raises:
          UserError: There is no such array, or it is damaged or too large.
        """
        self.header(name)  # before any memory is used
        with _naming(self.path, name), self._members.open(name + SUFFIX) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            member.read(1)  # the CRC is checked at the end
            return array


def _read_header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Returns the shape and dtype of an array if they fit the size of its file in bytes."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise UserError(f"the header has version {version}; expected 1.0 or 2.0.")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise UserError(
            "the array has the dtype object; its pickles could run code. Save an array of numbers "
            "or strings, which numpy.load(FILE, allow_pickle=False) can read."
        )
    if any(length < 0 for length in shape):
        raise UserError(f"the header is damaged: the shape is {shape}.")
    expected = file.tell() + math.prod(shape) * dtype.itemsize
    if size != expected:
        raise UserError(
            f"the array has {size:,} bytes; its header, {dtype} {list(shape)}, implies "
            f"{expected:,}. The file is damaged; copy it again."
        )
    return shape, dtype


@contextlib.contextmanager
def _naming(path: str, name: str = "") -> Iterator[None]:
    """Turns every exception into a UserError that names the file, and the array if any."""
    where = f"{path}: {name}" if name else path
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.") from error
    except OSError as error:
        raise UserError(f"Cannot read {where}: {error.strerror or error}.") from error
    except UserError as error:
        if path in str(error):
            raise
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        raise UserError(
            f"{where} cannot be read as an array: {str(error) or type(error).__name__}. The file "
            "is damaged or has another format; copy it again."
        ) from error
