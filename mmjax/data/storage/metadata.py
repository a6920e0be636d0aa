"""The JSON beside arrays that says what they are of."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.errors import UserError


def write(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Puts a description there, all at once."""
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
    os.replace(f"{path}.tmp", path)


def read(
    path: str | os.PathLike, what: str, checked: Callable[[Any], dict[str, Any]]
) -> dict[str, Any] | None:
    """A description; None if nothing is there.

    Args:
      path: of the file.
      what: it describes, for messages.
      checked: the content, or KeyError, TypeError or ValueError if it is another.

    Raises:
      UserError: the file is damaged or another one.
    """
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return checked(json.load(file))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not describe {what}: {error}.") from error
