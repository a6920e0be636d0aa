"""The cache directory: compiled programs, generated datasets, and features."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator

from absl import logging


def cache_dir() -> pathlib.Path:
    """Returns $MMJAX_CACHE, or ~/.cache/mmjax by default. The directory may not exist yet."""
    return pathlib.Path(os.environ.get("MMJAX_CACHE") or "~/.cache/mmjax").expanduser()


def keep_compiled_programs() -> None:
    """Makes JAX keep compiled programs in the cache directory, if it can be written."""
    import jax

    directory = cache_dir() / "xla"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logging.warning("The compilation cache is disabled: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@contextlib.contextmanager
def locked(path: str | os.PathLike, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock between processes. It is released even if the process is killed.

    Args:
      path: Lock file; created if needed and never deleted.
      wait: Whether to wait for another process that holds the lock.

    Yields:
      Whether this process holds the lock; always True with `wait`.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
