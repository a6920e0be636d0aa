"""The interface of sentence encoders, which turn captions into vectors.

To add an encoder, write a subclass of `Encoder` and pass `--encoder package.module:Name` to
`mmjax sentences`. Its constructor takes options of the command by keyword, all of them optional:
`batch_size`, `max_length`, `dtype`, `width` and `vocab`. An option that the constructor does not
take is an error if the user sets it.

    class Length(Encoder):
        width = 1
        normalized = False

        def describe(self):
            return {"version": 1}

        def embed(self, texts):
            return np.array([[len(text)] for text in texts], np.float32)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


class Encoder:
    """Base class of sentence encoders.

    Attributes:
      width: Width of the vectors.
      normalized: Whether the vectors have length 1. The mean of several is then normalized, too.
      needs_all_captions: Whether `prepare` must see all captions before `embed` is called.
    """

    width: int = 0
    normalized: bool = True
    needs_all_captions: bool = False

    def prepare(self, captions: Iterable[str]) -> None:
        """Reads all captions of the split. Called only if `needs_all_captions`."""

    def describe(self) -> dict[str, Any]:
        """Returns everything that the vectors depend on, for features.json.

        The values must be JSON. An interrupted run is resumed only if they are equal.
        """
        raise NotImplementedError

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the vectors of texts.

        Args:
          texts: Texts without blank ones.

        Returns:
          float32 [len(texts), width]. A text without a known word has a vector of zeros.
        """
        raise NotImplementedError


def fingerprint(array: np.ndarray) -> str:
    """Returns a short hash of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:12]


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [N, D] with length 1 as float32; vectors of zeros are unchanged."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
