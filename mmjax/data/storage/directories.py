"""Walks through directories of users, for everything that searches a directory for files.

Files and directories that programs leave behind are skipped: hidden ones such as `.DS_Store` and
`.ipynb_checkpoints`, and `Thumbs.db` or `__MACOSX`. Nobody means them as data or as classes.
"""

from __future__ import annotations

import collections
import os
import unicodedata
from collections.abc import Iterable, Iterator

from absl import logging

_SYSTEM = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("__macosx", "__pycache__", "@eadir", "lost+found"),
}
_MAX_SUFFIXES = 5  # in a message


def is_data(name: str) -> bool:
    """Returns whether a file or directory is data of the user, judging by its name."""
    return not name.startswith(".") and name.lower() not in _SYSTEM


def walk(root: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Like `os.walk` in alphabetical order, without files and directories that are not data.

    Symbolic links are followed, but no cycles: a link to one of its own parent directories is
    skipped, because it would list the same files again without end. Names that are not valid text
    are skipped and logged, because datasets store names as text.

    Args:
      root: Directory to start from.

    Yields:
      `(directory, subdirectories, files)`, as `os.walk` does. Remove entries of `subdirectories` to
      skip them.
    """
    for directory, subdirectories, files in os.walk(root, followlinks=True):
        subdirectories[:] = (
            name for name in _data(directory, subdirectories) if not _cycles(directory, name)
        )
        yield directory, subdirectories, _data(directory, files)


def list_files(directory: str) -> list[str]:
    """Returns the names of the files of a directory that are data, in alphabetical order."""
    names = _data(directory, os.listdir(directory))
    return [name for name in names if not os.path.isdir(os.path.join(directory, name))]


def list_directories(directory: str) -> list[str]:
    """Returns the names of the subdirectories that are data, in alphabetical order."""
    names = _data(directory, os.listdir(directory))
    return [name for name in names if os.path.isdir(os.path.join(directory, name))]


def existing_path(path: str) -> str:
    """Returns the path of a file under the form of its name that exists.

    Programs and file systems write the same letter, such as é, as one or as two characters.

    Args:
      path: The path. It is returned unchanged if no form of it exists.
    """
    if path.isascii() or os.path.exists(path):
        return path
    directory, name = os.path.split(path)
    if not name or not os.path.isdir(directory := existing_path(directory)):
        return path
    expected = unicodedata.normalize("NFC", name)
    names = sorted(os.listdir(directory))
    found = next((n for n in names if unicodedata.normalize("NFC", n) == expected), None)
    return os.path.join(directory, found) if found else path


def log_ignored(root: str, files: Iterable[str], *, expected: str) -> None:
    """Logs how many files of a directory are not read, by their suffix.

    Args:
      root: The directory.
      files: Files that are not read.
      expected: The files that are read, for example 'images'.
    """
    counts = collections.Counter(os.path.splitext(file)[1].lower() for file in files)
    if not counts:
        return
    shown = [f"{count} {suffix or 'without suffix'}" for suffix, count in counts.most_common()]
    more = f" and {len(shown) - _MAX_SUFFIXES} other types" if len(shown) > _MAX_SUFFIXES else ""
    logging.warning(
        "%s: %d files are not read, because their names are not those of %s: %s%s.",
        root,
        sum(counts.values()),
        expected,
        ", ".join(shown[:_MAX_SUFFIXES]),
        more,
    )


def _data(directory: str, names: Iterable[str]) -> list[str]:
    """Returns the names that are data and valid text, in alphabetical order."""
    result = []
    for name in sorted(names):
        if not is_data(name):
            continue
        try:
            name.encode()
        except UnicodeEncodeError:
            logging.warning("%s: skipping %r: this name is not UTF-8. Rename it.", directory, name)
        else:
            result.append(name)
    return result


def _cycles(directory: str, name: str) -> bool:
    """Returns whether an entry of a directory is a link to it or to one of its parents."""
    link = os.path.join(directory, name)
    target = os.path.join(os.path.realpath(link), "")
    return os.path.islink(link) and os.path.join(os.path.realpath(directory), "").startswith(target)
