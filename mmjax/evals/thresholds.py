"""Thresholds of `semantic_retrieval` from synonyms: how near words of one meaning are in a model.

TVL's four thresholds are percentiles of the cosines between touch adjectives and their synonyms in
the text space of OpenCLIP (Fu et al. 2024, A Touch, Vision, and Language Dataset for Multimodal
Alignment, arXiv 2402.13232).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.errors import UserError, choose

PERCENTILES = (0.0, 25.0, 50.0, 75.0)
# What counts as two words of one meaning, among a word and its synonyms [word, synonyms…].
_PAIRS: dict[str, Callable[[Sequence[str]], Any]] = {
    "key": lambda group: ((group[0], other) for other in group[1:]),
    "all": lambda group: itertools.combinations(group, 2),
}


def similarities(
    synonyms: Mapping[str, Sequence[str]],
    embed_text: Callable[[list[str]], np.ndarray],
    *,
    prompt: str = "",
    pairs: str = "key",
) -> dict[tuple[str, str], float]:
    """{(word, other): cosine} of words with the same meaning, each unordered pair once.

    Args:
      synonyms: {word: [word, synonyms…]}, as `mmjax.data.text.synonyms.load_synonyms` gives them.
      embed_text: texts → embeddings [texts, D]; a text is the prompt, a word and a full stop.
      prompt: text in front of each word.
      pairs: 'key', a word and each of its synonyms, or 'all', also two synonyms of one word.

    Raises:
      UserError: an unknown kind of pairs, or no pair.
    """
    pairs_of = choose("--pairs", pairs, _PAIRS)
    found = {}
    for word, others in synonyms.items():
        group = list(dict.fromkeys([word, *others]))
        for first, second in pairs_of(group):
            found.setdefault(frozenset((first, second)), (first, second))
    if not found:
        raise UserError("There is no word with a synonym, so no threshold.")
    words = list(dict.fromkeys(word for pair in found.values() for word in pair))
    embedded = np.asarray(embed_text([f"{prompt}{word}." for word in words]), np.float32)
    embedded = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    row = {word: number for number, word in enumerate(words)}
    return {
        (first, second): float(min(embedded[row[first]] @ embedded[row[second]], 1.0))
        for first, second in found.values()
    }


def report(
    cosines: Mapping[tuple[str, str], float], percentiles: Sequence[float] = PERCENTILES
) -> dict[str, Any]:
    """What the command prints: percentiles of the cosines, and how far they are from TVL's.

    Args:
      cosines: of `similarities`.
      percentiles: in [0, 100].

    Raises:
      UserError: a percentile that is none.
    """
    from mmjax.evals.semantic_retrieval import THRESHOLDS  # imports jax

    if not percentiles or not all(0 <= p <= 100 for p in percentiles):
        raise UserError(f"--percentiles {list(percentiles)} must be numbers from 0 to 100.")
    values = np.percentile(list(cosines.values()), percentiles).tolist()
    found: dict[str, Any] = {
        "pairs": len(cosines),
        "percentiles": {f"{p:g}": value for p, value in zip(percentiles, values, strict=True)},
        "least_similar": [list(pair) for pair in sorted(cosines, key=cosines.get)[:3]],
        "option": f"'--config.evals.NAME.thresholds=({','.join(f'{v:.10g}' for v in values)},)'",
    }
    if tuple(percentiles) == PERCENTILES:
        differences = [value - theirs for value, theirs in zip(values, THRESHOLDS, strict=True)]
        found["minus_published"] = differences
        found["distance_to_published"] = max(map(abs, differences))
    return found


def thresholds_of_run(
    model_dir: str,
    *,
    synonyms: str = "tactile",
    prompt: str = "",
    pairs: str = "key",
    percentiles: Sequence[float] = PERCENTILES,
) -> dict[str, Any]:
    """Returns the report of `report` for the text tower of a run.

    Args:
      model_dir: The run directory.
      synonyms: A JSON file, or the name of a built-in table; see
        `mmjax.data.text.synonyms.load_synonyms`.
      prompt, pairs: See `similarities`.
      percentiles: See `report`.
    """
    import mmjax
    from mmjax.data.text.synonyms import load_synonyms

    table = load_synonyms(synonyms)
    # Percentiles are printed with more digits than bfloat16 has, so compute in float32.
    model = mmjax.load(model_dir, overrides=["--config.model.dtype=float32"])
    cosines = similarities(table, model.embed_text, prompt=prompt, pairs=pairs)
    return report(cosines, percentiles)
