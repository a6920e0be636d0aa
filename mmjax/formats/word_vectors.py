"""Tables of word embeddings from files, VATT's pickles among them, which are never executed."""

from __future__ import annotations

import os
import pathlib

import numpy as np

from mmjax.errors import UserError
from mmjax.formats import pickles

SUFFIXES = (".pkl", ".pickle", ".npz", ".npy")
KEY = "word_embeddings"
_ADVICE = (
    "which is no part of an array of numbers; loading it could run code. Save the table with "
    f"numpy.savez(…, {KEY}=table) where you trust the file."
)


def is_word_vectors(source: str | os.PathLike) -> bool:
    """Whether a file is one of word embeddings, by its name."""
    return pathlib.Path(source).suffix in SUFFIXES


def load(source: str | os.PathLike) -> np.ndarray:
    """The table, float32 [words, features].

    Args:
      source: .npy; .npz with the array `word_embeddings`; or a pickle of a dict with that key, as
        VATT's, written by any version of Python and NumPy. Of a pickle only plain arrays are made:
        one that names anything else is refused before it could run.

    Raises:
      UserError: there is no such file, or it holds something else.
    """
    path = pathlib.Path(source)
    if not path.is_file():
        raise UserError(f"{source}: there is no such file.")
    try:
        with open(path, "rb") as file:
            if path.suffix in (".npz", ".npy"):
                content = np.load(file, allow_pickle=False)
                content = content if isinstance(content, np.ndarray) else dict(content)
            else:
                content = pickles.Unpickler(
                    file, allowed=pickles.ARRAYS, advice=_ADVICE, encoding="latin1"
                ).load()
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        raise UserError(f"{source} cannot be read: {type(error).__name__}: {error}.") from error
    if isinstance(content, dict):
        names = {k.decode() if isinstance(k, bytes) else str(k): v for k, v in content.items()}
        if KEY not in names:
            raise UserError(f"{source} has no {KEY!r}, only {sorted(names)}.")
        content = names[KEY]
    table = content if isinstance(content, np.ndarray) else np.asarray(None)
    if table.ndim != 2 or table.dtype.kind != "f":
        raise UserError(
            f"{source}: word embeddings are floating point [words, features], not {table.dtype} "
            f"{table.shape}."
        )
    return np.asarray(table, np.float32)
