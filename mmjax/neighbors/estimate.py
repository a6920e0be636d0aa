"""What a search for neighbors will take, before it begins."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from mmjax.neighbors import tiles as tiles_lib
from mmjax.neighbors.tiles import Settings
from mmjax.neighbors.vectors import Rows, host_bytes


def plan(
    count: int, width: int, *, k: int, settings: Settings, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Sizes, operations and time, if no two rows are equal.

    Args:
      count, width: N and D of the features.
      k: neighbors.
      settings: of the search.
      groups: int [N], or None.

    Returns:
      products: of blocks; flops; seconds, from a short measurement of such products here;
      device_bytes: on each device; host_bytes; passes: how often the features are read;
      cached: whether unit vectors stay in memory.
    """
    group = np.zeros(count, np.int64) if groups is None else np.sort(groups)
    rows = Rows(lambda numbers: np.zeros((len(numbers), width)), group, np.arange(count), width)
    products = tiles_lib.products(rows, settings) if count else 0
    blocks = math.ceil(count / settings.block)
    held = settings.blocks_held(blocks, width)
    keep = k + tiles_lib.SPARE[settings.dtype]
    element = 2 if settings.dtype == "bfloat16" else 4
    slots = held // len(settings.devices)
    block = settings.block
    on_device = slots * block * (width * element + 8 * keep + 8)  # vectors, tiles, groups and tags
    on_device += block * (2 * width * element + 4 * block + 8 * blocks * (block // settings.tile))
    cached = count * width * 4 <= host_bytes() / 4
    on_host = count * (8 * keep * (k + 5) + 60) + cached * count * width * 4
    return {
        "products": products,
        "flops": 2 * products * block**2 * width,
        "seconds": products
        * _probe(min(blocks, max(6, 2 * len(settings.devices))), width, keep, settings),
        "device_bytes": on_device,
        "host_bytes": on_host,
        "passes": 3 if cached else 2 + 2 * math.ceil(blocks / held),
        "cached": cached,
    }


def _probe(blocks: int, width: int, keep: int, settings: Settings) -> float:
    """Seconds of a product of blocks, measured on so many."""
    count = max(blocks, 1) * settings.block
    vectors = np.random.default_rng(0).standard_normal((settings.block, width), np.float32)
    vectors /= np.sqrt(width)
    same = np.zeros(count, np.int32)
    rows = Rows(lambda numbers: vectors[: len(numbers)], same, np.arange(count, dtype="i4"), width)
    seconds = math.inf
    for attempt in range(3):
        began = time.perf_counter()
        tiles_lib.best_tiles(rows, keep=keep, settings=settings)
        if attempt:  # the first compiles
            seconds = min(seconds, time.perf_counter() - began)
    return seconds / tiles_lib.products(rows, settings)
