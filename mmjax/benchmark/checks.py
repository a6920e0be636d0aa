"""Checks of single values from YAML and JSON files, whose errors name the file and the key."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from mmjax.errors import UserError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: Any) -> str:
    """Returns a value for a message, shortened. Aliases can make values of a YAML file huge."""
    return _SHORT.repr(value)


def _wrong(where: str, expected: str, value: Any) -> UserError:
    return UserError(f"{where} must be {expected}; got {shown(value)}.")


def text(value: Any, where: str) -> str:
    """Returns text that is not empty; raises UserError for anything else."""
    if not isinstance(value, str) or not value:
        raise _wrong(where, "text", value)
    return value


def boolean(value: Any, where: str) -> bool:
    """Returns true or false; raises UserError for anything else."""
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def integer(value: Any, where: str, *, least: int | None = None) -> int:
    """Returns an integer that is at least `least`; raises UserError for anything else."""
    if not isinstance(value, int) or isinstance(value, bool) or least is not None and value < least:
        expected = "an integer" if least is None else f"an integer of at least {least}"
        raise _wrong(where, expected, value)
    return value


def number(
    value: Any,
    where: str,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    least: float = -math.inf,
) -> float:
    """Returns a finite number within bounds as a float; raises UserError for anything else.

    Args:
      value: The value.
      where: The file and the key, for the error message.
      above, below: Exclusive bounds.
      least: Inclusive lower bound.
    """
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    if not (valid and above < value < below and value >= least):
        bounds = {"greater than": above, "at least": least, "less than": below}
        parts = [f"{words} {bound:g}" for words, bound in bounds.items() if math.isfinite(bound)]
        raise _wrong(where, " ".join(["a number", " and ".join(parts)]).strip(), value)
    return float(value)


def mapping(value: Any, where: str) -> Mapping[Any, Any]:
    """Returns a mapping; raises UserError for anything else."""
    if not isinstance(value, Mapping):
        raise _wrong(where, "a mapping of keys to values", value)
    return value


def items(value: Any, where: str) -> list[Any]:
    """Returns a list; raises UserError for anything else."""
    if not isinstance(value, list | tuple):
        raise _wrong(where, "a list", value)
    return list(value)
