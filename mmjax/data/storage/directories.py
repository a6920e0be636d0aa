"""Walks through directories, for everything that searches a directory for media or annotations."""

from __future__ import annotations

import os
from collections.abc import Iterator


def walk(root: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Like `os.walk` in alphabetical order, following symbolic links but no cycles.

    A link to one of its own parent directories is skipped, because it would list the same files
    again without end.

    Args:
      root: Directory to start from.

    Yields:
      `(directory, subdirectories, files)`, as `os.walk` does. Remove entries of `subdirectories` to
      skip them.
    """
    for directory, subdirectories, files in os.walk(root, followlinks=True):
        subdirectories[:] = sorted(name for name in subdirectories if not _cycles(directory, name))
        yield directory, subdirectories, files


def _cycles(directory: str, name: str) -> bool:
    """Returns whether an entry of a directory is a link to it or to one of its parents."""
    link = os.path.join(directory, name)
    target = os.path.join(os.path.realpath(link), "")
    return os.path.islink(link) and os.path.join(os.path.realpath(directory), "").startswith(target)
