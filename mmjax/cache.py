"""The cache directory: compiled programs, generated datasets, and features."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator


def cache_dir() -> pathlib.Path:
    """Returns $MMJAX_CACHE, or ~/.cache/mmjax by default. The directory may not exist yet."""
    return pathlib.Path(os.environ.get("MMJAX_CACHE") or "~/.cache/mmjax").expanduser()


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Holds a lock between processes. It is released even if the process is killed.

    Args:
      path: Lock file; created if needed and never deleted.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
