"""Captions as text, decoded from the token ids of a batch, and the keywords in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.evals.features.arrays import Features


def decode(features: Features) -> list[str]:
    """Returns the first caption of each example; '' for examples without a caption.

    Args:
      features: Has the array 'text', token ids as float32 [N, captions, tokens].
    """
    present = features.present("text")
    texts = [""] * len(features)
    for example in np.flatnonzero(present.any(axis=1)):
        ids = features.arrays["text"][example, present[example].argmax()].astype(np.int64)
        texts[example] = features.tokenizer.decode(ids.tolist()).strip()
    return texts


def keywords(caption: str) -> list[str]:
    """Returns the keywords of a caption without empty ones.

    For example, 'soft, smooth, and gray.' has the keywords 'soft', 'smooth' and 'gray'.
    """
    parts = re.split(r",\s*(?:and\s)?|\sand\s", caption.lower().replace(".", ""))
    return [stripped for part in parts if (stripped := part.strip())]


def keyword_table(captions: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Returns a table, bool [captions, classes]: whether the class is a keyword of the caption."""
    names = [_normalized(name) for name in classes]
    sets = [{_normalized(keyword) for keyword in keywords(caption)} for caption in captions]
    table = np.array([[name in keyword_set for name in names] for keyword_set in sets])
    return table.reshape(len(sets), len(names))


def mention_table(captions: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Returns which classes occur anywhere in which caption, bool [captions, classes].

    For captions without commas, which cannot be split into keywords. The tokenizer 'word' removes
    all punctuation.
    """

    def normalized(text: str) -> str:
        return " ".join(["", *re.sub(r"[^\w\s]", "", text.lower()).split(), ""])

    texts = [normalized(caption) for caption in captions]
    table = np.array([[normalized(name) in text for name in classes] for text in texts])
    return table.reshape(len(texts), len(classes))


def keeps_commas(tokenizer: Any) -> bool:
    """Returns whether captions that a tokenizer decodes are still lists of keywords."""
    return "," in tokenizer.decode(tokenizer.encode(["hard, cold."])[0])


def all_keywords(captions: Sequence[str]) -> list[str]:
    """Returns each keyword of the captions once, in alphabetical order."""
    result: dict[str, str] = {}
    for caption in captions:
        for keyword in keywords(caption):
            result.setdefault(_normalized(keyword), keyword)
    return sorted(result.values())


def _normalized(keyword: str) -> str:
    return "".join(keyword.lower().split())
