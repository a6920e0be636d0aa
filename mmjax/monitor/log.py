"""The format of the log, and which records it shows."""

from __future__ import annotations

import contextlib
import logging as std_logging
import os
import sys
from collections.abc import Iterator

from absl import logging

from mmjax.plain_text import plain


def setup(verbosity: int = logging.INFO) -> None:
    """Sends the log to standard error and hides informational messages of libraries.

    Args:
      verbosity: Verbosity of absl: `logging.INFO` for training, `logging.WARNING` for commands.
    """
    logging.use_absl_handler()
    logging.set_verbosity(verbosity)
    _set_format(logging.get_absl_handler())
    sys.unraisablehook = _report_unraisable


def _set_format(handler: std_logging.Handler) -> None:
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_ours)


@contextlib.contextmanager
def to_file(path: str | os.PathLike) -> Iterator[None]:
    """Appends the log and the standard output to a file; the terminal shows only warnings."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handler = std_logging.FileHandler(path, encoding="utf-8")
    _set_format(handler)
    logger, terminal = logging.get_absl_logger(), logging.get_absl_handler()
    before = logger.level, terminal.level
    logger.addHandler(handler)
    logger.setLevel(std_logging.INFO)
    terminal.setLevel(std_logging.WARNING)
    try:
        with contextlib.redirect_stdout(handler.stream):
            yield
    finally:
        logger.setLevel(before[0])
        terminal.setLevel(before[1])
        logger.removeHandler(handler)
        handler.close()


class _Formatter(std_logging.Formatter):
    """Shows control characters in messages as codes: names and captions come from others."""

    def format(self, record: std_logging.LogRecord) -> str:
        return plain(super().format(record), keep="\n\t")


def _is_ours(record: std_logging.LogRecord) -> bool:
    """Returns whether to show a record: those of mmjax, and warnings of libraries.

    Orbax logs a traceback before it raises; mmjax reports these errors itself.
    """
    of_orbax = f"{os.sep}orbax{os.sep}"
    if of_orbax in record.pathname or record.name == "asyncio" and of_orbax in record.getMessage():
        return False
    return record.levelno >= std_logging.WARNING or f"{os.sep}mmjax{os.sep}" in record.pathname


def _report_unraisable(args: sys.UnraisableHookArgs) -> None:
    """Reports an exception that no caller can catch, unless it follows from one that is raised.

    When a write of a checkpoint fails, Orbax closes its event loop and raises the error. The writes
    that TensorStore still completes then fail to tell the loop so.
    """
    if not (isinstance(args.exc_value, RuntimeError) and "Event loop is closed" in str(args)):
        sys.__unraisablehook__(args)
