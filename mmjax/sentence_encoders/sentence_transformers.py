"""Sentence encoders of the package sentence-transformers, which runs them with PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.errors import UserError
from mmjax.sentence_encoders.base import Encoder, fingerprint

CLIP_LENGTH = 77  # maximum length of CLIP's text tower, with its start and end tokens
_ROUNDS = 8  # of truncation to the maximum length, before it is shortened further


class SentenceTransformers(Encoder):
    """A model of the package sentence-transformers, on the device that the package selects.

    Args:
      name: Name or directory of the model.
      batch_size: Texts per batch.
      max_length: Maximum number of tokens of a text, with start and end tokens; None for the
        model's, and for CLIP 77.

    Raises:
      UserError: The package is not installed, it cannot load the model, or `max_length` is less
        than 3.
    """

    def __init__(self, name: str, *, batch_size: int = 128, max_length: int | None = None):
        try:
            import sentence_transformers
        except ImportError as error:
            raise UserError(
                f"--encoder st:{name} requires the package sentence-transformers ({error}). "
                'Install it: pip install "mmjax[sentences]"'
            ) from error
        if max_length is not None and max_length < 3:
            raise UserError(
                f"--max-length must be at least 3 (start, one token, end); got {max_length}."
            )
        try:
            self._model = sentence_transformers.SentenceTransformer(name)
        except Exception as error:  # its exceptions have no common type
            raise UserError(
                f"--encoder st:{name}: sentence-transformers cannot load this model: {error}"
            ) from error
        self._is_clip = "clip" in os.path.basename(os.path.normpath(name)).lower()
        if max_length or self._is_clip:
            self._model.max_seq_length = max_length or CLIP_LENGTH
        self._batch_size, self._version = batch_size, sentence_transformers.__version__
        probe = self.embed(["a photo of a cat", "two dogs"])
        self.width = probe.shape[1]
        self.normalized = bool(np.allclose(np.linalg.norm(probe, axis=1), 1, atol=1e-3))
        self._fingerprint = fingerprint(np.round(probe, 3))

    def describe(self) -> dict[str, Any]:
        return {
            "fingerprint": self._fingerprint,
            "sentence_transformers": self._version,
            "max_length": self._model.max_seq_length,
        }

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        if self._is_clip:
            tokenizer = getattr(self._model.tokenizer, "tokenizer", self._model.tokenizer)
            texts = [truncate(text, tokenizer, self._model.max_seq_length) for text in texts]
        vectors = self._model.encode(
            list(texts),
            batch_size=self._batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(vectors, np.float32)


def truncate(text: str, tokenizer: Any, length: int) -> str:
    """Returns the longest beginning of a text that has at most `length` tokens.

    Truncated tokens may be tokenized differently when they are decoded to text, so truncation is
    repeated. LGSSL's published code does the same.

    Args:
      text: The text.
      tokenizer: A tokenizer of the transformers library.
      length: Maximum number of tokens, with start and end tokens.
    """
    ids, attempt = tokenizer(text)["input_ids"], 0
    while len(ids) > length:
        # Keep fewer tokens after some rounds, in case the text grows each time it is tokenized.
        count = length - 2 - max(attempt - _ROUNDS, 0)
        text = tokenizer.decode(ids[1 : 1 + count])
        ids, attempt = tokenizer(text)["input_ids"], attempt + 1
    return text
