"""What a person sees of the log, in trainings and in commands."""

from __future__ import annotations

import logging as std_logging
import os

from absl import logging


def setup(verbosity: int = logging.INFO) -> None:
    """Sends the log to the standard error, without the chatter of libraries.

    Args:
      verbosity: of absl: `logging.INFO` for trainings, `logging.WARNING` for commands.
    """
    logging.use_absl_handler()
    logging.set_verbosity(verbosity)
    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_is_ours)


def _is_ours(record: std_logging.LogRecord) -> bool:
    """Keeps the log to what this project says and to others' warnings.

    Orbax logs whole tracebacks before it raises; what it raises is worded by `mmjax.checkpoints.manager`.
    """
    if f"{os.sep}orbax{os.sep}" in record.pathname:
        return False
    return record.levelno >= std_logging.WARNING or f"{os.sep}mmjax{os.sep}" in record.pathname
