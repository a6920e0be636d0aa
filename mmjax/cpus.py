"""The number of CPU cores that this process may use."""

from __future__ import annotations

import os


def available_cpus() -> int:
    """Returns the number of cores this process may run on, or of all cores if that is unknown."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
