"""The one exception that is shown to a user without a traceback, and the help it gives."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can put right: the message names the culprit and the way out.

    `mmjax.main` prints the message alone and exits with status 2.
    """


def unknown(kind: str, name: object, choices: Iterable[object]) -> UserError:
    """The error for a name that is not among `choices`, with the nearest valid one."""
    choices = sorted(str(choice) for choice in choices)
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"Unknown {kind} {name!r}.{hint} Valid: {', '.join(choices)}.")


def choose(kind: str, name: str, choices: dict):
    """`choices[name]`, or the error of `unknown`."""
    if name not in choices:
        raise unknown(kind, name, choices)
    return choices[name]
