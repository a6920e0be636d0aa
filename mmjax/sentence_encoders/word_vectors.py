"""A sentence encoder that averages word vectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.data.text.word_vocab import SPECIAL, read_word_vocab, split_words
from mmjax.errors import UserError
from mmjax.formats import word_vectors
from mmjax.sentence_encoders.base import Encoder, fingerprint, normalize


class WordVectors(Encoder):
    """The normalized mean of the vectors of a text's words. Unknown words are ignored.

    Args:
      path: A file in fastText's text format (.vec: `word number number …` per line, after an
        optional line with two counts), or a table of `mmjax.formats.word_vectors`.
      vocab: Only for a table: the file with its words, as VATT's `vocab.txt`.

    Raises:
      UserError: A file is missing or has another format, or `vocab` does not fit the table.
    """

    needs_all_captions = True

    def __init__(self, path: str, *, vocab: str = ""):
        self._path = path
        self._table: np.ndarray | None = None  # [words, width]
        self._index: dict[str, int] = {}  # {word: index in the table}
        if not os.path.isfile(path):
            raise UserError(f"--encoder vectors:{path}: no such file.")
        if word_vectors.is_word_vectors(path):
            self._table, self._index = _read_table(path, vocab)
            self.width = self._table.shape[1]
        elif vocab:
            raise UserError(
                f"--vocab {vocab} applies only to a table of vectors (.npz, .npy, .pkl); {path} "
                "contains its words. Remove --vocab."
            )
        else:
            self.width = _vec_width(path)

    def prepare(self, captions: Iterable[str]) -> None:
        if self._table is None:  # keep only the vectors of words in the captions
            words = {word for caption in captions for word in split_words(caption)}
            self._index, self._table = _read_vec(self._path, words, self.width)

    def describe(self) -> dict[str, Any]:
        return {"words": len(self._index), "fingerprint": fingerprint(self._table)}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        result = np.zeros((len(texts), self.width), np.float32)
        for vector, text in zip(result, texts, strict=True):
            indices = [self._index[word] for word in split_words(text) if word in self._index]
            if indices:
                vector[:] = self._table[indices].mean(axis=0)
        return normalize(result)


def _read_table(path: str, vocab: str) -> tuple[np.ndarray, dict[str, int]]:
    """Returns a table of vectors, and {word: index} without special tokens."""
    if not os.path.isfile(vocab):
        raise UserError(
            f"--encoder vectors:{path} is a table without words"
            + (f", and --vocab {vocab} is not a file" if vocab else "")
            + ". Pass the file with its words, one per line, with --vocab FILE."
        )
    table, index = word_vectors.load(path), read_word_vocab(vocab)
    if max(index.values()) >= len(table):
        raise UserError(
            f"--vocab {vocab} has {max(index.values()) + 1} words, but {path} has only "
            f"{len(table)} vectors. Pass the vocabulary of this table."
        )
    return table, {word: i for word, i in index.items() if word not in SPECIAL}


def _vec_lines(path: str) -> Iterator[tuple[int, str, list[str]]]:
    """Yields `(line number, word, values)` of a .vec file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            word, *values = line.rstrip("\n ").split(" ")
            if not (number == 1 and len(values) == 1):  # the line with counts
                yield number, word, values


def _vec_width(path: str) -> int:
    """Returns the width of the vectors in a .vec file."""
    for _, _, values in _vec_lines(path):
        if values and _parse_vector(values) is not None:
            return len(values)
        break
    raise UserError(
        f"--encoder vectors:{path}: expected a file in fastText's text format (.vec), with a word "
        "and its vector in each line, or a table (.npz, .npy, .pkl) with --vocab."
    )


def _read_vec(path: str, words: set[str], width: int) -> tuple[dict[str, int], np.ndarray]:
    """Returns {word: index} and the vectors [N, width] of some words in a .vec file."""
    index: dict[str, int] = {}
    table = []
    for number, word, values in _vec_lines(path):
        if word in words and word not in index:
            if len(values) != width or (vector := _parse_vector(values)) is None:
                raise UserError(
                    f"{path}, line {number}: expected a word and {width} finite numbers; got "
                    f"{len(values)} values after {word!r}."
                )
            index[word] = len(table)
            table.append(vector)
    return index, np.array(table, np.float32).reshape(-1, width)


def _parse_vector(values: Sequence[str]) -> np.ndarray | None:
    """Returns numbers as float32; None if they are not finite numbers."""
    try:
        vector = np.array(values, np.float32)
    except ValueError:
        return None
    return vector if np.isfinite(vector).all() else None
