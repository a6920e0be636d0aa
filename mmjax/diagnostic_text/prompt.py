"""Prompts assembled from a JSON file of modules (TTDL, section 6.3).

The file maps module -> variation -> text or list of texts. Placeholders are

    {pos_class}        the name of the class
    [img]              one image; truth, then prediction
    [sup_set_count]    number of a worked example, from 1
    [answer_gt]        the answer of a worked example

All texts are joined without separators, so write newlines where you want them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mmjax import files
from mmjax.diagnostic_text.templates import asset
from mmjax.errors import UserError, unknown

BUILT_IN = "comparison.json"
CLASS, IMAGE, COUNT, ANSWER = "{pos_class}", "[img]", "[sup_set_count]", "[answer_gt]"
INTRODUCTION = ("context", "color_map", "input_format", "task", "output_format")
EXAMPLES_INTRO, EXAMPLE, QUERY = "support_set_intro", "support_set_item", "query"
MODULES = (*INTRODUCTION, EXAMPLES_INTRO, EXAMPLE, QUERY)
# How often a module contains each placeholder besides {pos_class}, which may occur anywhere.
_COUNTS = {EXAMPLE: {IMAGE: 2, COUNT: None, ANSWER: 1}, QUERY: {IMAGE: 2}}
_PLACEHOLDER = re.compile(r"\{\w*\}|\[[A-Za-z_]\w*\]")

Parts = tuple[str | bytes, ...]  # texts and PNG images in order


class WorkedExample(NamedTuple):
    """A comparison with its answer.

    Attributes:
      truth: Overlay of the true mask, PNG.
      prediction: Overlay of the predicted mask, PNG.
      answer: The expected answer.
    """

    truth: bytes
    prediction: bytes
    answer: str


class Prompt:
    """A prompt for any pair. Everything before the question is the same for all pairs of a class.

    Args:
      path: The JSON file; by default the built-in one.
      variations: {module: variation} for modules that do not use 'default'.
      examples: Worked examples. Without any, their modules are left out.

    Raises:
      UserError: The file lacks a module or variation, or a module has an unknown placeholder or a
        wrong number of them. The message names the file, module and variation.
    """

    def __init__(
        self,
        path: str | os.PathLike = BUILT_IN,
        variations: Mapping[str, str] | None = None,
        examples: Sequence[WorkedExample] = (),
    ):
        path = asset(path)
        advice = f"Expected an object with the modules {', '.join(MODULES)}."
        table = files.read_object(path, advice)
        for module in table:
            if module not in MODULES:
                raise unknown(f"module in {path}:", module, MODULES)
        chosen = dict.fromkeys(MODULES, "default")
        for module, variation in (variations or {}).items():
            if module not in MODULES:
                raise unknown("module in variations:", module, MODULES)
            chosen[module] = variation
        needed = MODULES if examples else (*INTRODUCTION, QUERY)
        texts = {name: _read(table, name, chosen[name], path) for name in needed}
        self._before: list[str | bytes] = [texts[name] for name in INTRODUCTION]
        if examples:
            self._before.append(texts[EXAMPLES_INTRO])
        for number, example in enumerate(examples, 1):
            item = texts[EXAMPLE].replace(COUNT, str(number))
            item = item.replace(ANSWER, _escape(example.answer))
            self._before += _insert(item, (example.truth, example.prediction))
        self._query = texts[QUERY]

    def build(self, class_name: str, truth: bytes, prediction: bytes) -> Parts:
        """Returns the prompt of a pair, with adjacent texts merged.

        Args:
          class_name: Name of the class.
          truth: Overlay of the true mask, PNG.
          prediction: Overlay of the predicted mask, PNG.
        """
        merged: list[str | bytes] = []
        for part in (*self._before, *_insert(self._query, (truth, prediction))):
            if isinstance(part, str):
                part = part.replace(CLASS, class_name).replace(_ESCAPED, CLASS)
                if merged and isinstance(merged[-1], str):
                    merged[-1] += part
                    continue
            merged.append(part)
        return tuple(part for part in merged if part)


_ESCAPED = "\ue000"


def _escape(answer: str) -> str:
    """Protects an answer from substitution."""
    return answer.replace(CLASS, _ESCAPED).replace(IMAGE, "[ img ]")


def _read(table: Mapping[str, Any], module: str, variation: str, path: str) -> str:
    """Returns the checked text of a module."""
    variations = table.get(module)
    if not isinstance(variations, dict) or not variations:
        raise UserError(
            f'{path} has no module {module!r}. Add {module}: {{"default": text}} to the file.'
        )
    if variation not in variations:
        raise unknown(f"variation of module {module!r} in {path}:", variation, variations)
    where = f"{path}: module {module!r}, variation {variation!r}"
    value = variations[variation]
    pieces = value if isinstance(value, list) else [value]
    if not all(isinstance(piece, str) for piece in pieces):
        raise UserError(f"{where} must be a text or a list of texts; got {str(value)[:80]!r}.")
    text = "".join(pieces)
    counts = _COUNTS.get(module, {})
    for name in _PLACEHOLDER.findall(text):
        if name != CLASS and name not in counts:
            raise unknown(f"placeholder in {where}:", name, [CLASS, *counts])
    for name, count in counts.items():
        if count is not None and text.count(name) != count:
            raise UserError(
                f"{where} contains {name} {text.count(name)} times; expected {count} (one per "
                f"{'image' if name == IMAGE else 'example'}). Correct the file."
            )
    return text


def _insert(text: str, images: Sequence[bytes]) -> list[str | bytes]:
    """Returns the pieces of a text with its image markers replaced."""
    first, *rest = text.split(IMAGE)
    result: list[str | bytes] = [first]
    for image, piece in zip(images, rest, strict=True):
        result += [image, piece]
    return result
