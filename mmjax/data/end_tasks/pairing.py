"""Finds the target file of each image."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Sequence

from mmjax.errors import UserError

# Parts of file names that tell images and targets of one dataset apart.
_ROLES = re.compile(
    r"(_domain_\w+|_leftImg8bit|_gtFine_labelIds|[_-]?(rgb|depth|image|img|walkable))$"
)


def pair(images: Sequence[str], targets: Sequence[str], *, depth: int = 1) -> list[str]:
    """Returns the target of each image.

    Files belong together if their names are equal except for suffixes such as `_leftImg8bit` and
    `_gtFine_labelIds`. If no names are, files of one directory are paired in alphabetical order.

    Args:
      images: Paths of the images.
      targets: Paths of the targets.
      depth: Number of parts of a path, from its end, that are compared: 1 for the file name, 2 to
        include its directory.

    Raises:
      UserError: An image has no target.
    """
    by_key = {_key(path, depth): path for path in targets}
    if len(by_key) < len(targets):  # the names are not what distinguishes the files
        by_key = {}
    found = [by_key.get(_key(path, depth)) for path in images]
    if images and not any(found):
        return _in_order(images, targets, depth)
    if absent := [image for image, target in zip(images, found, strict=True) if target is None]:
        raise _missing(absent, images, targets)
    return found


def _in_order(images: Sequence[str], targets: Sequence[str], depth: int) -> list[str]:
    groups: tuple[dict, dict] = collections.defaultdict(list), collections.defaultdict(list)
    for group, paths in zip(groups, (images, targets), strict=True):
        for path in sorted(paths):
            group[_directory(path, depth)].append(path)
    result = {}
    for directory, paths in groups[0].items():
        others = groups[1].get(directory, [])
        if len(others) != len(paths):
            raise _missing(paths, images, targets)
        result |= dict(zip(paths, others, strict=True))
    return [result[image] for image in images]


def _directory(path: str, depth: int) -> tuple[str, ...]:
    """Returns the compared directories of a path."""
    return tuple(path.split(os.sep)[-depth:-1])


def _key(path: str, depth: int) -> tuple[str, ...]:
    stem = os.path.splitext(os.path.basename(path))[0]
    return *_directory(path, depth), _ROLES.sub("", stem)


def _missing(absent: Sequence[str], images: Sequence[str], targets: Sequence[str]) -> UserError:
    where = os.path.dirname(targets[0]) if targets else "the directory of the targets"
    return UserError(
        f"{len(absent)} of {len(images)} images have no target, the first one {absent[0]}. Their "
        f"targets were searched in {where} and its siblings, which have {len(targets)} files. Copy "
        "the rest of the dataset, or remove these images."
    )
