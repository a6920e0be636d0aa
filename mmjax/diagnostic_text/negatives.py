"""Negative texts: a text with words replaced by others of the same pool (TTDL, section 11.2)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging

from mmjax import files
from mmjax.diagnostic_text.pairs import stable_seed
from mmjax.diagnostic_text.templates import asset
from mmjax.errors import UserError

BUILT_IN = "word_pools.json"
CLASSES = "classes"  # the pool that a list of class names replaces
_PADDING = " "  # a text without tokens
_JOINT = "\ue000"  # stands for the spaces in a class name, so that the name is one token


def load_pools(path: str | os.PathLike = BUILT_IN) -> dict[str, list[str]]:
    """Returns {pool: words} of a JSON file; each word is in one pool.

    Raises:
      UserError: A pool is not a list of at least two words, or a word is in two pools.
    """
    path = asset(path)
    pools = files.read_object(path, 'Expected an object such as {"positions": ["top", "bottom"]}.')
    seen: dict[str, str] = {}
    for pool, words in pools.items():
        texts = isinstance(words, list) and all(isinstance(w, str) and w.strip() for w in words)
        if not texts or len(words) < 2:
            raise UserError(f"{path}: pool {pool!r} must list two or more words; got {words!r}.")
        for word in words:
            other = seen.setdefault(word.lower(), pool)
            if other != pool or sum(w.lower() == word.lower() for w in words) > 1:
                raise UserError(
                    f"{path}: {word!r} occurs twice, in {other!r} and {pool!r}. Keep one of them."
                )
    return pools


def split(text: str, names: Sequence[str] = ()) -> list[str]:
    """Returns the tokens of a text: words, and each of - , ; : . ! ? as a token of its own.

    Args:
      text: The text.
      names: Class names; those of several words are one token.
    """
    for name in sorted((name for name in names if " " in name), key=len, reverse=True):
        pattern = rf"\b{re.escape(name)}\b"
        text = re.sub(pattern, lambda match: match[0].replace(" ", _JOINT), text, flags=re.I)
    return re.sub(r"([,;:.!?])", r" \1", text.replace("-", " - ")).split()


def join(tokens: Sequence[str]) -> str:
    """Returns the text of tokens, without spaces around hyphens and before punctuation."""
    text = re.sub(r" ([,;:.!?])", r"\1", " ".join(tokens).replace(" - ", "-"))
    return text.replace(_JOINT, " ")


class NegativeTexts:
    """Generates negatives of a text.

    Args:
      probability: Probability that a replaceable word is replaced, besides the one word that
        always is.
      path: See `load_pools`.

    Raises:
      UserError: The probability is not between 0 and 1, or the file is not valid.
    """

    def __init__(self, *, probability: float = 0.5, path: str | os.PathLike = BUILT_IN):
        if not 0 <= probability <= 1:
            raise UserError(f"negatives: probability must be between 0 and 1; got {probability}.")
        self._probability = probability
        self._pools = load_pools(path)
        self._warned = False

    def generate(
        self, text: str, n: int, *, seed: int, class_names: Sequence[str] | None = None
    ) -> list[str]:
        """Returns `n` negatives; the same arguments give the same result in every process.

        All differ from the text and from each other, unless the text has too few words: the rest is
        then ' '.

        Args:
          text: The positive text.
          n: Number of negatives; 0 gives [].
          seed: Seed, for example derived from the run's seed and the step.
          class_names: Names that replace each other; None uses those of the file. A single name is
            never replaced.
        """
        rng = np.random.default_rng([seed & (2**64 - 1), stable_seed(text)])
        pools = self._pools
        if class_names is not None:
            pools = {**pools, CLASSES: list(class_names) if len(class_names) > 1 else []}
        siblings = _siblings(pools)
        tokens = split(text, pools.get(CLASSES, ()))
        text = join(tokens)
        options = [siblings.get(token.lower().replace(_JOINT, " "), []) for token in tokens]
        result: dict[str, None] = {}  # an ordered set
        if any(options):
            self._fill(result, text, n, 20 * n + 10, lambda: self._replace(tokens, options, rng))
        tries = 20 * (n - len(result)) + 10
        self._fill(
            result, text, n, tries, lambda: [tokens[i] for i in rng.permutation(len(tokens))]
        )
        tries = (n - len(result)) * len(tokens) + 10
        self._fill(result, text, n, tries, lambda: _remove(tokens, rng))
        if len(result) < n and not self._warned:
            self._warned = True
            logging.warning(
                "Only %d of %d negatives of %r are distinct; the rest is empty. Such warnings are "
                "not repeated.",
                len(result),
                n,
                text,
            )
        return [*result, *[_PADDING] * (n - len(result))]

    @staticmethod
    def _fill(
        result: dict[str, None], text: str, n: int, tries: int, sample: Callable[[], list[str]]
    ) -> None:
        while len(result) < n and tries > 0:
            tries -= 1
            if (negative := join(sample())) != text:
                result[negative] = None

    def _replace(
        self, tokens: Sequence[str], options: Sequence[Sequence[str]], rng: np.random.Generator
    ) -> list[str]:
        """Returns the tokens with at least one of the replaceable ones replaced."""
        replaceable = [index for index, words in enumerate(options) if words]
        chance = rng.random(len(replaceable)) < self._probability
        chance[rng.integers(len(replaceable))] = True
        result = list(tokens)
        for index, replace in zip(replaceable, chance, strict=True):
            if replace:
                result[index] = options[index][rng.integers(len(options[index]))]
        return result


def _siblings(pools: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Returns {lowercase word: the other words of its pool}."""
    return {
        word.lower(): [other for other in words if other.lower() != word.lower()]
        for words in pools.values()
        for word in words
    }


def _remove(tokens: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Returns the tokens without 1 to half of them."""
    if len(tokens) < 2:
        return []
    count = rng.integers(1, len(tokens) // 2 + 1)
    removed = set(rng.choice(len(tokens), count, replace=False).tolist())
    return [token for index, token in enumerate(tokens) if index not in removed]
