"""Reads and writes .safetensors files.

Format (https://huggingface.co/docs/safetensors): eight bytes with the length of the header, little
endian; a JSON header; then the data, at the offsets that the header lists.
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

from mmjax import files
from mmjax.errors import UserError

SUFFIX = ".safetensors"
_MAX_HEADER = 100_000_000  # bytes, the limit of the reference implementation
_DTYPES = {
    "BOOL": np.bool_,
    **{f"{letter}{8 * n}": f"{letter.lower()}{n}" for letter in "IU" for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": f"f{n}" for n in (2, 4, 8)},
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
DTYPES: dict[str, np.dtype] = {name: np.dtype(dtype) for name, dtype in _DTYPES.items()}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns {name: array}, sorted by name. Arrays are views of the file and read lazily.

    Raises:
      UserError: The file is damaged or truncated, or has a dtype that NumPy lacks. The message does
        not name the file.
    """
    data = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    length = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or length > min(_MAX_HEADER, len(data) - 8):
        raise UserError(
            "the header is longer than the file. The file is damaged or truncated; copy it again."
        )
    header = files.parse_json(data[8 : 8 + length].tobytes(), "the header of the file")
    if not isinstance(header, dict):
        raise UserError("the header is damaged: it is not a JSON object. Copy the file again.")
    header.pop("__metadata__", None)
    data = data[8 + length :]
    arrays = {name: _array(name, entry, data) for name, entry in sorted(header.items())}
    # The format has no checksum, but its arrays fill the file without gaps or overlaps.
    position = 0
    for begin, end, name in sorted((*header[name]["data_offsets"], name) for name in header):
        if begin != position:
            raise UserError(
                f"array {name} begins at byte {begin} of the data; expected {position}, where the "
                "array before it ends. The file is damaged; copy it again."
            )
        position = end
    if position != len(data):
        raise UserError(
            f"the file has {len(data):,} bytes of data; its header describes {position:,}. The "
            "file is damaged; copy it again."
        )
    return arrays


def _array(name: str, entry: Mapping[str, Any], data: np.ndarray) -> np.ndarray:
    damaged = UserError(f"the header is damaged at {name}. Copy the file again.")
    try:
        type_name, shape = entry["dtype"], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged from error
    if type_name not in DTYPES:
        raise UserError(
            f"array {name} has dtype {type_name}, which mmjax does not support. Supported: "
            f"{', '.join(DTYPES)}."
        )
    dtype, numbers = DTYPES[type_name], (*shape, begin, end)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise damaged
    if end > len(data) or end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(
            f"array {name} does not fit into the file. The file is damaged or truncated; copy it "
            "again."
        )
    return data[begin:end].view(dtype).reshape(shape)


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes {name: array} atomically.

    Raises:
      UserError: The format does not support the dtype of an array, or the file exists or cannot be
        written.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise UserError(f"--out {path} already exists. Pass another path, or delete it.")
    header, offset = {}, 0
    # Larger items first, so that the offset of each array is a multiple of its item size.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in order:
        array = arrays[name]
        if array.dtype not in _NAMES:
            raise UserError(
                f"Array {name} has dtype {array.dtype}, which {SUFFIX} files do not support."
            )
        span = [offset, offset + array.nbytes]
        header[name] = dict(dtype=_NAMES[array.dtype], shape=list(array.shape), data_offsets=span)
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with files.atomic_open(path, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                file.write(np.ascontiguousarray(arrays[name]).tobytes())
    except OSError as error:
        raise UserError(f"--out {path} cannot be written: {error}.") from error
