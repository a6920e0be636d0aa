"""Nearest captions by words: against the formula written out, and what has no neighbour."""

import collections
import math

import numpy as np
import pytest

from mmjax.data import word_neighbours
from mmjax.data.word_neighbours import nearest_by_words
from mmjax.errors import UserError

WORDS = "a the red blue green cat dog bird sits runs flies on under mat tree house".split()


def random_captions(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(count)]


def by_hand(captions):
    """Cosines of all pairs [N, N], word by word with dictionaries."""
    counts = [collections.Counter(caption.lower().split()) for caption in captions]
    df = collections.Counter(word for words in counts for word in words)
    rows = []
    for words in counts:
        row = {w: n * (1 + math.log((1 + len(captions)) / (1 + df[w]))) for w, n in words.items()}
        norm = math.sqrt(math.fsum(value**2 for value in row.values()))
        rows.append({word: value / norm for word, value in row.items()})
    cosine = lambda a, b: math.fsum(a[word] * b.get(word, 0) for word in a)  # noqa: E731
    return np.array([[cosine(a, b) for b in rows] for a in rows])


@pytest.mark.parametrize("block_bytes", [1 << 28, 4 * 60 * 7])
def test_neighbours_are_those_of_the_formula(monkeypatch, block_bytes):
    monkeypatch.setattr(word_neighbours, "_BLOCK_BYTES", block_bytes)
    captions = random_captions(60)
    numbers, similarities = nearest_by_words(captions, k=5)
    assert (numbers.dtype, similarities.dtype) == (np.int32, np.float32)
    expected = by_hand(captions)
    np.fill_diagonal(expected, -1)
    np.testing.assert_allclose(similarities, -np.sort(-expected, axis=1)[:, :5], atol=1e-6)
    for row, found in enumerate(numbers):
        assert row not in found and len(set(found)) == 5
        np.testing.assert_allclose(expected[row, found], similarities[row], atol=1e-6)


def test_equals_by_number_and_spelling_does_not_count():
    captions = ["Red cat.", "blue dog", "red cat", "cat, red!", "blue dog"]
    numbers, similarities = nearest_by_words(captions, k=2)
    assert numbers.tolist() == [[2, 3], [4, -1], [0, 3], [0, 2], [1, -1]]
    np.testing.assert_allclose(similarities[:, 0], 1, atol=1e-6)
    assert (similarities <= 1).all()


def test_no_caption_is_nobodys_neighbour():
    numbers, similarities = nearest_by_words(["", "red cat", "...", "green dog", "red mat"], k=3)
    assert numbers.tolist() == [[-1] * 3, [4, -1, -1], [-1] * 3, [-1] * 3, [1, -1, -1]]
    assert (similarities[numbers < 0] == 0).all() and (similarities[numbers >= 0] > 0).all()
    for none in ([], ["", "!"]):
        numbers, similarities = nearest_by_words(none, k=2)
        assert numbers.shape == similarities.shape == (len(none), 2)
        assert (numbers == -1).all() and (similarities == 0).all()


def test_too_many_captions_are_sent_elsewhere(monkeypatch):
    monkeypatch.setattr(word_neighbours, "MOST", 3)
    with pytest.raises(UserError, match="mmjax sentences DATASET .*mmjax neighbours"):
        nearest_by_words(["a"] * 4, k=1)
