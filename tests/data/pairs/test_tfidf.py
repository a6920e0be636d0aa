"""Tests of nearest captions by TF-IDF cosine, against a plain Python implementation."""

import collections
import math

import numpy as np
import pytest

from mmjax.data.pairs import tfidf
from mmjax.data.pairs.tfidf import nearest_by_tfidf
from mmjax.errors import UserError
from tests.messages import raises

WORDS = "a the red blue green cat dog bird sits runs flies on under mat tree house".split()


def random_captions(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(count)]


def reference_similarities(captions):
    """Returns the TF-IDF cosines of all pairs, [N, N], computed with dictionaries."""
    counts = [collections.Counter(caption.lower().split()) for caption in captions]
    df = collections.Counter(word for words in counts for word in words)
    idf = {word: 1 + math.log((1 + len(captions)) / (1 + n)) for word, n in df.items()}
    vectors = []
    for words in counts:
        vector = {word: n * idf[word] for word, n in words.items()}
        norm = math.sqrt(math.fsum(value**2 for value in vector.values()))
        vectors.append({word: value / norm for word, value in vector.items()})
    cosine = lambda a, b: math.fsum(a[word] * b.get(word, 0) for word in a)  # noqa: E731
    return np.array([[cosine(a, b) for b in vectors] for a in vectors])


@pytest.mark.parametrize("block_bytes", [1 << 28, 4 * 60 * 7])
def test_neighbors_agree_with_the_reference(monkeypatch, block_bytes):
    monkeypatch.setattr(tfidf, "_BLOCK_BYTES", block_bytes)
    captions = random_captions(60)
    indices, similarities = nearest_by_tfidf(captions, k=5)
    assert (indices.dtype, similarities.dtype) == (np.int32, np.float32)
    expected = reference_similarities(captions)
    np.fill_diagonal(expected, -1)
    np.testing.assert_allclose(similarities, -np.sort(-expected, axis=1)[:, :5], atol=1e-6)
    for query, nearest in enumerate(indices):
        assert query not in nearest and len(set(nearest)) == 5
        np.testing.assert_allclose(expected[query, nearest], similarities[query], atol=1e-6)


def test_ties_are_ordered_by_index_and_case_and_punctuation_are_ignored():
    captions = ["Red cat.", "blue dog", "red cat", "cat, red!", "blue dog"]
    indices, similarities = nearest_by_tfidf(captions, k=2)
    assert indices.tolist() == [[2, 3], [4, -1], [0, 3], [0, 2], [1, -1]]
    np.testing.assert_allclose(similarities[:, 0], 1, atol=1e-6)
    assert (similarities <= 1).all()


def test_empty_captions_have_no_neighbors():
    indices, similarities = nearest_by_tfidf(["", "red cat", "...", "green dog", "red mat"], k=3)
    assert indices.tolist() == [[-1] * 3, [4, -1, -1], [-1] * 3, [-1] * 3, [1, -1, -1]]
    assert (similarities[indices < 0] == 0).all() and (similarities[indices >= 0] > 0).all()
    for captions in ([], ["", "!"]):
        indices, similarities = nearest_by_tfidf(captions, k=2)
        assert indices.shape == similarities.shape == (len(captions), 2)
        assert (indices == -1).all() and (similarities == 0).all()


def test_too_many_captions_are_rejected_with_the_commands_to_run_instead(monkeypatch):
    monkeypatch.setattr(tfidf, "MAX_CAPTIONS", 3)
    commands = ("mmjax sentences DATASET", "mmjax neighbors FEATURES", "data.pairs.path=PAIRS")
    with raises(UserError, 4, 3, *commands):
        nearest_by_tfidf(["a"] * 4, k=1)
