"""The vocabulary of a converted checkpoint: its table of words is of use with that one alone."""

from __future__ import annotations

import dataclasses
import os
import pathlib

from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A file of words that fits a checkpoint's table.

    Attributes:
      path: the file.
      tokenizer: which reads it, by its name in `data.text.tokenizer`.
    """

    path: str
    tokenizer: str

    @property
    def file(self) -> str:
        """What the copy in a run directory is called."""
        return pathlib.Path(self.path).name if self.tokenizer == "clip" else "vocab.txt"


def check(path: str | os.PathLike, *, rows: int | None, tokenizer: str | None = None) -> Vocabulary:
    """The vocabulary of a file, for a table of so many `rows`.

    Args:
      path: the file.
      rows: of the table; None if there is none.
      tokenizer: which reads it; None finds out whether it is BERT's pieces, or plain words.

    Raises:
      UserError: there is no table (None), the file is no vocabulary, or one of another size.
    """
    if rows is None:
        raise UserError(f"--vocab {path}: the checkpoint has no table of words. Leave it out.")
    if not pathlib.Path(path).is_file():
        raise UserError(f"--vocab {path}: there is no such file.")
    from mmjax.data.text.tokenizers import make_tokenizer  # imports TensorFlow

    try:
        name = tokenizer or _kind(path)
        count = make_tokenizer(name, vocab=os.fspath(path)).vocab_size
    except (UserError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"--vocab {path} is no vocabulary of words: {error}") from error
    if count != rows:
        raise UserError(
            f"--vocab {path} has {count:,} words, the checkpoint's table {rows:,}: it is another "
            "vocabulary."
        )
    return Vocabulary(os.fspath(path), name)


def _kind(path: str | os.PathLike) -> str:
    with open(path, encoding="utf-8") as file:
        return "bert" if file.readline().strip() == "[PAD]" else "word"


def describe(vocabulary: Vocabulary | None, *, rows: int) -> str:
    """What a user must know of the words of a table of so many `rows`; None is an unknown one."""
    if vocabulary is not None:
        return f"Vocabulary: {vocabulary.path}, {rows:,} words, tokenizer {vocabulary.tokenizer}"
    return (
        f"Vocabulary: UNKNOWN. A checkpoint does not hold the {rows:,} words that its table is of. "
        "With any other vocabulary, such as the one that a dataset brings and that is taken by "
        "default, captions get the numbers of other words: retrieval and training with text go "
        "wrong, without an error. Convert with --vocab FILE (VATT's misc/howto100m_en.txt, for "
        "BERT misc/bert_uncased_en.txt), or give --config.data.text.vocab=FILE (for BERT "
        "--config.data.text.tokenizer=bert too) with every command."
    )
