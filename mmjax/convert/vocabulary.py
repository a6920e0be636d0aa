"""The vocabulary of a converted checkpoint, which must be the one it was trained with."""

from __future__ import annotations

import dataclasses
import os
import pathlib

from mmjax import files
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A vocabulary file whose size fits a token embedding.

    Attributes:
      path: The file.
      tokenizer: The tokenizer that reads it, as in `data.text.tokenizer`.
    """

    path: str
    tokenizer: str

    @property
    def file_name(self) -> str:
        """Name of the copy in a run directory."""
        return pathlib.Path(self.path).name if self.tokenizer == "clip" else "vocab.txt"


def check(
    path: str | os.PathLike, *, vocab_size: int | None, tokenizer: str | None = None
) -> Vocabulary:
    """Returns the vocabulary in a file if it fits a token embedding.

    Args:
      path: The file.
      vocab_size: Number of tokens of the embedding; None if the model has none.
      tokenizer: The tokenizer that reads the file; None selects 'bert' or 'word' by its content.

    Raises:
      UserError: The model has no token embedding, or the file is not a vocabulary of this size.
    """
    if vocab_size is None:
        raise UserError(f"--vocab {path}: the checkpoint has no token embedding. Remove --vocab.")
    if not pathlib.Path(path).is_file():
        raise UserError(f"--vocab {path}: no such file.")
    from mmjax.data.text.tokenizers import make_tokenizer  # imports TensorFlow

    try:
        name = tokenizer or _detect_tokenizer(path)
        count = make_tokenizer(name, vocab=os.fspath(path)).vocab_size
    except UserError as error:
        raise UserError(f"--vocab {path} is not a vocabulary: {error}") from error
    if count != vocab_size:
        raise UserError(
            f"--vocab {path} has {count:,} tokens, but the checkpoint's token embedding has "
            f"{vocab_size:,}. Pass the vocabulary that the checkpoint was trained with."
        )
    return Vocabulary(os.fspath(path), name)


def _detect_tokenizer(path: str | os.PathLike) -> str:
    return "bert" if files.read_text(path).split("\n")[0].strip() == "[PAD]" else "word"


def vatt_note(vocabulary: Vocabulary | None, *, vocab_size: int) -> str:
    """Returns the line of a report about the vocabulary of a VATT checkpoint."""
    if vocabulary is not None:
        return (
            f"Vocabulary: {vocabulary.path}, {vocab_size:,} tokens, tokenizer "
            f"{vocabulary.tokenizer}"
        )
    return (
        f"Vocabulary: UNKNOWN. The checkpoint does not contain the {vocab_size:,} tokens of its "
        "embedding. By default a dataset's own vocabulary is used, whose token ids differ: text "
        "retrieval and training with text then give wrong results without an error. Convert with "
        "--vocab FILE (VATT's misc/howto100m_en.txt; for BERT misc/bert_uncased_en.txt), or pass "
        "--config.data.text.vocab=FILE to every command (for BERT also "
        "--config.data.text.tokenizer=bert)."
    )


def clip_notes(vocabulary: Vocabulary | None) -> list[str]:
    """Returns the lines of a report about the vocabulary of a CLIP text tower."""
    if vocabulary is not None:
        return [f"Vocabulary: {vocabulary.path}, tokenizer {vocabulary.tokenizer}"]
    return [
        "Vocabulary: unknown. Pass CLIP's bpe_simple_vocab_16e6.txt.gz with --vocab now, or with "
        "--config.data.text.vocab to every command."
    ]
