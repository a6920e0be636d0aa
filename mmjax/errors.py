"""The exception that users see without a traceback, and checks of names against valid choices."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class UserError(ValueError):
    """A problem that the user can fix.

    The message names the key, file or argument with the value found, says what was expected, and
    how to fix it. `mmjax.main` and the `mmjax` commands print only the message and exit with
    status 2.
    """


@contextlib.contextmanager
def about(where: object) -> Iterator[None]:
    """Adds a file or argument to the UserErrors of a block that do not mention it.

    Args:
      where: What the block reads, for the start of the message.
    """
    try:
        yield
    except UserError as error:
        if str(where) in str(error):
            raise
        raise UserError(f"{where}: {error}") from error


def unknown(what: str, name: object, choices: Iterable[object]) -> UserError:
    """Returns the error for a name that is not a valid choice, with the nearest valid one.

    Args:
      what: What the name is, for example a full config key.
      name: The name found.
      choices: Valid names.
    """
    choices = sorted(str(choice) for choice in choices)
    section = str(name).rpartition(".")[0]
    prefix = f"{section}." if section else ""
    if not all(choice.startswith(prefix) for choice in choices):
        prefix = ""
    # A common section is left out of the comparison: it would make all keys similar.
    keys = [choice.removeprefix(prefix) for choice in choices]
    near = difflib.get_close_matches(str(name).removeprefix(prefix), keys, n=1, cutoff=0.5)
    hint = f" Did you mean {prefix + near[0]!r}?" if near else ""
    return UserError(f"Unknown {what} {name!r}.{hint} Valid: {', '.join(choices)}.")


def check_choice(what: str, name: object, choices: Iterable[object]) -> None:
    """Raises the error of `unknown` unless `name` is one of `choices`."""
    choices = list(choices)
    if name not in choices:
        raise unknown(what, name, choices)


def choose(what: str, name: Any, choices: Mapping[Any, Any]) -> Any:
    """Returns `choices[name]`; raises the error of `unknown` for any other name."""
    check_choice(what, name, choices)
    return choices[name]
