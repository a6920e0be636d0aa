"""Reader of JSON files that describe the arrays in the same directory, such as `pairs.json`.

They are written with `mmjax.files.write_json`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from mmjax import files
from mmjax.errors import UserError


def read(
    path: str | os.PathLike, what: str, check: Callable[[Any], dict[str, Any]]
) -> dict[str, Any] | None:
    """Returns a description, or None if the file does not exist.

    Args:
      path: The JSON file.
      what: What the file describes, for error messages, for example 'pairs'.
      check: Function that returns the checked content. It raises KeyError, TypeError or ValueError
        for invalid content.

    Raises:
      UserError: The file is damaged or describes something else.
    """
    if not os.path.exists(path):
        return None
    advice = f"Create the {what} again, or use another directory."
    content = files.read_json(path, advice)
    try:
        return check(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"the key {error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path} is not a valid description of {what}: {problem}. {advice}"
        ) from error
