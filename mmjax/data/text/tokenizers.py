"""Tokenizers that turn captions into token ids: word-level (VATT), BERT, sentencepiece and CLIP."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from mmjax import files, registry
from mmjax.data.text import clip_bpe
from mmjax.data.text.word_vocab import PUNCTUATION, read_word_vocab, split_words
from mmjax.errors import UserError


class Tokenizer:
    """Base class of tokenizers: captions to token ids, and back.

    Attributes:
      vocab: The vocabulary file.
      max_tokens: Length of the output; longer captions are truncated.
      vocab_size: Token ids are in [0, vocab_size).
      pad_id: The id of padding, 0 for every tokenizer.
    """

    pad_id = 0
    vocab = ""

    def __init__(self, *, vocab_size: int, max_tokens: int):
        self.vocab_size, self.max_tokens = vocab_size, max_tokens

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text, at most `max_tokens`."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of token ids, without padding and special tokens.

        The text is lowercase, with spaces between words. Tokens that are not in the vocabulary are
        lost.
        """
        return self._text([int(token_id) for token_id in ids if token_id != self.pad_id])

    def _text(self, ids: list[int]) -> str:
        raise NotImplementedError

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns int32 [len(texts), max_tokens], padded with 0. An empty text is all zeros."""
        result = np.zeros((len(texts), self.max_tokens), np.int32)
        present = [index for index, text in enumerate(texts) if text]
        for index, ids in zip(present, self.ids([texts[n] for n in present]), strict=True):
            result[index, : len(ids)] = ids
        return result

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        """Returns the words that all become the same unknown token, without repetitions."""
        return []

    def encode_tensor(self, texts: tf.Tensor) -> tf.Tensor:
        """Returns `encode` of a string tensor [n] in a TensorFlow graph, int32 [n, max_tokens]."""

        def encode(texts):
            return self.encode([text.decode(errors="replace") for text in texts])

        ids = tf.numpy_function(encode, [texts], tf.int32, stateful=False)
        return tf.ensure_shape(ids, [None, self.max_tokens])


class WordTokenizer(Tokenizer):
    """VATT's tokenizer: looks up the words of `word_vocab.split_words`.

    Args:
      vocab: A vocabulary file; see `word_vocab.read_word_vocab`.
      max_tokens: Length of the output.

    Attributes:
      words: {token: id}.
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

    def unknown_words(self, texts: Sequence[str]) -> list[str]:
        words = dict.fromkeys(word for text in texts for word in split_words(text))
        return [word for word in words if word not in self.words]

    def _text(self, ids: list[int]) -> str:
        word_of = {token_id: word for word, token_id in self.words.items()}
        words = [word_of.get(token_id, "<unk>") for token_id in ids]
        return " ".join(word for word in words if word not in ("<bos>", "<eos>"))

    def encode_tensor(self, texts: tf.Tensor) -> tf.Tensor:
        # Plain TensorFlow operations, faster than a call of Python for each example.
        texts = tf.strings.lower(tf.strings.regex_replace(texts, PUNCTUATION, ""), encoding="utf-8")
        words = tf.strings.split(texts)
        ids = words.with_flat_values(self._table.lookup(words.flat_values))
        return ids.to_tensor(0, shape=[None, self.max_tokens])


class SubwordTokenizer(Tokenizer):
    """A tokenizer of Hugging Face's `tokenizers` library, with optional begin and end tokens.

    Args:
      tokenizer: A `tokenizers.Tokenizer` without post-processor.
      max_tokens: Length of the output, including the begin and end tokens.
      join: Function from subwords to text.
      begin: Token before each caption, or None.
      end: Token after each caption, or None.
      clean: Function applied to each caption before tokenization.
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
        max_subwords = self.max_tokens - len(self._begin) - len(self._end)
        cleaned = [self._clean(text) for text in texts]
        encoded = self._tokenizer.encode_batch(cleaned, add_special_tokens=False)
        return [self._begin + encoding.ids[:max_subwords] + self._end for encoding in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        ids = [int(token_id) for token_id in ids]
        if not self._end or self._end[0] not in ids:
            return super().decode(ids)
        # There is no padding before the end token, and 0 may be a regular token (CLIP: '!').
        return self._text([n for n in ids[: ids.index(self._end[0])] if n not in self._begin])

    def _text(self, ids: list[int]) -> str:
        return self._join([self._tokenizer.id_to_token(token_id) or "" for token_id in ids])


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model. If its id 0 is not padding, all ids are increased by one.

    Args:
      vocab: The `.model` file.
      max_tokens: Length of the output.
    """

    def __init__(self, vocab: str, *, max_tokens: int):
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=vocab)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data.text.vocab={vocab} is not a sentencepiece model: {error}. Set it to the "
                ".model file, or choose another data.text.tokenizer."
            ) from error
        self._offset = int(self._model.pad_id() != 0)
        super().__init__(vocab_size=len(self._model) + self._offset, max_tokens=max_tokens)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._model.encode(list(texts))
        return [[token_id + self._offset for token_id in ids[: self.max_tokens]] for ids in encoded]

    def _text(self, ids: list[int]) -> str:
        return self._model.decode([token_id - self._offset for token_id in ids])


def make_tokenizer(name: str, *, vocab: str, merges: str = "", max_tokens: int = 16) -> Tokenizer:
    """Returns a tokenizer by name.

    Args:
      name: 'word', 'bert', 'sentencepiece', 'clip', or `package.module:Name` of a function or class
        that is called with (vocab, merges=…, max_tokens=…).
      vocab: The vocabulary file.
        'word': see `word_vocab.read_word_vocab`.
        'bert': `vocab.txt` with one subword per line. Text is lowercased; as in VATT, [CLS] and
        [SEP] are not added.
        'sentencepiece': the model.
        'clip': `vocab.json`, or CLIP's own `bpe_simple_vocab_16e6.txt.gz`. Text is lowercased and
        gets begin and end tokens. '' uses the file of an installed open_clip or clip package,
        without executing its code.
      merges: For 'clip' with a `vocab.json`: `merges.txt`.
      max_tokens: Length of the output.

    Raises:
      UserError: The name is unknown, or a file is missing or not valid for the tokenizer.
    """
    make = registry.resolve("data.text.tokenizer", name, _TOKENIZERS)
    if name == "clip" and not vocab:
        vocab = clip_bpe.find_vocab_file()
    for key, path in (("vocab", vocab), ("merges", merges)):
        required = key == "vocab" and name in _TOKENIZERS
        if (path or required) and not os.path.isfile(path):
            raise UserError(
                f"data.text.{key}={path!r} is not a file; the tokenizer {name!r} needs it. `mmjax "
                "vocab` builds a vocabulary of words from the captions of a dataset."
            )
    tokenizer = make(vocab, merges=merges, max_tokens=max_tokens)
    tokenizer.vocab = vocab
    return tokenizer


def _word(vocab: str, *, merges: str, max_tokens: int) -> Tokenizer:
    return WordTokenizer(vocab, max_tokens=max_tokens)


def _sentencepiece(vocab: str, *, merges: str, max_tokens: int) -> Tokenizer:
    return SentencePieceTokenizer(vocab, max_tokens=max_tokens)


def _bert(vocab: str, *, merges: str, max_tokens: int) -> Tokenizer:
    import tokenizers

    lines = files.read_text(vocab).removesuffix("\n").split("\n")
    ids = {line.removesuffix("\r"): index for index, line in enumerate(lines)}
    if missing := [token for token in ("[PAD]", "[UNK]") if token not in ids]:
        raise UserError(
            f"{vocab}: a BERT vocabulary must contain [PAD] and [UNK]; missing: "
            f"{' '.join(missing)}. Set data.text.vocab to BERT's vocab.txt."
        )
    if ids["[PAD]"] != 0:
        raise UserError(
            f"{vocab}: the first line of a BERT vocabulary must be [PAD], but it is on line "
            f"{ids['[PAD]'] + 1}. Set data.text.vocab to BERT's vocab.txt."
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return SubwordTokenizer(
        tokenizer,
        max_tokens=max_tokens,
        join=lambda subwords: " ".join(subwords).replace(" ##", ""),
    )


def _clip(vocab: str, *, merges: str, max_tokens: int) -> Tokenizer:
    import tokenizers

    ids, pairs = clip_bpe.read_files(vocab, merges)
    try:
        model = tokenizers.models.BPE(ids, pairs, end_of_word_suffix="</w>", unk_token=clip_bpe.END)
    except Exception as error:  # the library raises no more specific type
        raise UserError(
            f"data.text.vocab={vocab} and data.text.merges={merges} do not fit together: {error}. "
            "Download both files again."
        ) from error
    tokenizer = tokenizers.Tokenizer(model)
    words = tokenizers.Regex(clip_bpe.WORDS)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(words, "removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    return SubwordTokenizer(
        tokenizer,
        max_tokens=max_tokens,
        join=clip_bpe.join,
        begin=clip_bpe.BEGIN,
        end=clip_bpe.END,
        clean=clip_bpe.clean,
    )


_TOKENIZERS = {"word": _word, "bert": _bert, "sentencepiece": _sentencepiece, "clip": _clip}
