"""Nearest captions by their words alone: no weights, no folder of features, small sets only.

tf-idf with the cosine, as in text retrieval: a word that few captions have counts much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmjax.errors import UserError

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

MOST = 100_000  # captions; every one is compared with every other: minutes for so many
_BLOCK_BYTES = 1 << 28  # of similarities that are held at a time


def vectorizer() -> TfidfVectorizer:
    """What makes tf-idf rows of length 1 of captions: scikit-learn's, with VATT's words.

    A word counts tf · (1 + ln((1 + N) / (1 + df))), where tf is how often it is in the caption and
    df in how many of the N captions it is.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    from mmjax.data.text.word_vocab import split_words

    return TfidfVectorizer(analyzer=split_words)


def nearest_by_tfidf(captions: Sequence[str], *, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The captions most like each caption, itself left out; exact.

    Args:
      captions: one for each record; '' = none, which is nobody's neighbor and has none.
      k: how many.

    Returns:
      `(numbers, similarities)`, int32 [N, k] and float32 [N, k], best first, equals by number;
      -1 and 0 where no further caption shares a word.

    Raises:
      UserError: more captions than can be compared here.
    """
    count = len(captions)
    if count > MOST:
        raise UserError(
            f"{count} captions are too many to compare by their words while training starts (at "
            f"most {MOST}). Find the neighbors beforehand: `mmjax sentences DATASET --out "
            "FEATURES --encoder words`, then `mmjax neighbors FEATURES --out PAIRS`, and "
            "data.pairs.path=PAIRS."
        )
    numbers = np.full((count, k), -1, np.int32)
    similarities = np.zeros((count, k), np.float32)
    model = vectorizer()
    try:
        rows = model.fit_transform(captions)  # [N, words], sparse
    except ValueError:  # scikit-learn's word for it: the vocabulary is empty
        return numbers, similarities
    columns = rows.T.tocsr()
    block = max(_BLOCK_BYTES // (4 * max(count, 1)), 1)
    for first in range(0, count, block):
        found = (rows[first : first + block] @ columns).astype(np.float32).toarray()  # [block, N]
        each = np.arange(len(found))
        found[each, first + each] = 0
        for place in range(min(k, count)):
            best = found.argmax(axis=1)  # of equals the first
            value = found[each, best]
            some = value > 0
            numbers[first + each[some], place] = best[some]
            # Rounding makes a few cosines of equal captions larger than 1.
            similarities[first + each, place] = np.minimum(value, 1)
            found[each, best] = 0
    return numbers, similarities
