"""A sentence encoder without weights: tf-idf with random projections."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mmjax.data.pairs import tfidf
from mmjax.errors import UserError
from mmjax.sentence_encoders.base import Encoder, fingerprint, normalize

_HASH_BYTES = 32
_ENTRIES = _HASH_BYTES // 4  # nonzero entries of the random direction of a word


class BagOfWords(Encoder):
    """Bag of words with tf-idf weights.

    Each word has a fixed random direction, so the cosines of tf-idf vectors are approximately
    preserved.

    Args:
      width: Width of the vectors.
    """

    needs_all_captions = True

    def __init__(self, *, width: int = 1024):
        self.width, self._model = width, tfidf.vectorizer()
        self._directions = None  # sparse [words, width]

    def prepare(self, captions: Iterable[str]) -> None:
        import scipy.sparse

        try:
            self._model.fit(captions)
        except ValueError:  # scikit-learn raises it for an empty vocabulary
            raise UserError(
                "--encoder words: the captions contain no words. Check the dataset and --split."
            ) from None
        words = self._model.get_feature_names_out()
        digests = (
            hashlib.blake2b(word.encode(), digest_size=_HASH_BYTES).digest() for word in words
        )
        hashed = np.frombuffer(b"".join(digests), "<u4").reshape(len(words), _ENTRIES)
        signs = np.where(hashed >> 31, 1.0, -1.0)
        columns = (hashed & 0x7FFFFFFF) % self.width
        ends = np.arange(0, hashed.size + 1, _ENTRIES)
        self._directions = scipy.sparse.csr_matrix(
            (signs.ravel() / _ENTRIES**0.5, columns.ravel().astype(np.int64), ends),
            shape=(len(words), self.width),
        )

    def describe(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "fingerprint": fingerprint(self._model.idf_ @ self._directions),
        }

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return normalize(np.asarray((self._model.transform(texts) @ self._directions).todense()))
