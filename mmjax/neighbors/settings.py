"""How a nearest-neighbor search runs on the devices of this process."""

from __future__ import annotations

import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmjax.errors import UserError, choose

AXIS = "candidates"  # the mesh axis over which candidates are split
MAX_IN_FLIGHT = 4  # computations that are enqueued before the host waits for a result
CHUNK = 2**14  # vectors that the host processes at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a search runs. The settings do not change its result.

    Attributes:
      dtype: Type of the matrix products of the first pass: 'float32' or 'bfloat16'.
      block: Number of vectors on each side of a matrix product.
      tile: Number of vectors in a tile; divides `block`. The first pass finds the best tiles.
      device_bytes: Memory for candidates on each device. Candidates that do not fit are searched in
        several parts.
      devices: Devices over which the candidates are split.
    """

    dtype: str
    block: int
    tile: int
    device_bytes: float
    devices: tuple[Any, ...]

    def __post_init__(self) -> None:
        if self.block < 1 or self.tile < 1 or self.block % self.tile:
            raise UserError(
                f"Settings(tile={self.tile}, block={self.block}): both must be positive, and tile "
                "must divide block."
            )

    @property
    def mesh(self) -> Mesh:
        """The mesh of the devices, with the axis `AXIS`."""
        return Mesh(np.array(self.devices), (AXIS,))

    def resident_blocks(self, num_blocks: int, width: int) -> int:
        """Returns how many blocks of candidates are on the devices at a time.

        Args:
          num_blocks: Number of all blocks.
          width: Number of values of a vector.

        Returns:
          The number over all devices; a multiple of the number of devices.
        """
        size = self.block * width * jnp.dtype(self.dtype).itemsize
        num_devices = len(self.devices)
        fitting = max(int(self.device_bytes // size), 1)
        return num_devices * min(fitting, math.ceil(num_blocks / num_devices))


def choose_settings(
    dtype: str = "auto", *, block: int | None = None, device_bytes: float | None = None
) -> Settings:
    """Returns settings for the devices of this process.

    Args:
      dtype: 'float32', 'bfloat16', or 'auto': float32 on CPUs and bfloat16 otherwise.
      block: Size of a block. Default: 1024 on CPUs, where a product should fit into the cache;
        otherwise 8192.
      device_bytes: Memory for candidates on each device. Default: a part of the available memory.

    Raises:
      UserError: An unknown dtype, or a block smaller than 1.
    """
    devices = tuple(jax.local_devices())
    cpu = devices[0].platform == "cpu"
    dtypes = {
        "auto": "float32" if cpu else "bfloat16",
        "float32": "float32",
        "bfloat16": "bfloat16",
    }
    block = (1024 if cpu else 8192) if block is None else block
    stats = devices[0].memory_stats() or {}
    available = host_bytes() / 4 / len(devices) if cpu else 0.6 * stats.get("bytes_limit", 2**33)
    return Settings(
        dtype=choose("--dtype", dtype, dtypes),
        block=block,
        tile=math.gcd(block, 1024),
        device_bytes=device_bytes or available,
        devices=devices,
    )


def host_bytes() -> float:
    """Returns the memory of this machine in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # not on Linux
        return 2**33
