"""From captions to token numbers: VATT's words, BERT's pieces, sentencepiece, CLIP's pairs."""

from __future__ import annotations

import collections
import functools
import gzip
import html
import importlib.util
import json
import os
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import tensorflow as tf

from mmjax.errors import UserError, choose

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CLIP_FILE = "bpe_simple_vocab_16e6.txt.gz"  # CLIP's vocabulary, in OpenAI's and OpenCLIP's packages
_PUNCTUATION = f"[{re.escape(string.punctuation)}]"


class Tokenizer:
    """Captions → token numbers, and back.

    Attributes:
      vocab: its file.
      max_tokens: length of a row; longer captions are cut.
      vocab_size: token numbers are in [0, vocab_size).
      pad_id: 0, in every tokenizer.
    """

    pad_id = 0
    vocab = ""

    def __init__(self, *, vocab_size: int, max_tokens: int):
        self.vocab_size, self.max_tokens = vocab_size, max_tokens

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token numbers of each text, at most `max_tokens`."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of a row of token numbers, without padding and marks.

        It is that which was encoded, as far as the vocabulary has it: in small letters, with a
        blank between words.
        """
        return self._text([int(number) for number in ids if number != self.pad_id])

    def _text(self, ids: list[int]) -> str:
        raise NotImplementedError

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """int32 [len(texts), max_tokens], padded with 0; an empty text is all zeros."""
        rows = np.zeros((len(texts), self.max_tokens), np.int32)
        present = [number for number, text in enumerate(texts) if text]
        for number, ids in zip(present, self.ids([texts[n] for n in present]), strict=True):
            rows[number, : len(ids)] = ids
        return rows

    def encode_tensor(self, texts: tf.Tensor) -> tf.Tensor:
        """`encode` inside tf.data: string [n] → int32 [n, max_tokens]."""

        def encode(texts):
            return self.encode([text.decode(errors="replace") for text in texts])

        rows = tf.numpy_function(encode, [texts], tf.int32, stateful=False)
        return tf.ensure_shape(rows, [None, self.max_tokens])


class WordTokenizer(Tokenizer):
    """VATT's: removes ASCII punctuation, lower-cases, splits at white space, looks words up.

    Args:
      vocab: a file of lines `word` or `number word`; it has <pad> <bos> <eos> <unk>, <pad> is
        number 0.
      max_tokens: length of a row.
    """

    def __init__(self, vocab: str, *, max_tokens: int):
        self.words = read_word_vocab(vocab)
        super().__init__(vocab_size=max(self.words.values()) + 1, max_tokens=max_tokens)
        self._unknown = self.words["<unk>"]
        self._table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(list(self.words)), tf.constant(list(self.words.values()), tf.int32)
            ),
            self._unknown,
        )

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [
            [self.words.get(word, self._unknown) for word in split_words(text)][: self.max_tokens]
            for text in texts
        ]

    def _text(self, ids: list[int]) -> str:
        names = {number: word for word, number in self.words.items()}
        words = [names.get(number, "<unk>") for number in ids]
        return " ".join(word for word in words if word not in ("<bos>", "<eos>"))

    def encode_tensor(self, texts: tf.Tensor) -> tf.Tensor:
        texts = tf.strings.lower(
            tf.strings.regex_replace(texts, _PUNCTUATION, ""), encoding="utf-8"
        )
        words = tf.strings.split(texts)
        ids = words.with_flat_values(self._table.lookup(words.flat_values))
        return ids.to_tensor(0, shape=[None, self.max_tokens])


class SubwordTokenizer(Tokenizer):
    """A tokenizer of Hugging Face's `tokenizers` library, with optional marks at both ends.

    Args:
      tokenizer: a `tokenizers.Tokenizer` without post-processor.
      max_tokens: length of a row, marks included.
      join: makes a text of pieces.
      begin, end: tokens put around each caption.
      clean: what is done to a caption first.
    """

    def __init__(
        self,
        tokenizer,
        *,
        max_tokens: int,
        join: Callable[[list[str]], str],
        begin: str | None = None,
        end: str | None = None,
        clean: Callable[[str], str] = str,
    ):
        super().__init__(vocab_size=tokenizer.get_vocab_size(), max_tokens=max_tokens)
        self._tokenizer, self._join, self._clean = tokenizer, join, clean
        self._begin = [tokenizer.token_to_id(begin)] if begin else []
        self._end = [tokenizer.token_to_id(end)] if end else []

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        room = self.max_tokens - len(self._begin) - len(self._end)
        cleaned = [self._clean(text) for text in texts]
        encoded = self._tokenizer.encode_batch(cleaned, add_special_tokens=False)
        return [self._begin + encoding.ids[:room] + self._end for encoding in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = [int(number) for number in ids]
        if not self._end or self._end[0] not in ids:
            return super().decode(ids)
        # Before the end mark nothing is padding: 0 may be a piece of its own (CLIP: '!').
        return self._text([n for n in ids[: ids.index(self._end[0])] if n not in self._begin])

    def _text(self, ids: list[int]) -> str:
        return self._join([self._tokenizer.id_to_token(number) or "" for number in ids])


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model. Models whose number 0 is not padding get all numbers raised by one.

    Args:
      vocab: the `.model` file.
      max_tokens: length of a row.
    """

    def __init__(self, vocab: str, *, max_tokens: int):
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=vocab)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data.text.vocab={vocab} is not a sentencepiece model: {error}"
            ) from error
        self._raised = int(self._model.pad_id() != 0)
        super().__init__(vocab_size=len(self._model) + self._raised, max_tokens=max_tokens)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._model.encode(list(texts))
        return [[number + self._raised for number in ids[: self.max_tokens]] for ids in encoded]

    def _text(self, ids: list[int]) -> str:
        return self._model.decode([number - self._raised for number in ids])


def make_tokenizer(name: str, *, vocab: str, merges: str = "", max_tokens: int = 16) -> Tokenizer:
    """A tokenizer by name.

    Args:
      name: 'word', 'bert', 'sentencepiece' or 'clip'.
      vocab: 'word': see `WordTokenizer`. 'bert': `vocab.txt`, one piece per line (lower-cased, no
        [CLS] or [SEP]: VATT). 'sentencepiece': the model. 'clip': `vocab.json`, or CLIP's own
        `bpe_simple_vocab_16e6.txt.gz` alone (lower-cased, with start and end marks); '' takes that
        of an installed open_clip or clip package, of which nothing is run.
      merges: of 'clip': `merges.txt` beside a `vocab.json`.
      max_tokens: length of a row.

    Raises:
      UserError: an unknown name, or files that are not what the tokenizer needs.
    """
    make = choose("data.text.tokenizer", name, _TOKENIZERS)
    if name == "clip" and not vocab:
        vocab = _installed_clip_file()
    for path in (vocab, *([merges] if merges else [])):
        if not os.path.isfile(path):
            raise UserError(
                f"The tokenizer {name!r} needs a vocabulary: data.text.vocab={path!r} is not a "
                "file. `mmjax vocab` makes "
                "one of words from a dataset's captions."
            )
    tokenizer = make(vocab, merges=merges, max_tokens=max_tokens)
    tokenizer.vocab = vocab
    return tokenizer


def _installed_clip_file() -> str:
    """CLIP's vocabulary in a package that has it, which is not imported."""
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        for directory in (spec and spec.submodule_search_locations) or ():
            path = os.path.join(directory, CLIP_FILE)
            if os.path.isfile(path):
                return path
    raise UserError(
        "The tokenizer 'clip' needs CLIP's vocabulary. Either `pip install --no-deps "
        "open_clip_torch`, which brings it (nothing of the package is run), or set "
        f"data.text.vocab to a copy of {CLIP_FILE}, or to vocab.json with "
        "data.text.merges=merges.txt."
    )


def _word(vocab: str, *, merges: str, max_tokens: int) -> Tokenizer:
    return WordTokenizer(vocab, max_tokens=max_tokens)


def _sentencepiece(vocab: str, *, merges: str, max_tokens: int) -> Tokenizer:
    return SentencePieceTokenizer(vocab, max_tokens=max_tokens)


def _bert(vocab: str, *, merges: str, max_tokens: int) -> Tokenizer:
    import tokenizers

    with open(vocab, encoding="utf-8") as file:
        pieces = {line.rstrip("\n"): number for number, line in enumerate(file)}
    if pieces.get("[PAD]") != 0 or "[UNK]" not in pieces:
        raise UserError(f"{vocab}: a BERT vocabulary begins with [PAD] and has [UNK].")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return SubwordTokenizer(
        tokenizer,
        max_tokens=max_tokens,
        join=lambda pieces: " ".join(pieces).replace(" ##", ""),
    )


def _clip(vocab: str, *, merges: str, max_tokens: int) -> Tokenizer:
    import tokenizers

    numbers, pairs = _clip_files(vocab, merges)
    begin, end = "<|startoftext|>", "<|endoftext|>"
    if begin not in numbers or end not in numbers:
        raise UserError(f"{vocab}: CLIP's vocabulary has {begin} and {end}.")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(numbers, pairs, end_of_word_suffix="</w>", unk_token=end)
    )
    regex = tokenizers.Regex
    words = regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(words, "removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return SubwordTokenizer(
        tokenizer, max_tokens=max_tokens, join=_clip_text, begin=begin, end=end, clean=_clip_cleaned
    )


def _clip_cleaned(text: str) -> str:
    """A caption as CLIP reads it: mended by ftfy if that is installed, HTML resolved, one blank
    between words, small letters."""
    text = html.unescape(html.unescape(_mender()(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


@functools.cache
def _mender() -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError:  # what it does to texts in which nothing is broken
        straight = dict.fromkeys(map(ord, "ʼ‘’‚‛"), "'") | dict.fromkeys(map(ord, "“”„‟"), '"')
        return lambda text: unicodedata.normalize("NFC", text.translate(straight))
    return ftfy.fix_text


def _clip_text(pieces: list[str]) -> str:
    byte_of = _byte_letters()
    words = "".join(pieces).split("</w>")
    texts = [bytes(byte_of[letter] for letter in word) for word in words]
    return " ".join(text.decode(errors="replace") for text in texts).strip()


def _clip_files(vocab: str, merges: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token numbers and merges, from a pair of files or from CLIP's list of merges alone."""
    opener = gzip.open if vocab.endswith(".gz") else open
    path = merges or vocab
    with (open if merges else opener)(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    if merges or not vocab.endswith(".json"):
        # The first line is a version; CLIP's file goes on with merges it does not use.
        lines = lines[1:] if merges else lines[1 : 49152 - 256 - 2 + 1]
        pairs = [tuple(line.split()) for line in lines if line.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise UserError(f"{path} is not a list of merges (two pieces per line).")
    else:
        raise UserError(
            f"The tokenizer 'clip' with {vocab} also needs data.text.merges (merges.txt)."
        )
    if merges:
        with open(vocab, encoding="utf-8") as file:
            return json.load(file), pairs
    letters = _byte_letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(p) for p in pairs)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    return {piece: number for number, piece in enumerate(pieces)}, pairs


def _byte_letters() -> dict[str, int]:
    """A printable letter for each byte, in CLIP's order: printable bytes first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + number): byte for number, byte in enumerate(rest)}


_TOKENIZERS = {"word": _word, "bert": _bert, "sentencepiece": _sentencepiece, "clip": _clip}


def split_words(text: str) -> list[str]:
    """The words of a caption as VATT counts them; ASCII white space separates them."""
    return re.findall(r"[^ \t\n\v\f\r]+", re.sub(_PUNCTUATION, "", text).lower())


def build_word_vocab(texts: Iterable[str], *, size: int = 65_536) -> list[str]:
    """The words of a vocabulary: <pad> <bos> <eos> <unk>, then the most frequent ones, equal counts
    by alphabet.

    Args:
      texts: captions.
      size: at most this many entries, the four included.
    """
    counts = collections.Counter(word for text in texts for word in split_words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [*SPECIAL, *ranked][:size]


def write_word_vocab(path: str | os.PathLike, words: Sequence[str]) -> None:
    """Writes a vocabulary, one word per line, atomically."""
    temporary = f"{os.fspath(path)}.tmp-{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write("".join(f"{word}\n" for word in words))
    os.replace(temporary, path)


def read_word_vocab(path: str | os.PathLike) -> dict[str, int]:
    """{word: number} of a file of lines `word` or `number word`.

    Raises:
      UserError: one of <pad> <bos> <eos> <unk> is missing, <pad> is not 0, or a word or number
        comes twice.
    """
    with open(path, encoding="utf-8") as file:
        lines = [line.split() for line in file if line.strip()]
    numbered = all(len(line) == 2 and line[0].isdigit() for line in lines)
    if not numbered and any(len(line) != 1 for line in lines):
        raise UserError(f"{path}: lines must be `word`, or all of them `number word`.")
    pairs = [(line[-1], int(line[0]) if numbered else at) for at, line in enumerate(lines)]
    words = dict(pairs)
    missing = [word for word in SPECIAL if word not in words]
    if missing or words["<pad>"] != 0:
        raise UserError(
            f"{path}: a vocabulary has {' '.join(SPECIAL)}, <pad> with number 0"
            + (f"; missing: {' '.join(missing)}." if missing else f", not {words['<pad>']}.")
        )
    if len(words) != len(pairs) or len(set(words.values())) != len(pairs):
        raise UserError(f"{path}: a word or a number comes twice.")
    return words
