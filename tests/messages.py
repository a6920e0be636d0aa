"""Assertions about messages: the facts a user needs, not the sentences around them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


def assert_mentions(text: object, *facts: object) -> None:
    """Asserts that every fact (a key, value, file or name) occurs in the text.

    Args:
      text: A message, log or output.
      *facts: Values whose `str()` must occur in `str(text)`.
    """
    missing = [str(fact) for fact in facts if str(fact) not in str(text)]
    assert not missing, f"{missing} not mentioned in:\n{text}"


@contextlib.contextmanager
def raises(
    error: type[BaseException] | tuple[type[BaseException], ...], *facts: object
) -> Iterator[pytest.ExceptionInfo]:
    """Like `pytest.raises`, but checks that the message mentions every fact.

    Args:
      error: Expected exception type.
      *facts: Values whose `str()` must occur in the message.
    """
    with pytest.raises(error) as info:
        yield info
    assert_mentions(info.value, *facts)
