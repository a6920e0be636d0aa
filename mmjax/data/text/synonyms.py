"""Synonyms of the words in captions: a JSON file {word: [synonyms]}.

A table of tactile adjectives is included in the package. Training on captions with synonyms makes
a touch encoder depend less on the words of one annotator (TVL: Fu et al. 2024, A Touch, Vision, and
Language Dataset for Multimodal Alignment, arXiv 2402.13232).
"""

from __future__ import annotations

import os

from mmjax import assets, files
from mmjax.errors import UserError

TACTILE = "tactile"  # name of the included table


def load_synonyms(path: str | os.PathLike, *, keep: int = 0) -> dict[str, list[str]]:
    """Returns {word: [the word itself, its synonyms]}, each once, in the order of the file.

    Words are lowercased and stripped, as captions are.

    Args:
      path: A JSON file {word: [synonyms]}, or 'tactile' for the included table.
      keep: Maximum length of each list, including the word itself; 0 keeps all synonyms.

    Raises:
      UserError: The file does not exist or has other content, or `keep` is negative.
    """
    if keep < 0:
        raise UserError(
            f"The number of synonyms to keep per word must be at least 0 (0 keeps all); got {keep}."
        )
    path = os.fspath(path)
    file_name = path
    if path == TACTILE:
        file_name = os.path.join(assets.__path__[0], "synonyms", "tactile.json")
    example = '{"rough": ["coarse", "bumpy"], …}'
    advice = f"Pass a JSON file {example}, or {TACTILE!r} for the included table."
    table = files.read_json(file_name, advice)
    if not isinstance(table, dict):
        raise UserError(
            f"{path} contains a JSON {type(table).__name__}; expected an object: {example}."
        )
    result: dict[str, list[str]] = {}
    for key, synonyms in table.items():
        if not isinstance(synonyms, list) or not all(isinstance(s, str) for s in synonyms):
            raise UserError(
                f"{path}: the synonyms of {key!r} must be a list of strings; got {synonyms!r}."
            )
        word, *others = (text.strip().lower() for text in (key, *synonyms))
        if not word:
            raise UserError(
                f"{path}: the key {key!r} is empty (its synonyms are {synonyms}). Remove it or "
                "write the word."
            )
        result.setdefault(word, [word]).extend(other for other in others if other)
    return {word: list(dict.fromkeys(words))[: keep or None] for word, words in result.items()}
