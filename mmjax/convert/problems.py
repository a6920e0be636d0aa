"""What conversions of all kinds share: names of statistics, and lists of what is wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping

_STATISTIC = re.compile(r"norm(/\d+)?/(mean|var)$")


def is_statistic(path: str) -> bool:
    """Whether our array is of BatchNorm's statistics, and so in `extra`."""
    return _STATISTIC.search(path) is not None


def listing(problems: Mapping[str, str], limit: int = 12) -> str:
    """One line for each of the first `limit`."""
    lines = [f"  {name}: {what}" for name, what in list(problems.items())[:limit]]
    more = [f"  … and {len(problems) - limit} more"] if len(problems) > limit else []
    return "\n".join(lines + more)
