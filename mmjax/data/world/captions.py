"""Captions of the procedural world's scenes, with varied order and wording."""

from __future__ import annotations

import re

import numpy as np

# {attribute: {value: its wordings}}. Half of all captions use the first wording, the value's name.
WORDS = {
    "shape": {
        "circle": ("circle", "disc", "round"),
        "square": ("square", "box", "block"),
        "triangle": ("triangle", "wedge", "pyramid"),
        "star": ("star", "pentagram", "starfish"),
        "cross": ("cross", "plus", "crossing"),
        "ring": ("ring", "hoop", "donut"),
        "heart": ("heart", "valentine", "sweetheart"),
        "moon": ("moon", "crescent", "sickle"),
    },
    "color": {
        "red": ("red", "crimson", "scarlet"),
        "orange": ("orange", "amber", "tangerine"),
        "yellow": ("yellow", "golden", "lemon"),
        "green": ("green", "emerald", "grassy"),
        "cyan": ("cyan", "turquoise", "aqua"),
        "blue": ("blue", "cobalt", "navy"),
        "purple": ("purple", "violet", "magenta"),
        "white": ("white", "snowy", "ivory"),
    },
    "size": {
        "small": ("small", "little", "tiny"),
        "medium": ("medium", "midsize", "average"),
        "large": ("large", "big", "huge"),
    },
    "texture": {
        "plain": ("plain", "uniform", "smooth"),
        "striped": ("striped", "banded", "stripy"),
        "checkered": ("checkered", "checked", "chessboard"),
        "dotted": ("dotted", "spotted", "speckled"),
    },
    "motion": {
        "resting": ("resting", "staying still", "not moving"),
        "swaying": ("swaying", "rocking", "going from side to side"),
        "bouncing": ("bouncing", "hopping", "jumping up and down"),
        "circling": ("circling", "orbiting", "going round and round"),
        "spinning": ("spinning", "rotating", "turning on the spot"),
        "pulsing": ("pulsing", "throbbing", "growing and shrinking"),
    },
}
_TEMPLATES = (
    "a {one} {two} {three} {shape} {motion}",
    "a {one} {two} {three} {shape} is {motion}",
    "the {one} {shape} is {two} and {three} and it is {motion}",
    "{motion} there is a {one} {two} {three} {shape}",
    "look at this {one} {two} {three} {shape} {motion}",
    "here we see a {one} {two} {shape} {motion} and {three}",
    "one {shape} {one} {two} and {three} keeps {motion}",
    "{one} {two} {three} {shape} seen {motion}",
)
_STILL_TEMPLATES = (
    "a {one} {two} {three} {shape}",
    "there is a {one} {two} {three} {shape}",
    "the {one} {shape} is {two} and {three}",
    "look at this {one} {two} {three} {shape}",
    "here we see a {one} {two} and {three} {shape}",
    "one {shape} {one} {two} and {three}",
    "a picture of a {one} {two} {three} {shape}",
)
_OMITTED = "*"  # placeholder of an omitted adjective
_OMISSION_RATE = 0.3  # probability that a caption omits an attribute, unless it must be complete


def caption(
    rng: np.random.Generator, attributes: dict[str, str], *, complete: bool, still: bool = False
) -> str:
    """Returns one sentence of at most 16 words.

    Args:
      rng: Source of randomness for the wording.
      attributes: All five attributes, {'shape': 'star', …}.
      complete: Whether to mention all attributes; otherwise one may be omitted.
      still: Whether to not mention the motion.
    """
    words, mentioned = {}, [name for name in WORDS if not (still and name == "motion")]
    for name, value in attributes.items():
        if name in mentioned:
            choice = rng.choice(3, p=(0.5, 0.3, 0.2))
            words[name] = WORDS[name][value][choice]
    if not complete and rng.random() < _OMISSION_RATE:
        omitted = mentioned[rng.integers(len(mentioned))]
        words[omitted] = {"shape": "thing", "motion": "somehow"}.get(omitted, _OMITTED)
    adjectives = [words[name] for name in ("color", "size", "texture")]
    one, two, three = (adjectives[i] for i in rng.permutation(3))
    templates = _STILL_TEMPLATES if still else _TEMPLATES
    sentence = templates[rng.integers(len(templates))].format(
        one=one, two=two, three=three, shape=words["shape"], motion=words.get("motion")
    )
    return _without_placeholder(sentence)


def vocabulary(*, still: bool = False) -> list[str]:
    """Returns every word that a caption can contain, sorted.

    Args:
      still: As in `caption`.
    """
    values = [v for name in WORDS for v in WORDS[name].values() if not still or name != "motion"]
    texts = [text for wordings in values for text in wordings]
    texts.append("thing" if still else "thing somehow")
    templates = _STILL_TEMPLATES if still else _TEMPLATES
    texts += [re.sub(r"{\w+}", "", template) for template in templates]
    return sorted({word for text in texts for word in text.split()})


def _without_placeholder(sentence: str) -> str:
    """Returns the sentence without the omitted adjective and the 'and' before it."""
    if _OMITTED in sentence:
        for gap in (f" and {_OMITTED} and ", f" {_OMITTED} and "):
            sentence = sentence.replace(gap, " and " if gap.startswith(" and") else " ")
        sentence = sentence.replace(f" and {_OMITTED}", "").replace(_OMITTED, "")
    return " ".join(sentence.split())
