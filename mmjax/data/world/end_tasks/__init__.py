"""Procedural stand-ins for the datasets of all end tasks, as files in the published layouts.

They are drawn when they are opened first, below the cache directory. Their labels and targets are
functions of what an image shows, so a good encoder predicts them and chance does not. They are for
tests and demos: results on them say nothing about the datasets that they stand for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence

from mmjax import cache, files
from mmjax.data.world.end_tasks.dense_sets import DENSE_SETS
from mmjax.data.world.end_tasks.image_sets import IMAGE_SETS
from mmjax.data.world.end_tasks.settings import Settings
from mmjax.errors import UserError

_VERSION = 1  # part of the cache path: increase it when the same settings give other data

log = logging.getLogger(__name__)

# {directory below the root: function (its path, settings) that writes it}.
STAND_INS = IMAGE_SETS | DENSE_SETS


def ensure(
    datasets: Sequence[str], *, size: int = 64, train: int = 200, test: int = 100, seed: int = 0
) -> str:
    """Returns the directory of stand-ins, and draws some of them first if they do not exist.

    Several processes may call this at once: one draws and the others wait.

    Args:
      datasets: Directories below the root: keys of `STAND_INS`.
      size: Height of the images in pixels.
      train: Number of training examples.
      test: Number of test examples. EgoHands and KITTI have fixed shares of test examples instead,
        so that their number follows from `train`.
      seed: Seed of everything that is random.

    Raises:
      UserError: There is no such stand-in, or the cache directory is not writable.
    """
    if size < 16:
        raise UserError(f"root=world: size={size} must be at least 16 pixels.")
    settings = Settings(size=size, train=train, test=test, seed=seed)
    key = hashlib.sha256(json.dumps([_VERSION, size, train, test, seed]).encode()).hexdigest()[:10]
    root = os.path.join(cache.cache_dir(), f"world-end-tasks-{key}")
    for name in datasets:
        if name not in STAND_INS:
            raise UserError(
                f"root=world: there is no stand-in for {name}. Stand-ins: {', '.join(STAND_INS)}."
            )
        path = os.path.join(root, name)
        if os.path.exists(path):
            continue
        try:
            with cache.locked(f"{path}.lock"):
                if not os.path.exists(path):
                    _draw(path, name, settings)
        except OSError as error:
            raise UserError(
                f"Cannot write stand-ins to {path}: {error}. Set MMJAX_CACHE to a writable "
                "directory with free space."
            ) from error
    return root


def _draw(path: str, name: str, settings: Settings) -> None:
    start = time.perf_counter()
    files.remove_orphans(os.path.dirname(path))
    with files.atomic_path(path) as partial:
        os.makedirs(partial)
        STAND_INS[name](str(partial), settings)
    log.info("Drew the stand-in for %s at %s in %.1f s.", name, path, time.perf_counter() - start)
