"""Estimates the time and memory of a search before it starts."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np

from mmjax.neighbors.prepared_features import SortedVectors
from mmjax.neighbors.settings import Settings, host_bytes
from mmjax.neighbors.tile_search import EXTRA_TILES, best_tiles, count_products


@dataclasses.dataclass(frozen=True)
class Cost:
    """The time and memory of a search.

    Attributes:
      products: Number of block products.
      flops: Number of floating point operations.
      seconds: Time of the products, from a measurement on these devices.
      device_bytes: Memory on each device.
      host_bytes: Memory on the host.
      passes: Number of times that the features are read.
      cached: Whether unit vectors are kept in host memory.
    """

    products: int
    flops: int
    seconds: float
    device_bytes: int
    host_bytes: int
    passes: int
    cached: bool


def estimate_cost(
    count: int, width: int, *, k: int, settings: Settings, groups: np.ndarray | None = None
) -> Cost:
    """Returns the time and memory of a search among features without duplicates.

    Args:
      count: Number of features, N.
      width: Number of values of a feature.
      k: Number of neighbors.
      settings: The settings of the search.
      groups: int [N], or None.
    """
    group = np.zeros(count, np.int64) if groups is None else np.sort(groups)
    vectors = SortedVectors(
        lambda indices: np.zeros((len(indices), width)), group, np.arange(count), width
    )
    products = count_products(vectors, settings) if count else 0
    block, num_devices = settings.block, len(settings.devices)
    num_blocks = math.ceil(count / block)
    resident = settings.resident_blocks(num_blocks, width)
    keep = k + EXTRA_TILES[settings.dtype]
    itemsize = 2 if settings.dtype == "bfloat16" else 4
    tiles = num_blocks * (block // settings.tile)
    # Vectors, best tiles, groups and tags of the resident candidates; then queries and scores.
    device_bytes = resident // num_devices * block * (width * itemsize + 8 * keep + 8)
    device_bytes += block * (2 * width * itemsize + 4 * block + 8 * tiles)
    cached = count * width * 4 <= host_bytes() / 4
    probed = min(num_blocks, max(6, 2 * num_devices))
    return Cost(
        products=products,
        flops=2 * products * block**2 * width,
        seconds=products * _seconds_per_product(probed, width, keep, settings),
        device_bytes=device_bytes,
        host_bytes=count * (8 * keep * (k + 5) + 60) + cached * count * width * 4,
        passes=3 if cached else 2 + 2 * math.ceil(num_blocks / resident),
        cached=cached,
    )


def _seconds_per_product(num_blocks: int, width: int, keep: int, settings: Settings) -> float:
    """Measures the time of a block product in a search among `num_blocks` blocks."""
    count = max(num_blocks, 1) * settings.block
    random = np.random.default_rng(0).standard_normal((settings.block, width), np.float32)
    random /= np.sqrt(width)
    group = np.zeros(count, np.int32)
    vectors = SortedVectors(
        lambda indices: random[: len(indices)], group, np.arange(count, dtype=np.int32), width
    )
    seconds = math.inf
    for attempt in range(3):
        start = time.perf_counter()
        best_tiles(vectors, keep=keep, settings=settings)
        if attempt:  # the first attempt compiles
            seconds = min(seconds, time.perf_counter() - start)
    return seconds / count_products(vectors, settings)
