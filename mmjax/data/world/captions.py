"""What people say about the scenes of `mmjax.data.world.build`: captions of varied order and wording."""

from __future__ import annotations

import re

import numpy as np

# The first word of each row is the attribute's own name; captions use it in half of all cases.
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
_OMITTED = "*"
_OMISSION = 0.3  # share of the captions that leave an attribute out, where they may


def caption(
    rng: np.random.Generator, attributes: dict[str, str], *, complete: bool, still: bool = False
) -> str:
    """One sentence of at most 16 words.

    Args:
      rng: decides the wording.
      attributes: {'shape': 'star', …}, all five.
      complete: mention all attributes; otherwise at most one is left out, at times.
      still: do not mention the motion.
    """
    words, kinds = {}, [kind for kind in WORDS if not (still and kind == "motion")]
    for kind, value in attributes.items():
        if kind in kinds:
            choice = rng.choice(3, p=(0.5, 0.3, 0.2))
            words[kind] = WORDS[kind][value][choice]
    if not complete and rng.random() < _OMISSION:
        left_out = kinds[rng.integers(len(kinds))]
        words[left_out] = {"shape": "thing", "motion": "somehow"}.get(left_out, _OMITTED)
    adjectives = [words[kind] for kind in ("color", "size", "texture")]
    one, two, three = (adjectives[i] for i in rng.permutation(3))
    templates = _STILL_TEMPLATES if still else _TEMPLATES
    sentence = templates[rng.integers(len(templates))].format(
        one=one, two=two, three=three, shape=words["shape"], motion=words.get("motion")
    )
    return _without_gap(sentence)


def vocabulary(*, still: bool = False) -> list[str]:
    """Every word a caption can contain, sorted."""
    rows = [row for kind in WORDS for row in WORDS[kind].values() if not still or kind != "motion"]
    texts = [text for row in rows for text in row] + ["thing" if still else "thing somehow"]
    templates = _STILL_TEMPLATES if still else _TEMPLATES
    texts += [re.sub(r"{\w+}", "", template) for template in templates]
    return sorted({word for text in texts for word in text.split()})


def _without_gap(sentence: str) -> str:
    """The sentence without the adjective that is left out, and without the 'and' that led to it."""
    if _OMITTED in sentence:
        for gap in (f" and {_OMITTED} and ", f" {_OMITTED} and "):
            sentence = sentence.replace(gap, " and " if gap.startswith(" and") else " ")
        sentence = sentence.replace(f" and {_OMITTED}", "").replace(_OMITTED, "")
    return " ".join(sentence.split())
