"""Captions as text again, from the token numbers in a batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.evals.features.store import Features


def decode(features: Features) -> list[str]:
    """The first caption of each example; '' where there is none.

    Args:
      features: with the array 'text', token numbers as float32 [N, L, W].
    """
    present = features.present("text")
    texts = [""] * len(features)
    for example in np.flatnonzero(present.any(axis=1)):
        ids = features.arrays["text"][example, present[example].argmax()].astype(np.int64)
        texts[example] = features.tokenizer.decode(ids.tolist()).strip()
    return texts


def keywords(caption: str) -> list[str]:
    """The keywords of 'soft, smooth, and gray.': ['soft', 'smooth', 'gray'], empty ones dropped."""
    words = re.split(r",\s*(?:and\s)?|\sand\s", caption.lower().replace(".", ""))
    return [stripped for word in words if (stripped := word.strip())]


def table(captions: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """bool [captions, words]: which of the words are keywords of which caption."""
    bare = [_bare(word) for word in words]
    of = [{_bare(word) for word in keywords(caption)} for caption in captions]
    return np.array([[word in found for word in bare] for found in of]).reshape(len(of), len(bare))


def mentions(captions: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """bool [captions, words]: which of the words stand in which caption, whatever is around them.

    For captions without commas, whose keywords cannot be told apart: those of the tokenizer 'word',
    which leaves out all punctuation.
    """

    def bare(text: str) -> str:
        return " ".join(["", *re.sub(r"[^\w\s]", "", text.lower()).split(), ""])

    of = [bare(caption) for caption in captions]
    found = [[bare(word) in caption for word in words] for caption in of]
    return np.array(found).reshape(len(of), len(words))


def keep_commas(tokenizer: Any) -> bool:
    """Whether captions that a tokenizer decodes are still lists of keywords."""
    return "," in tokenizer.decode(tokenizer.encode(["hard, cold."])[0])


def all_keywords(captions: Sequence[str]) -> list[str]:
    """Each keyword of the captions once, in alphabetical order."""
    found: dict[str, Any] = {}
    for caption in captions:
        for word in keywords(caption):
            found.setdefault(_bare(word), word)
    return sorted(found.values())


def _bare(word: str) -> str:
    return "".join(word.lower().split())
