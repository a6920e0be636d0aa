"""Finds and reads TensorFlow 2 checkpoints."""

from __future__ import annotations

import glob
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmjax.errors import UserError

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def find(source: str | os.PathLike) -> str | None:
    """Returns the prefix (`…/ckpt-500000`) of a checkpoint, or None if `source` is not one.

    TensorFlow is not loaded.

    Args:
      source: A prefix, one of its files (`.index`, `.data-…`), or their directory. In a directory
        with several checkpoints, TensorFlow's file `checkpoint` selects the newest.

    Raises:
      UserError: Only some of the checkpoint's files exist.
    """
    path = pathlib.Path(source)
    if path.is_dir():
        path = _find_in_directory(path)
        if path is None:
            return None
    prefix = re.sub(r"(\.index|\.data-\d+-of-\d+)$", "", str(path))
    index, data = pathlib.Path(f"{prefix}.index"), _data_files(prefix)
    if not index.is_file() and not data:
        return None
    if not index.is_file() or not data:
        missing = f"{prefix}.index" if data else f"{prefix}.data-00000-of-00001"
        raise UserError(
            f"{source} is a TensorFlow checkpoint, but its file {missing} is missing. Copy all "
            "files of the checkpoint to the same directory."
        )
    return prefix


def _find_in_directory(directory: pathlib.Path) -> pathlib.Path | None:
    """Returns the newest prefix according to TensorFlow, or the only one in the directory."""
    listing = directory / "checkpoint"
    text = listing.read_text(errors="replace") if listing.is_file() else ""
    if newest := re.search(r'^model_checkpoint_path: "(.*)"', text, re.MULTILINE):
        # The path is the one at writing; all files may have been moved since.
        return directory / pathlib.PurePath(newest[1]).name
    prefixes = [path.with_suffix("") for path in directory.glob("*.index")]
    prefixes = [prefix for prefix in prefixes if _data_files(prefix)]
    return prefixes[0] if len(prefixes) == 1 else None


def _data_files(prefix: str | os.PathLike) -> list[pathlib.Path]:
    path = pathlib.Path(prefix)
    return list(path.parent.glob(f"{glob.escape(path.name)}.data-*-of-*"))


class Reader:
    """Reads the arrays of a checkpoint by key, without `SUFFIX`.

    Args:
      prefix: The result of `find`.

    Attributes:
      shapes: {key: (shape, name of the dtype)}.

    Raises:
      UserError: The index is damaged.
    """

    def __init__(self, prefix: str):
        import tensorflow as tf

        self.prefix = prefix
        self._errors = (tf.errors.OpError, IndexError, RuntimeError, ValueError)
        self._reader = self._call(lambda: tf.train.load_checkpoint(prefix))
        shapes = self._call(self._reader.get_variable_to_shape_map)
        dtypes = self._reader.get_variable_to_dtype_map()
        self._names = {name.removesuffix(SUFFIX): name for name in sorted(shapes)}
        self.shapes = {
            key: (tuple(shapes[name]), dtypes[name].name) for key, name in self._names.items()
        }
        self._check_sizes({key: dtypes[name] for key, name in self._names.items()})

    def _check_sizes(self, dtypes: Mapping[str, Any]) -> None:
        """Raises UserError if a shape does not fit into the data, before memory is used for it."""
        size = sum(path.stat().st_size for path in _data_files(self.prefix))
        for key, (shape, _) in self.shapes.items():
            dtype = dtypes[key]
            numeric = dtype.is_floating or dtype.is_integer or dtype.is_complex or dtype.is_bool
            if numeric and math.prod(shape) * dtype.size > size:
                raise UserError(
                    f"The TensorFlow checkpoint {self.prefix} cannot be read: the array {key} has "
                    f"the shape {shape}, but the data have only {size:,} bytes. Copy it again."
                )

    def read(self, key: str) -> np.ndarray:
        """Returns one array.

        Raises:
          UserError: The data are damaged.
        """
        return np.asarray(self._call(lambda: self._reader.get_tensor(self._names[key])))

    def _call(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except self._errors as error:
            reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise UserError(
                f"The TensorFlow checkpoint {self.prefix} cannot be read: {reason}. A file may be "
                "damaged or truncated; copy it again."
            ) from error
