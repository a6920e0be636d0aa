"""Thresholds of `semantic_retrieval`: cosines of synonyms in the text embedding space of a model.

TVL's four thresholds are percentiles of the cosines between touch adjectives and their synonyms in
the text embedding space of OpenCLIP (Fu et al. 2024, A Touch, Vision, and Language Dataset for
Multimodal Alignment, arXiv 2402.13232).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.errors import UserError, choose

PERCENTILES = (0.0, 25.0, 50.0, 75.0)
# Pairs of words with the same meaning, from a group [word, synonyms…].
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
    """Returns {(word, other): cosine} of words with the same meaning, each unordered pair once.

    Args:
      synonyms: {word: [word, synonyms…]}, from `mmjax.data.text.synonyms.load_synonyms`.
      embed_text: Maps texts to embeddings [texts, D]. A text consists of the prompt, a word and a
        period.
      prompt: Text before each word.
      pairs: 'key' for a word and each of its synonyms, 'all' for all pairs in a group.

    Raises:
      UserError: Unknown pairs, or no pair.
    """
    pairs_of = choose("--pairs", pairs, _PAIRS)
    unique = {}
    for word, others in synonyms.items():
        group = list(dict.fromkeys([word, *others]))
        for first, second in pairs_of(group):
            unique.setdefault(frozenset((first, second)), (first, second))
    if not unique:
        raise UserError(
            f"None of the {len(synonyms)} words in --synonyms has a synonym, so there are no pairs "
            'to compare. Expected {"word": ["synonym", …], …}.'
        )
    words = list(dict.fromkeys(word for pair in unique.values() for word in pair))
    vectors = np.asarray(embed_text([f"{prompt}{word}." for word in words]), np.float32)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    vector = dict(zip(words, vectors, strict=True))
    return {
        (first, second): float(min(vector[first] @ vector[second], 1.0))
        for first, second in unique.values()
    }


def report(
    cosines: Mapping[tuple[str, str], float], percentiles: Sequence[float] = PERCENTILES
) -> dict[str, Any]:
    """Returns percentiles of cosines, and their differences from TVL's thresholds.

    Args:
      cosines: From `similarities`.
      percentiles: Percentiles in [0, 100].

    Raises:
      UserError: A percentile is out of range.
    """
    from mmjax.evals.semantic_retrieval import THRESHOLDS  # imports jax

    if not percentiles or not all(0 <= p <= 100 for p in percentiles):
        raise UserError(
            f"--percentiles must be one or more numbers from 0 to 100; got {list(percentiles)}."
        )
    values = np.percentile(list(cosines.values()), percentiles).tolist()
    result: dict[str, Any] = {
        "pairs": len(cosines),
        "percentiles": {f"{p:g}": value for p, value in zip(percentiles, values, strict=True)},
        "least_similar": [list(pair) for pair in sorted(cosines, key=cosines.get)[:3]],
        "option": f"'--config.evals.NAME.thresholds=({','.join(f'{v:.10g}' for v in values)},)'",
    }
    if tuple(percentiles) == PERCENTILES:
        differences = [value - other for value, other in zip(values, THRESHOLDS, strict=True)]
        result["minus_published"] = differences
        result["distance_to_published"] = max(map(abs, differences))
    return result


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
