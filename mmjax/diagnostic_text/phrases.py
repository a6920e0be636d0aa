"""Phrases of the rule-based describer. Phrases of one list have the same meaning.

Placeholders: {name} of the class, {where} in the image, {direction} of a shift, {sides} of the
object; {adverb}, {intensity} and {size} for how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SENTENCES: dict[str, tuple[str, ...]] = {
    "missed_whole": (
        "The {name} region in the {where} is missed entirely.",
        "The {name} in the {where} of the image is completely missed by the prediction.",
        "The prediction contains no {name} at all, although there is one in the {where}.",
    ),
    "hallucinated_whole": (
        "A {size} {name} region in the {where} is hallucinated: the image contains no {name}.",
        "The prediction places a {size} {name} in the {where}, but there is no {name}.",
        "The {size} {name} segment in the {where} is hallucinated entirely.",
    ),
    "missed": (
        "One {name} region in the {where} is missed.",
        "A separate part of the {name} in the {where} is missed by the prediction.",
        "The prediction overlooks a {name} region in the {where}.",
    ),
    "missed_several": (
        "Several {name} regions are missed, the largest of them in the {where}.",
        "The prediction overlooks several parts of the {name}, mainly in the {where}.",
    ),
    "hallucinated": (
        "A {size} separate {name} region in the {where} is hallucinated.",
        "The {size} {name} segment in the {where} is hallucinated.",
        "The prediction adds a {size} {name} area in the {where} that does not exist.",
    ),
    "hallucinated_several": (
        "Several {name} regions are hallucinated, the largest of them in the {where}.",
        "The prediction adds {name} segments that do not exist, mainly in the {where}.",
    ),
    "over_extended": (
        "The {name} region is {adverb} over-extended {sides}.",
        "The {name} segmentation is {adverb} over-extended {sides}, in the {where} of the image.",
        "The predicted {name} extends {adverb} beyond the object {sides}.",
    ),
    "under_extended": (
        "The {name} region is {adverb} under-extended {sides}.",
        "The {name} segmentation is {adverb} under-extended {sides}, in the {where} of the image.",
        "A part of the {name} is {adverb} under-covered {sides}.",
    ),
    "shifted": (
        "The {name} region is {adverb} shifted to the {direction}.",
        "The predicted {name} is {adverb} displaced to the {direction}.",
        "The {name} segmentation is {adverb} offset to the {direction}.",
    ),
    "coarse": (
        "The boundary of the {name} is {intensity} coarse.",
        "The {name} has a {intensity} imprecise boundary.",
        "The contour of the {name} region is {intensity} inaccurate.",
    ),
}
ACCURATE = (
    "The {name} region in the {where} is segmented accurately, without significant deviations.",
    "The {name} in the {where} of the image is well segmented and its boundary is precise.",
    "There are no significant deviations: the {name} in the {where} is covered precisely.",
)
ABSENT = (
    "The image contains no {name}, and none is predicted.",
    "There is no {name}, which the prediction reproduces correctly.",
)
PRECISE_BOUNDARY = (
    "Elsewhere its boundary is precise.",
    "The rest of the boundary is accurate.",
)
_QUALITY: tuple[tuple[float, tuple[str, ...]], ...] = (
    (
        0.8,
        ("Overall, the {name} is segmented well.", "The {name} segmentation is good overall."),
    ),
    (
        0.5,
        (
            "Overall, the {name} is segmented only moderately well.",
            "The {name} segmentation is fair overall.",
        ),
    ),
    (
        0.0,
        ("Overall, the {name} is segmented poorly.", "The {name} segmentation is poor overall."),
    ),
)
_ADVERBS: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.4, ("severely", "greatly")),
    (0.15, ("considerably", "significantly")),
    (0.0, ("slightly", "a little")),
)
_INTENSITIES: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.4, ("very", "highly")),
    (0.0, ("somewhat", "rather")),
)
_SIZES = ((0.1, "large"), (0.02, "medium"), (0.0, "small"))


def _first(table: Sequence[tuple[float, Any]], value: float) -> Any:
    return next(entry for bound, entry in table if value >= bound)


def adverbs(amount: float) -> tuple[str, ...]:
    """Returns adverbs for an amount between 0 (none) and 1 (all)."""
    return _first(_ADVERBS, amount)


def intensities(amount: float) -> tuple[str, ...]:
    """Returns adverbs of quality for an amount between 0 (none) and 1 (all)."""
    return _first(_INTENSITIES, amount)


def quality(iou: float) -> tuple[str, ...]:
    """Returns sentences about the overall quality."""
    return _first(_QUALITY, iou)


def size(share: float) -> str:
    """Returns the size of a region, given as a share of the image."""
    return _first(_SIZES, share)


def sides(names: Sequence[str]) -> str:
    """Returns 'on the left', 'at the top and on the right' or 'on all sides'."""
    if len(names) in (0, 4):
        return "on all sides"
    prepositions = dict(left="on", right="on", top="at", bottom="at")
    return " and ".join(f"{prepositions[name]} the {name}" for name in names)


def place(where: str) -> str:
    """Returns a position as a noun: 'center', 'top left', 'left part'."""
    return f"{where} part" if where in ("left", "right", "top", "bottom") else where
