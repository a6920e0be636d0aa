"""What lies below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator


def walk(root: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk` through links too, folders by name; but not through links to a folder above them,
    below which the same files come again and again."""
    for place, directories, files in os.walk(root, followlinks=True):
        directories[:] = sorted(name for name in directories if not _leads_back(place, name))
        yield place, directories, files


def _leads_back(place: str, name: str) -> bool:
    link = os.path.join(place, name)
    above = os.path.join(os.path.realpath(link), "")
    return os.path.islink(link) and os.path.join(os.path.realpath(place), "").startswith(above)
