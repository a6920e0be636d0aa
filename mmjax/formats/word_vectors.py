"""Reads tables of word vectors; pickles, as VATT publishes them, without executing code."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from mmjax.errors import UserError, about
from mmjax.formats import npy, pickles, torch_reader

SUFFIXES = (".pkl", ".pickle", ".npz", ".npy")
KEY = "word_embeddings"
_ADVICE = (
    "which is not part of a numerical array; loading it could run code. If you trust the file, "
    f"save the table with numpy.savez(…, {KEY}=table) and use that file."
)


def is_word_vectors(source: str | os.PathLike) -> bool:
    """Returns whether a file contains word vectors, judging by its suffix.

    PyTorch also writes files with the suffix .pkl; they are recognized by their content.
    """
    return pathlib.Path(source).suffix in SUFFIXES and not torch_reader.is_file(source)


def load(source: str | os.PathLike) -> np.ndarray:
    """Returns a table of word vectors, float32 [vocab_size, width].

    Args:
      source: A .npy file, a .npz file with the array `word_embeddings`, or a pickle of a dict with
        that key, written by any version of Python and NumPy. A pickle may contain only plain
        arrays.

    Raises:
      UserError: The file does not exist, is damaged, or has other content.
    """
    path = pathlib.Path(source)
    if not path.is_file():
        raise UserError(f"{source}: no such file. Check the path of the word vectors.")
    try:
        with about(source):
            content = _read_arrays(path) if path.suffix in (".npz", ".npy") else _read_pickle(path)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        raise UserError(f"{source} cannot be read: {type(error).__name__}: {error}.") from error
    if isinstance(content, dict):
        arrays = {k.decode() if isinstance(k, bytes) else str(k): v for k, v in content.items()}
        if KEY not in arrays:
            raise UserError(f"{source} has no key {KEY!r}; its keys are {sorted(arrays)}.")
        content = arrays[KEY]
    table = content if isinstance(content, np.ndarray) else np.asarray(None)
    if table.ndim != 2 or table.dtype.kind != "f":
        raise UserError(
            f"{source}: expected word vectors as a floating-point array [vocab_size, width]; got "
            f"{table.dtype} {table.shape}."
        )
    return np.array(table, np.float32)


def _read_arrays(path: pathlib.Path) -> np.ndarray | dict[str, np.ndarray | None]:
    """Returns the array of a .npy file, or {name: array} of an .npz file; others are not read."""
    if npy.is_array(path):
        return npy.open_array(path)
    with npy.Archive(path) as archive:
        return {name: archive.read(name) if name == KEY else None for name in archive.names}


def _read_pickle(path: pathlib.Path) -> Any:
    with open(path, "rb") as file:
        content = pickles.Unpickler(
            file, allowed=pickles.ARRAYS, advice=_ADVICE, encoding="latin1"
        ).load()
        if file.read(1):
            raise UserError("there are bytes after the pickle. The file is damaged; copy it again.")
        return content
