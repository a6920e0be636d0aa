"""Files of the safetensors format: a JSON header, then the bytes of the arrays.

Format: https://huggingface.co/docs/safetensors (eight bytes with the header's length, little
endian; the header; the data, which entries point into).
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from mmjax.errors import UserError

SUFFIX = ".safetensors"
_MAX_HEADER = 100_000_000  # bytes, as the format's own reader has it
_DTYPES = {
    "BOOL": np.bool_,
    **{f"{kind}{8 * size}": f"{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": f"f{size}" for size in (2, 4, 8)},
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
DTYPES: dict[str, np.dtype] = {name: np.dtype(dtype) for name, dtype in _DTYPES.items()}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """{name: array}, sorted by name; an array's bytes are read when they are used.

    Raises:
      UserError: the file is damaged or cut short, or has a type that NumPy lacks.
    """
    data = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(_MAX_HEADER, len(data) - 8):
        raise UserError("its header is longer than the file: it is damaged or cut short.")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        items = sorted(header.items())
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"its header is damaged: {error}.") from error
    return {name: _array(name, entry, data[8 + length :]) for name, entry in items}


def _array(name: str, entry: Mapping[str, Any], data: np.ndarray) -> np.ndarray:
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"its header is damaged at {name}.") from error
    if kind not in DTYPES:
        raise UserError(f"{name} is of type {kind}, which mmjax does not read.")
    dtype, numbers = DTYPES[kind], (*shape, begin, end)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise UserError(f"its header is damaged at {name}.")
    if end > len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{name} does not fit into it: it is damaged or cut short.")
    return data[begin:end].view(dtype).reshape(shape)


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes {name: array}; the file appears under its name when it is complete.

    Raises:
      UserError: an array of a type that the format lacks; the file is there already, or cannot be
        written.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise UserError(f"--out {path} is there already. Give another, or delete it.")
    header, at = {}, 0
    # Larger items first, so that each array begins at a multiple of its item's size.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in order:
        array = arrays[name]
        if array.dtype not in _NAMES:
            raise UserError(f"{name} is of type {array.dtype}, which {SUFFIX} files do not have.")
        span = [at, at + array.nbytes]
        header[name] = dict(dtype=_NAMES[array.dtype], shape=list(array.shape), data_offsets=span)
        at = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                file.write(np.ascontiguousarray(arrays[name]).tobytes())
        partial.rename(path)
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)
