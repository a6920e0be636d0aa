"""Template texts, which only state which of four outcomes a pair has (TTDL, section 11.1).

A pair's case lists the outcomes that at least one pixel has: 'TP', 'TN', 'FP', 'FN', joined by
'+' in this order. Most pairs have all four.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mmjax import assets, files
from mmjax.diagnostic_text.pairs import Pair
from mmjax.diagnostic_text.writer import Failure, Text, Writer
from mmjax.errors import UserError, unknown

OUTCOMES = ("TP", "TN", "FP", "FN")
CASES = tuple("+".join(c) for n in range(1, 5) for c in itertools.combinations(OUTCOMES, n))
PLACEHOLDER = "{POS_CLASS}"
BUILT_IN = "templates.json"


def asset(name: str | os.PathLike) -> str:
    """Returns the path of a file in `data/prompts/`, or `name` if there is none of that name."""
    path = os.path.join(assets.__path__[0], "prompts", name)
    return path if os.path.dirname(name) == "" and os.path.exists(path) else os.fspath(name)


def load_templates(path: str | os.PathLike = BUILT_IN) -> dict[str, str]:
    """Returns {case: template}.

    Args:
      path: A JSON file with a template for each of the 15 cases. `{POS_CLASS}` stands for the name
        of the class.

    Raises:
      UserError: A case is missing or unknown, or a template has an unknown placeholder.
    """
    path = asset(path)
    advice = f"Expected an object with the keys {', '.join(CASES)}."
    table = files.read_object(path, advice)
    for case, template in table.items():
        if case not in CASES:
            raise unknown(f"case in {path}:", case, CASES)
        if not isinstance(template, str) or not template.strip():
            raise UserError(f"{path}: the template of {case} must be a text; got {template!r}.")
        for name in re.findall(r"\{\w*\}", template):
            if name != PLACEHOLDER:
                raise unknown(f"placeholder in {path}, case {case}:", name, [PLACEHOLDER])
    missing = [case for case in CASES if case not in table]
    if missing:
        raise UserError(f"{path} has no template for {', '.join(missing)}. {advice}")
    return table


def case_of(truth: np.ndarray, prediction: np.ndarray) -> str:
    """Returns the case of two bool masks."""
    masks = (truth & prediction, ~truth & ~prediction, ~truth & prediction, truth & ~prediction)
    return "+".join(name for name, mask in zip(OUTCOMES, masks, strict=True) if mask.any())


def fill(templates: Mapping[str, str], pair: Pair) -> str:
    """Returns the text of a pair."""
    truth = pair.truth if pair.void is None else pair.truth & ~pair.void
    template = templates[case_of(truth, pair.prediction)]
    return template.replace(PLACEHOLDER, pair.class_name)


class TemplateWriter(Writer):
    """Writes the text of `fill`.

    Args:
      path: See `load_templates`.
    """

    def __init__(self, *, path: str = BUILT_IN):
        self._templates = load_templates(path)

    def write(self, pairs: Sequence[Pair]) -> list[Text | Failure]:
        return [Text(pair.key, fill(self._templates, pair)) for pair in pairs]
