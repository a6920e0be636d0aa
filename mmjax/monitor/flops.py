"""Peak FLOP/s of known devices, and model FLOPs utilization (MFU)."""

from __future__ import annotations

import re
import time
from typing import Any

import jax
import jax.numpy as jnp

# Peak dense FLOP/s of one JAX *device* from the vendors' data sheets, without structured sparsity:
# (pattern for `device.device_kind`, bfloat16, float32). The first match applies. `float32` is what
# JAX uses for float32 inputs by default: TF32 tensor cores on NVIDIA since Ampere, bfloat16 passes
# on TPU. GPUs before Ampere have no bfloat16 units and compute in float32: one number for both.
_PEAKS: tuple[tuple[str, float, float], ...] = (
    # NVIDIA HGX/DGX B200 data sheets: 4.5 and 2.25 PFLOP/s per GPU with sparsity.
    (r"\bB200\b", 2250e12, 1125e12),
    # NVIDIA H200 and H100 data sheets: the SXM and Grace parts, the NVL cards, the PCIe card.
    (r"\bH[12]00 NVL\b", 835.5e12, 417.5e12),
    (r"\bH100 PCIe\b", 756.5e12, 378e12),
    (r"\b(G?H200|H100)\b", 989.5e12, 494.7e12),
    # NVIDIA A100 data sheet.
    (r"\bA100\b", 312e12, 156e12),
    # NVIDIA L4 data sheet: 242 and 120 TFLOP/s with sparsity.
    (r"\bL4\b", 121e12, 60e12),
    # NVIDIA T4 and V100 data sheets, float32 units.
    (r"\bT4\b", 8.1e12, 8.1e12),
    (r"\bV100-SXM", 15.7e12, 15.7e12),
    (r"\bV100\b", 14e12, 14e12),
    # Google Cloud's page of each TPU version, per chip: 46, 123, 275, 197, 459, 918, 2307 TFLOP/s.
    # On v2, v3 and TPU7x a chip shows as two JAX devices; on v4 and v5p its two cores act as one
    # device.
    (r"^TPU v2$", 23e12, 23e12),
    (r"^TPU v3$", 61.5e12, 61.5e12),
    (r"^TPU v4$", 275e12, 275e12),
    (r"^TPU v5( lite|e)$", 197e12, 197e12),
    (r"^TPU v5p?$", 459e12, 459e12),
    (r"^TPU v6( lite|e)$", 918e12, 918e12),
    (r"^TPU7x?$", 1153.5e12, 1153.5e12),
)


def peak_flops(device_kind: str, dtype: Any = "bfloat16") -> float | None:
    """Returns the peak dense FLOP/s of one device, or None if unknown (CPUs, other devices).

    Args:
      device_kind: `jax.devices()[0].device_kind`.
      dtype: Data type of matrix products, 'bfloat16' or 'float32'.
    """
    column = {"bfloat16": 0, "float32": 1}.get(jnp.dtype(dtype).name)
    for pattern, *peaks in _PEAKS:
        if column is not None and re.search(pattern, device_kind):
            return peaks[column]
    return None


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
