"""Open registries: a name in a config is a built-in entry or `package.module:Name`.

Tasks, towers, loss terms, evaluators, data sources, sentence encoders and importers are looked up
here, so that each of them can be added from a file outside this package.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from mmjax.errors import UserError, unknown


def is_reference(name: object) -> bool:
    """Returns whether `name` looks like `package.module:Name`."""
    module, colon, attribute = str(name).partition(":")
    parts = [*module.split("."), *attribute.split(".")]
    return bool(colon) and all(part.isidentifier() for part in parts)


def resolve(what: str, name: str, entries: Mapping[str, Any]) -> Any:
    """Returns the object that a name stands for.

    Args:
      what: What is looked up, for error messages, for example a full config key.
      name: A key of `entries`, or `package.module:Name` for any importable object.
      entries: Built-in objects by name. A string 'module:Name' is imported when it is used.

    Raises:
      UserError: The name is neither, or its import fails.
    """
    entry = entries.get(name)
    if entry is None:
        if not is_reference(name):
            raise unknown(what, name, [*entries, "package.module:Name"])
        entry = name
    return _import(what, entry) if isinstance(entry, str) else entry


def _import(what: str, reference: str) -> Any:
    module_name, _, attribute = reference.partition(":")
    try:
        value: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(
            f"{what}={reference}: cannot import {module_name}: {error}. Check the spelling, and "
            "that its directory is the current one or on PYTHONPATH."
        ) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            public = [name for name in vars(value) if not name.startswith("_")]
            raise unknown(f"{what}={reference}: attribute of {module_name}", part, public)
        value = getattr(value, part)
    return value
