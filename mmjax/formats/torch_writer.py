"""Writes arrays in the format of `torch.save`, without PyTorch."""

from __future__ import annotations

import os
import pathlib
import pickle
import zipfile
from collections.abc import Mapping

import numpy as np

from mmjax import files
from mmjax.errors import UserError

SUFFIX = ".pth"
_ROOT = "archive"
_STORAGES = {
    **{"float16": "HalfStorage", "float32": "FloatStorage", "float64": "DoubleStorage"},
    **{"bfloat16": "BFloat16Storage", "int32": "IntStorage", "int64": "LongStorage"},
}
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
_NO_HOOKS = b"ccollections\nOrderedDict\n)R"


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file atomically that `torch.load(path, weights_only=True)` reads as {name: tensor}.

    Raises:
      UserError: The dtype of an array is not supported, or the file exists or cannot be written.
    """
    if pathlib.Path(path).exists():
        raise UserError(f"--out {path} already exists. Pass another path, or delete it.")
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.name not in _STORAGES:
            raise UserError(
                f"Array {name} has dtype {array.dtype}. Supported in {SUFFIX} files: "
                f"{', '.join(_STORAGES)}."
            )
    try:
        with (
            files.atomic_open(pathlib.Path(path).absolute(), "wb") as raw,
            zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as file,
        ):
            file.writestr(f"{_ROOT}/data.pkl", _pickle(arrays))
            file.writestr(f"{_ROOT}/byteorder", "little")
            for number, array in enumerate(arrays.values()):
                little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                file.writestr(f"{_ROOT}/data/{number}", little.tobytes())
            file.writestr(f"{_ROOT}/version", "3\n")
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error}.") from error


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the pickle (protocol 2) of a dict of tensors, each with its own storage."""
    items = b"".join(
        _code(name) + _tensor(number, array) for number, (name, array) in enumerate(arrays.items())
    )
    return b"\x80\x02}(" + items + b"u."


def _tensor(number: int, array: np.ndarray) -> bytes:
    contiguous = np.empty(array.shape, np.int8).strides  # in items: an int8 is one byte
    storage = f"ctorch\n{_STORAGES[array.dtype.name]}\n".encode()
    name = b"(" + _code("storage") + storage + _code(str(number)) + _code("cpu")
    name += _code(array.size) + b"tQ"
    shape, strides = (_code(tuple(map(int, part))) for part in (array.shape, contiguous))
    return _REBUILD + b"(" + name + _code(0) + shape + strides + _code(False) + _NO_HOOKS + b"tR"


def _code(value: object) -> bytes:
    """Returns the opcodes that push text, a number or a tuple of numbers."""
    if isinstance(value, str):
        raw = value.encode()
        return b"X" + len(raw).to_bytes(4, "little") + raw
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_code, value)) + b"t"
    return pickle.dumps(value, protocol=2)[2:-1]
