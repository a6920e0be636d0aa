"""Word vocabularies in VATT's format: splitting text into words, building, reading and writing.

This module does not load TensorFlow. The tokenizer of such a vocabulary is
`mmjax.data.text.tokenizers.WordTokenizer`.
"""

from __future__ import annotations

import collections
import os
import re
import string
from collections.abc import Iterable, Sequence

from mmjax import files
from mmjax.errors import UserError

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
# Only ASCII whitespace separates words, in captions and in vocabulary files: a word may contain a
# no-break space, as TensorFlow and VATT define words.
_SPACE_SEPARATED = re.compile(r"[^ \t\n\v\f\r]+")
PUNCTUATION = f"[{re.escape(string.punctuation)}]"  # a regular expression


def split_words(text: str) -> list[str]:
    """Returns the words of a text as VATT defines them.

    ASCII punctuation is removed, letters are lowercased, and ASCII whitespace separates words.
    """
    return _SPACE_SEPARATED.findall(re.sub(PUNCTUATION, "", text).lower())


def build_word_vocab(texts: Iterable[str], *, size: int = 65_536) -> list[str]:
    """Returns the tokens of a vocabulary: the special ones, then words by descending frequency.

    Words of equal frequency are in alphabetical order.

    Args:
      texts: Captions.
      size: Maximum number of tokens, including the four special ones.
    """
    counts = collections.Counter(word for text in texts for word in split_words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [*SPECIAL, *ranked][:size]


def write_word_vocab(path: str | os.PathLike, words: Sequence[str]) -> None:
    """Writes a vocabulary atomically, one token per line."""
    files.write_text(path, "".join(f"{word}\n" for word in words))


def read_word_vocab(path: str | os.PathLike) -> dict[str, int]:
    """Returns {token: id} of a vocabulary file.

    Args:
      path: File with lines `token`, numbered from 0, or with lines `id token`.

    Raises:
      UserError: A line is malformed, a token or id is repeated, a special token is missing, or the
        id of <pad> is not 0.
    """
    text = enumerate(files.read_text(path).split("\n"), 1)
    lines = [(n, _SPACE_SEPARATED.findall(line)) for n, line in text]
    lines = [(n, parts) for n, parts in lines if parts]
    has_ids = all(len(parts) == 2 and parts[0].isdecimal() for _, parts in lines)
    ids: dict[str, int] = {}
    line_of: dict[int, int] = {}  # by id
    for index, (line, parts) in enumerate(lines):
        if not has_ids and len(parts) != 1:
            raise UserError(
                f"{path}, line {line} is {' '.join(parts)!r}; expected one token per line, or `id "
                "token` on every line."
            )
        token, token_id = parts[-1], int(parts[0]) if has_ids else index
        if token in ids:
            raise UserError(
                f"{path}, line {line}: the token {token!r} occurs twice; its first line is "
                f"{line_of[ids[token]]}. Remove one of them."
            )
        if token_id in line_of:
            raise UserError(
                f"{path}, line {line}: the id {token_id} of {token!r} occurs twice; its first line "
                f"is {line_of[token_id]}. Ids must be unique."
            )
        ids[token], line_of[token_id] = token_id, line
    if missing := [token for token in SPECIAL if token not in ids]:
        raise UserError(
            f"{path}: a word vocabulary must contain {' '.join(SPECIAL)}; missing: "
            f"{' '.join(missing)}. `mmjax vocab` builds one from the captions of a dataset."
        )
    if ids["<pad>"] != 0:
        raise UserError(
            f"{path}: the id of <pad> must be 0; it is {ids['<pad>']}. Put <pad> on the first line "
            f"of a vocabulary ({' '.join(SPECIAL)} …)."
        )
    return ids
