"""One rule for the labels of tables: they are class numbers, or names of classes.

If all labels are whole numbers, such as 3 or 3.0, they are class numbers. Otherwise they are names,
numbered in alphabetical order. A mixture of both is an error: a class would silently get another
number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from mmjax.errors import UserError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_WHOLE = re.compile(r"\d+(\.0*)?")


def clean(label: object) -> str:
    """Returns a label as text without surrounding whitespace, in Unicode's composed form (NFC)."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return unicodedata.normalize("NFC", str(label).strip())


def class_number(label: str) -> int | None:
    """Returns the number in a label such as '3' or '3.0'; None for other labels."""
    return int(label.partition(".")[0]) if _WHOLE.fullmatch(label) else None


def class_names(labels: Mapping[str, str]) -> list[str] | None:
    """Returns the names of the classes in alphabetical order; None if labels are class numbers.

    Args:
      labels: {label: its location, for messages}.

    Raises:
      UserError: A label is a number, and it or another label is not a class number.
    """
    numbers = [label for label in labels if _NUMBER.fullmatch(label)]
    other = next((label for label in labels if class_number(label) is None), None)
    if other is None:
        return None
    if numbers:
        number = next((label for label in numbers if label != other), None)
        problem = "is not a whole number from 0"
        if number is not None:
            problem = f"cannot be used together with {number!r} in {labels[number]}"
        raise UserError(
            f"The label {other!r} in {labels[other]} {problem}. Labels are either class numbers "
            "from 0 in all rows, or names. Leave the cell of an unlabeled row empty. If numbers "
            "are the names of classes, let them start with a letter."
        )
    return sorted(labels)
