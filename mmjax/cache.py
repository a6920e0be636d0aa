"""Where mmjax keeps what it can make again: compiled programs, generated datasets, features."""

from __future__ import annotations

import os
import pathlib


def cache_folder() -> pathlib.Path:
    """$MMJAX_CACHE, or ~/.cache/mmjax; it need not exist."""
    return pathlib.Path(os.environ.get("MMJAX_CACHE") or "~/.cache/mmjax").expanduser()
