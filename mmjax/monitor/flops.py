"""Data sheet rates of known devices, and model FLOPs utilization (MFU)."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class DeviceType:
    """Rates of one JAX *device* from the vendor's data sheet, without structured sparsity.

    Attributes:
      pattern: Regular expression for `device.device_kind`.
      bfloat16: Peak FLOP/s of bfloat16 matrix products. GPUs before Ampere have no bfloat16 units;
        theirs is that of float32.
      float32: What JAX uses for float32 inputs by default: TF32 tensor cores on NVIDIA since
        Ampere, bfloat16 passes on TPU.
      memory: Bytes of memory. NVIDIA's GB are GiB.
      bandwidth: Bytes per second between memory and chip.
      links: Bytes per second that the device can send over all its links to other devices of its
        slice or host together, half of the bidirectional rate; None if unknown.
      network: Bytes per second that it can send to other hosts, in the vendor's reference system
        (DGX); None if the links connect the hosts, or if there is no such system.
    """

    pattern: str
    bfloat16: float
    float32: float
    memory: float
    bandwidth: float
    links: float | None = None
    network: float | None = None


_GiB = 2**30
# The first match applies.
_TYPES: tuple[DeviceType, ...] = (
    # NVIDIA HGX/DGX B200 data sheets: 4.5 and 2.25 PFLOP/s per GPU with sparsity.
    DeviceType(r"\bB200\b", 2250e12, 1125e12, 180 * _GiB, 8000e9, 900e9, 50e9),
    # NVIDIA H200 and H100 data sheets: the SXM and Grace parts, the NVL cards, the PCIe card.
    DeviceType(r"\bH200 NVL\b", 835.5e12, 417.5e12, 141 * _GiB, 4800e9, 450e9),
    DeviceType(r"\bH100 NVL\b", 835.5e12, 417.5e12, 94 * _GiB, 3900e9, 300e9),
    DeviceType(r"\bH100 PCIe\b", 756.5e12, 378e12, 80 * _GiB, 2000e9, 300e9),
    DeviceType(r"\bG?H200\b", 989.5e12, 494.7e12, 141 * _GiB, 4800e9, 450e9, 50e9),
    DeviceType(r"\bH100\b", 989.5e12, 494.7e12, 80 * _GiB, 3350e9, 450e9, 50e9),
    # NVIDIA A100 data sheet, the SXM part with 80 GB.
    DeviceType(r"\bA100\b", 312e12, 156e12, 80 * _GiB, 2039e9, 300e9, 25e9),
    # NVIDIA L4 data sheet: 242 and 120 TFLOP/s with sparsity.
    DeviceType(r"\bL4\b", 121e12, 60e12, 24 * _GiB, 300e9, 32e9),
    # NVIDIA T4 and V100 data sheets, float32 units.
    DeviceType(r"\bT4\b", 8.1e12, 8.1e12, 16 * _GiB, 320e9, 16e9),
    DeviceType(r"\bV100-SXM", 15.7e12, 15.7e12, 32 * _GiB, 900e9, 150e9),
    DeviceType(r"\bV100\b", 14e12, 14e12, 32 * _GiB, 900e9, 16e9),
    # Google Cloud's page of each TPU version, per chip: 46, 123, 275, 197, 459, 918, 2307 TFLOP/s.
    # On v2, v3 and TPU7x a chip shows as two JAX devices; on v4 and v5p its two cores act as one
    # device. Interconnect per chip: 2400, 1600, 4800, 3584 Gbit/s, and 1200 GB/s bidirectional.
    DeviceType(r"^TPU v2$", 23e12, 23e12, 8 * _GiB, 350e9),
    DeviceType(r"^TPU v3$", 61.5e12, 61.5e12, 16 * _GiB, 450e9),
    DeviceType(r"^TPU v4$", 275e12, 275e12, 32 * _GiB, 1228e9, 300e9),
    DeviceType(r"^TPU v5( lite|e)$", 197e12, 197e12, 16 * _GiB, 819e9, 200e9),
    DeviceType(r"^TPU v5p?$", 459e12, 459e12, 95 * _GiB, 2765e9, 600e9),
    DeviceType(r"^TPU v6( lite|e)$", 918e12, 918e12, 32 * _GiB, 1640e9, 448e9),
    DeviceType(r"^TPU7x?$", 1153.5e12, 1153.5e12, 96 * _GiB, 3690e9, 300e9),
)


def device_type(device_kind: str) -> DeviceType | None:
    """Returns the rates of a device, or None if unknown (CPUs, other devices).

    Args:
      device_kind: `jax.devices()[0].device_kind`.
    """
    return next((t for t in _TYPES if re.search(t.pattern, device_kind)), None)


def peak_flops(device_kind: str, dtype: Any = "bfloat16") -> float | None:
    """Returns the peak dense FLOP/s of one device, or None if unknown (CPUs, other devices).

    Args:
      device_kind: `jax.devices()[0].device_kind`.
      dtype: Data type of matrix products, 'bfloat16' or 'float32'.
    """
    found, name = device_type(device_kind), jnp.dtype(dtype).name
    if found is None or name not in ("bfloat16", "float32"):
        return None
    return getattr(found, name)


def peak_of(mesh: jax.sharding.Mesh, dtype: Any = "bfloat16") -> float | None:
    """Returns the sum of `peak_flops` over the devices of a mesh, or None if unknown."""
    peak = peak_flops(mesh.devices.flat[0].device_kind, dtype)
    return None if peak is None else peak * mesh.size


def mfu(flops_per_step: float, seconds: float, peak: float | None) -> float | None:
    """Returns the model FLOPs utilization in [0, 1], or None if the peak is unknown.

    It is the number of model FLOPs (forward and backward, without rematerialization) divided by the
    peak of the devices in the same time (PaLM, arXiv 2204.02311, appendix B).

    Args:
      flops_per_step: FLOPs of the global batch.
      seconds: Duration of a step.
      peak: Peak FLOP/s of all devices; see `peak_of`.
    """
    return None if peak is None else flops_per_step / (seconds * peak)


def measured_peak(dtype: str = "float32", *, size: int = 2048, repeats: int = 5) -> float:
    """Returns the best FLOP/s of `repeats` jitted `size`³ matrix products on the default device.

    A reference for devices without a data sheet entry, used by `mmjax bench`.
    """
    matrix = jnp.full((size, size), 1 / size, dtype)
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
