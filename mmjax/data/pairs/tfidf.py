"""Nearest captions by the cosine similarity of their tf-idf vectors.

Requires no weights or precomputed features. Every caption is compared with every other, so it is
meant for small datasets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmjax.errors import UserError

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

MAX_CAPTIONS = 100_000  # comparing this many takes minutes
_BLOCK_BYTES = 1 << 28  # of similarities in memory at a time


def vectorizer() -> TfidfVectorizer:
    """Returns scikit-learn's tf-idf vectorizer with the word tokenizer of VATT.

    The weight of a word is tf · (1 + ln((1 + N) / (1 + df))), where tf is its number of occurrences
    in the caption and df is the number of captions, of N, that contain it. Vectors have length 1.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    from mmjax.data.text.word_vocab import split_words

    return TfidfVectorizer(analyzer=split_words)


def nearest_by_tfidf(captions: Sequence[str], *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k most similar other captions of each caption. The search is exact.

    Args:
      captions: One caption per record. A record with the caption '' has no neighbors and is not a
        neighbor of others.
      k: Number of neighbors.

    Returns:
      `(indices, similarities)`: int32 [N, k] and float32 [N, k], most similar first, ties in order
      of the index. -1 and 0 where no other caption shares a word.

    Raises:
      UserError: More than `MAX_CAPTIONS` captions.
    """
    count = len(captions)
    if count > MAX_CAPTIONS:
        raise UserError(
            f"{count} captions are too many to compare by tf-idf when training starts (at most "
            f"{MAX_CAPTIONS}). Find the neighbors beforehand: `mmjax sentences DATASET --out "
            "FEATURES --encoder words`, then `mmjax neighbors FEATURES --out PAIRS`, and set "
            "data.pairs.path=PAIRS."
        )
    indices = np.full((count, k), -1, np.int32)
    similarities = np.zeros((count, k), np.float32)
    model = vectorizer()
    try:
        vectors = model.fit_transform(captions)  # sparse [N, words]
    except ValueError:  # scikit-learn raises it for an empty vocabulary
        return indices, similarities
    transposed = vectors.T.tocsr()
    block = max(_BLOCK_BYTES // (4 * max(count, 1)), 1)
    for start in range(0, count, block):
        scores = (vectors[start : start + block] @ transposed).astype(np.float32).toarray()
        query = np.arange(len(scores))  # [block]; scores: [block, N]
        scores[query, start + query] = 0  # a caption is not its own neighbor
        for rank in range(min(k, count)):
            best = scores.argmax(axis=1)  # the first among equal ones
            value = scores[query, best]
            valid = value > 0
            indices[start + query[valid], rank] = best[valid]
            # Rounding errors make some cosines of equal captions larger than 1.
            similarities[start + query, rank] = np.minimum(value, 1)
            scores[query, best] = 0
    return indices, similarities
