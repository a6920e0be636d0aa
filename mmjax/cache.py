"""Where mmjax keeps what it can make again: compiled programs, generated datasets, features."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator


def cache_dir() -> pathlib.Path:
    """$MMJAX_CACHE, or ~/.cache/mmjax; it need not exist."""
    return pathlib.Path(os.environ.get("MMJAX_CACHE") or "~/.cache/mmjax").expanduser()


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Holds a lock between processes; it is released even if the process is killed.

    Args:
      path: a file for the lock alone; it stays.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
