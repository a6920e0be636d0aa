"""The tokenizer of the section `data.text`, with its vocabulary."""

from __future__ import annotations

import functools
import logging
import os

from mmjax.data.pipeline import keywords
from mmjax.data.pipeline.config import DataConfig
from mmjax.data.sources import registry as sources
from mmjax.data.text.tokenizers import Tokenizer, WordTokenizer, make_tokenizer
from mmjax.data.text.word_vocab import split_words
from mmjax.errors import UserError

log = logging.getLogger(__name__)


def open_tokenizer(cfg: DataConfig) -> Tokenizer:
    """Returns the tokenizer of `data.text`, and logs its vocabulary.

    The vocabulary is `data.text.vocab`, or else that of the training data, also when another
    dataset is evaluated.

    Raises:
      UserError: There is no vocabulary, or it is not one for this tokenizer.
    """
    text, vocab = cfg.text, os.path.expanduser(cfg.text.vocab)
    if not vocab and text.tokenizer == "word":
        vocab = sources.vocabulary(cfg.specs[0], split=cfg.split)
    tokenizer = make_tokenizer(
        text.tokenizer, vocab=vocab, merges=text.merges, max_tokens=text.max_tokens
    )
    _log_vocabulary(text.tokenizer, tokenizer.vocab, tokenizer.vocab_size)
    if text.keywords and text.tokenizer == "word":
        _check_covers_keywords(text.keywords, tokenizer)
    return tokenizer


def _check_covers_keywords(options: keywords.Keywords, tokenizer: WordTokenizer) -> None:
    """Raises UserError if the vocabulary lacks words that `data.text.keywords` inserts.

    All of them would become the same unknown token.
    """
    words = {word for text in keywords.inserted_texts(options) for word in split_words(text)}
    missing = sorted(words - set(tokenizer.words))
    if not missing:
        return
    listed = ", ".join(missing[:8]) + (" …" if len(missing) > 8 else "")
    flags = f" --synonyms {options.synonyms}" if options.synonyms else ""
    flags += f' --prompt "{options.prompt}"' if options.prompt else ""
    raise UserError(
        f"data.text.keywords inserts {len(missing)} words that the vocabulary {tokenizer.vocab} "
        f"lacks: {listed}. Add them with `mmjax vocab DIRECTORY --keywords{flags}`."
    )


@functools.cache  # Every dataset that is opened makes a tokenizer; one log line is enough.
def _log_vocabulary(name: str, vocab: str, size: int) -> None:
    log.info("Vocabulary: %s, %d tokens, tokenizer %s.", vocab, size, name)
