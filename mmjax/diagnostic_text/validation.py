"""Checks of answers, and shortening to whole sentences."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Literal

from mmjax.diagnostic_text.negatives import CLASSES, load_pools

Check = Literal["class", "english"]

_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
# Words such as "a", "no" and "on" are left out: they exist in other languages too.
_COMMON_WORDS = (
    "above across along although an and are around at below but by correctly edge edges entire "
    "extends fails from has have into is it its lower mainly misses missing most mostly not of "
    "only overall shape side slight some than that the there to too upper was well which while "
    "with without"
)
_MIN_ENGLISH = 0.15  # share of known English words


def clean(answer: str) -> str:
    """Returns an answer without a reasoning model's thoughts and without spaces around it."""
    return _THOUGHTS.sub("", answer).strip()


def names_class(answer: str, class_name: str) -> bool:
    """Returns whether an answer contains the name of a class, in any letter case.

    'TVMONITOR' also matches 'TV monitor' and 'tv-monitors', but 'cat' does not match 'located'.
    """
    words = re.findall(r"\w+", answer.casefold().replace("_", " "))
    name = re.sub(r"[\W_]", "", class_name.casefold())
    variants = (name, f"{name}s", f"{name}es")
    return any(
        "".join(words[start : start + length]) in variants
        for start in range(len(words))
        for length in range(1, 5)
    )


@functools.cache
def _english() -> frozenset[str]:
    pools = load_pools()
    words = [word for name, words in pools.items() if name != CLASSES for word in words]
    return frozenset((*words, *_COMMON_WORDS.split()))


def is_english(answer: str, class_name: str) -> bool:
    """Returns whether an answer about a class consists of English words by a sufficient share."""
    words = re.findall(r"[^\W\d_]+", answer.casefold())
    own = set(re.findall(r"[^\W\d_]+", class_name.casefold()))
    words = [word for word in words if word not in own]
    if not words:
        return True
    return sum(word in _english() for word in words) >= _MIN_ENGLISH * len(words)


def problem(answer: str, class_name: str, checks: tuple[Check, ...]) -> str | None:
    """Returns the reason why a cleaned answer is not usable: 'empty', 'class' or 'language'."""
    if not answer:
        return "empty"
    if "class" in checks and not names_class(answer, class_name):
        return "class"
    if "english" in checks and not is_english(answer, class_name):
        return "language"
    return None


def shorten(text: str, fits: Callable[[str], bool]) -> str:
    """Returns the leading sentences of a text that fit together, at least the first one.

    Args:
      text: The text.
      fits: Returns whether a text fits, for example into the tokens of a text encoder.
    """
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    while len(sentences) > 1 and not fits(" ".join(sentences)):
        sentences.pop()
    return " ".join(sentences)
