"""What `mmjax sentences --encoder` takes: from captions to rows of numbers.

An encoder has `width`, `normalized` (rows have the length 1), `describe()` for features.json,
`prepare(captions)`, which sees all captions once if `needs_all`, and `embed(texts)`, float32
[len(texts), width] with a row of zeros where it knows no word.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mmjax.errors import UserError

CLIP_LENGTH = 77  # pieces of a text that CLIP's text tower takes, its two marks among them
_ROUNDS = 8  # in which a long text is cut to the same number of pieces
_BYTES = 32  # of a hash
_ENTRIES = _BYTES // 4  # of a word's row


class Encoder:
    """What all encoders share."""

    width = 0
    normalized = True
    needs_all = False

    def prepare(self, captions: Iterable[str]) -> None:
        """Sees all captions of the split before the first is embedded, if `needs_all`."""

    def describe(self) -> dict[str, Any]:
        """What the rows depend on, for features.json."""
        raise NotImplementedError

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [len(texts), width]."""
        raise NotImplementedError


class Folder(Encoder):
    """A published encoder of BERT's kind, in JAX."""

    def __init__(self, directory: str, **options: Any):
        from mmjax.sentence_encoders import encoder

        self._model = encoder.SentenceModel(directory, **options)
        self.width, self._dtype = self._model.width, options.get("dtype", "float32")
        self.normalized = self._model.normalized

    def describe(self) -> dict[str, Any]:
        model = self._model
        return {
            "fingerprint": model.fingerprint,
            "max_length": model.max_length,
            "dtype": self._dtype,
        }

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._model.embed(texts)


class SentenceTransformers(Encoder):
    """Any model of the package sentence-transformers, on the device it chooses."""

    def __init__(self, name: str, *, batch_size: int = 128, max_length: int | None = None):
        try:
            import sentence_transformers
        except ImportError as error:
            raise UserError(
                f"--encoder st:{name} needs the package sentence-transformers ({error}): "
                'pip install "mmjax[sentences]"'
            ) from error
        try:
            self._model = sentence_transformers.SentenceTransformer(name)
        except Exception as error:  # no such model, no network, a broken file: each its own kind
            raise UserError(
                f"--encoder st:{name}: sentence-transformers cannot load it: {error}"
            ) from error
        self._of_clip = "clip" in os.path.basename(os.path.normpath(name)).lower()
        if max_length is not None and max_length < 3:
            raise UserError(
                f"--max-length {max_length}: a text has two marks and a piece at least."
            )
        if max_length or self._of_clip:
            self._model.max_seq_length = max_length or CLIP_LENGTH
        self._batch_size, self._version = batch_size, sentence_transformers.__version__
        probe = self.embed(["a photo of a cat", "two dogs"])
        self.width = probe.shape[1]
        self.normalized = bool(np.allclose(np.linalg.norm(probe, axis=1), 1, atol=1e-3))
        self._fingerprint = _fingerprint(np.round(probe, 3))

    def describe(self) -> dict[str, Any]:
        return {
            "fingerprint": self._fingerprint,
            "sentence_transformers": self._version,
            "max_length": self._model.max_seq_length,
        }

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        if self._of_clip:
            tokenizer = getattr(self._model.tokenizer, "tokenizer", self._model.tokenizer)
            texts = [shortened(text, tokenizer, self._model.max_seq_length) for text in texts]
        rows = self._model.encode(
            list(texts),
            batch_size=self._batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return np.asarray(rows, np.float32)


def shortened(text: str, tokenizer: Any, length: int) -> str:
    """The beginning of a text that has at most so many pieces, marks at both ends among them.

    Cut pieces may be spelled otherwise when they are read again, hence several rounds; LGSSL's
    published code does it so.
    """
    ids, attempt = tokenizer(text)["input_ids"], 0
    while len(ids) > length:
        # Fewer after some rounds, else a text that grows when it is read again never ends.
        room = length - 2 - max(attempt - _ROUNDS, 0)
        text = tokenizer.decode(ids[1 : 1 + room])
        ids, attempt = tokenizer(text)["input_ids"], attempt + 1
    return text


class Words(Encoder):
    """Bag of words: tf-idf, each word a fixed random direction, so that cosines nearly stay."""

    needs_all = True

    def __init__(self, *, width: int = 1024):
        from mmjax.data.pairs import tfidf

        self.width, self._model = width, tfidf.vectorizer()
        self._directions = None

    def prepare(self, captions: Iterable[str]) -> None:
        import scipy.sparse

        try:
            self._model.fit(captions)
        except ValueError:  # scikit-learn's word for it: the vocabulary is empty
            raise UserError("--encoder words: there is no word in these captions.") from None
        words = self._model.get_feature_names_out()
        digests = (hashlib.blake2b(word.encode(), digest_size=_BYTES).digest() for word in words)
        hashed = np.frombuffer(b"".join(digests), "<u4").reshape(len(words), _ENTRIES)
        signs = np.where(hashed >> 31, 1.0, -1.0)
        places = (hashed & 0x7FFFFFFF) % self.width
        ends = np.arange(0, hashed.size + 1, _ENTRIES)
        self._directions = scipy.sparse.csr_matrix(
            (signs.ravel() / _ENTRIES**0.5, places.ravel().astype(np.int64), ends),
            shape=(len(words), self.width),
        )

    def describe(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "fingerprint": _fingerprint(self._model.idf_ @ self._directions),
        }

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return normalized(np.asarray((self._model.transform(texts) @ self._directions).todense()))


class Vectors(Encoder):
    """The mean of vectors of words, brought to length 1; words without one do not count.

    Args:
      path: fastText's text format (.vec: `word number number …`, perhaps after a line with the
        numbers of words and features), or a table as `mmjax.formats.word_vectors` reads it.
      vocab: of a table: the words of its rows, as in VATT's `vocab.txt`.
    """

    needs_all = True

    def __init__(self, path: str, *, vocab: str = ""):
        from mmjax.formats import word_vectors

        self._path, self._table, self._rows = path, None, {}
        if not os.path.isfile(path):
            raise UserError(f"--encoder vectors:{path}: there is no such file.")
        if word_vectors.is_word_vectors(path):
            from mmjax.data.text import word_vocab

            if not os.path.isfile(vocab):
                raise UserError(
                    f"--encoder vectors:{path} is a table without words: give them with --vocab "
                    "FILE, one per line."
                )
            self._table, numbers = word_vectors.load(path), word_vocab.read_word_vocab(vocab)
            if max(numbers.values()) >= len(self._table):
                raise UserError(
                    f"{vocab} has words up to number {max(numbers.values())}, but {path} only "
                    f"{len(self._table)} rows."
                )
            self._rows = {w: n for w, n in numbers.items() if w not in word_vocab.SPECIAL}
            self.width = self._table.shape[1]
        elif vocab:
            raise UserError(f"--vocab is for a table; {path} has the words with their vectors.")
        else:
            self.width = _vec_width(path)

    def prepare(self, captions: Iterable[str]) -> None:
        from mmjax.data.text.word_vocab import split_words

        if self._table is None:  # of millions of vectors only those that are used are held
            wanted = {word for caption in captions for word in split_words(caption)}
            self._rows, self._table = _read_vec(self._path, wanted, self.width)

    def describe(self) -> dict[str, Any]:
        return {"words": len(self._rows), "fingerprint": _fingerprint(self._table)}

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        from mmjax.data.text.word_vocab import split_words

        found = np.zeros((len(texts), self.width), np.float32)
        for row, text in zip(found, texts, strict=True):
            numbers = [self._rows[word] for word in split_words(text) if word in self._rows]
            if numbers:
                row[:] = self._table[numbers].mean(axis=0)
        return normalized(found)


def _fingerprint(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:12]


def _vec_lines(path: str) -> Iterable[tuple[int, str, list[str]]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            word, *values = line.rstrip("\n ").split(" ")
            if not (number == 1 and len(values) == 1):  # the header
                yield number, word, values


def _vec_width(path: str) -> int:
    for _, _, values in _vec_lines(path):
        if values and _floats(values) is not None:
            return len(values)
        break
    raise UserError(
        f"--encoder vectors:{path}: expected fastText's text format, lines of a word and its "
        "numbers (.vec), or a table of mmjax's (.npz, .npy, .pkl) with --vocab."
    )


def _read_vec(path: str, wanted: set[str], width: int) -> tuple[dict[str, int], np.ndarray]:
    rows: dict[str, int] = {}
    table = []
    for number, word, values in _vec_lines(path):
        if word in wanted and word not in rows:
            if len(values) != width or (row := _floats(values)) is None:
                raise UserError(f"{path}, line {number}: not a word and {width} numbers.")
            rows[word] = len(table)
            table.append(row)
    return rows, np.array(table, np.float32).reshape(-1, width)


def _floats(values: Sequence[str]) -> np.ndarray | None:
    try:
        row = np.array(values, np.float32)
    except ValueError:
        return None
    return row if np.isfinite(row).all() else None


def normalized(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32 [N, D]; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


# By what stands before the colon: what makes it of the rest and of options, and which options.
_KINDS: dict[str, tuple[Callable[..., Encoder], tuple[str, ...]]] = {
    "st": (SentenceTransformers, ("batch_size", "max_length")),
    "vectors": (Vectors, ("vocab",)),
    "words": (Words, ("width",)),
    "folder": (Folder, ("batch_size", "max_length", "dtype")),
}


def make_encoder(spec: str, **options: Any) -> Encoder:
    """The encoder that `--encoder` names.

    Args:
      spec: 'words', 'st:NAME', 'vectors:FILE', or a folder.
      options: batch_size, max_length, dtype, width, vocab; None = not given.

    Raises:
      UserError: there is no such encoder, it cannot be loaded, or an option is not for it.
    """
    from mmjax.sentence_encoders import weights

    kind, colon, rest = spec.partition(":")
    if spec != "words" and not (colon and kind in _KINDS and kind not in ("words", "folder")):
        kind, rest = "folder", os.path.expanduser(spec)
        if not weights.is_directory(rest):
            raise UserError(
                f"--encoder {spec} is no folder with config.json and model.safetensors. Others: "
                "words, vectors:FILE, npy:FILE, st:NAME (sentence-transformers)."
            )
    make, takes = _KINDS[kind]
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        option = name.replace("_", "-")
        if name not in takes:
            known = ", ".join(f"--{one.replace('_', '-')}" for one in takes)
            raise UserError(f"--{option} is not for --encoder {spec}, which takes {known}.")
        if isinstance(value, int) and value < 1:
            raise UserError(f"--{option} {value} must be at least 1.")
    return make(rest, **given) if rest else make(**given)
