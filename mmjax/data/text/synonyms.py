"""Other words for the words of captions: a JSON file {word: [other words]}.

A table for the adjectives of touch is part of the package. Captions that say the same in other
words train an encoder of touch that is less bound to the words of one annotator (TVL: Fu et al.
2024, A Touch, Vision, and Language Dataset for Multimodal Alignment, arXiv 2402.13232).
"""

from __future__ import annotations

import json
import os

from mmjax import assets
from mmjax.errors import UserError

TACTILE = "tactile"  # names the table of the package


def load_synonyms(path: str | os.PathLike, *, keep: int = 0) -> dict[str, list[str]]:
    """{word: [the word itself, others]}, in the order of the file, each once.

    Words are compared as captions are read, in small letters and without blanks around them.

    Args:
      path: a JSON file {word: [other words]}, or 'tactile' for the table that comes with mmjax.
      keep: the length that lists are cut to, the word itself included; 0 = whole.

    Raises:
      UserError: no such file, or something else in it.
    """
    if keep < 0:
        raise UserError(f"Of each word's synonyms, {keep} are to be kept; give 0 (all) or more.")
    path = os.fspath(path)
    file_name = path
    if path == TACTILE:
        file_name = os.path.join(assets.__path__[0], "synonyms", "tactile.json")
    try:
        with open(file_name, encoding="utf-8-sig") as file:
            table = json.load(file)
    except FileNotFoundError as error:
        raise UserError(
            f"There is no file {path} of synonyms. Give a JSON file "
            f'{{"rough": ["coarse", "bumpy"], …}}, or {TACTILE!r} for the table of mmjax.'
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(table, dict):
        raise UserError(f"{path} holds no object {{word: [other words]}}.")
    found: dict[str, list[str]] = {}
    for word, others in table.items():
        if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
            raise UserError(f"{path}: the synonyms of {word!r} are no list of words: {others!r}.")
        key, *words = (text.strip().lower() for text in (word, *others))
        if not key:
            raise UserError(f"{path}: a word is empty, that of the synonyms {others}.")
        found.setdefault(key, [key]).extend(other for other in words if other)
    return {key: list(dict.fromkeys(words))[: keep or None] for key, words in found.items()}
