"""Floating-point operations of matrix products, convolutions and the kernels that contain them."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import numpy as np

from mmjax.aot.hlo import Computation, Instruction

# Custom calls without matrix products. Others are reported as not counted.
_NO_PRODUCTS = re.compile(
    r"AssumeGatherIndicesInBound|GatherScatterIndicesBitpacked|ZeroCrop|ConcatBitcast|"
    r"AsyncCollective\w+|AllocateBuffer|X64\w+|\w*TopK|PartialReduce|__cub\$\w+"
)


def flops(computation: Computation, instruction: Instruction) -> float | None:
    """Returns the operations of an instruction on matrix units, without computations it calls.

    Returns:
      0 for instructions without matrix products; None if the number is unknown.
    """
    if instruction.opcode == "dot":
        return _dot(computation, instruction)
    if instruction.opcode == "convolution":
        lhs, rhs = (operand.arrays[0].dims for operand in computation.operands(instruction)[:2])
        return _convolution(instruction, lhs, rhs, instruction.arrays[0].dims)
    if instruction.opcode == "custom-call":
        return _custom_call(computation, instruction)
    return 0.0


def _dot(computation: Computation, instruction: Instruction) -> float:
    lhs = computation.operands(instruction)[0].arrays[0]
    contracted = math.prod(lhs.dims[i] for i in instruction.numbers("lhs_contracting_dims"))
    return 2.0 * instruction.arrays[0].size * contracted


def _convolution(
    instruction: Instruction, lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...]
) -> float:
    """Counts only products with elements of the input, not with padding or dilation.

    On TPUs, XLA writes matrix products as convolutions. Most of their windows is padding.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    left, right, result = labels.groups()
    window = _window(instruction.attributes)
    positions = 1
    for i, label in enumerate(sorted(label for label in left if label.isdigit())):
        positions *= _valid_positions(
            lhs[left.index(label)],
            rhs[right.index(label)],
            out[result.index(label)],
            *(window[key][i] if key in window else default for key, default in _DEFAULTS.items()),
        )
    groups = int(instruction.attribute("feature_group_count") or 1)
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    inputs = lhs[left.index("f")] // groups
    outputs = out[result.index("f")]
    return 2.0 * inputs * outputs * (lhs[left.index("b")] // batch_groups) * positions


_DEFAULTS: dict[str, Any] = {"stride": 1, "pad": (0, 0), "lhs_dilate": 1, "rhs_dilate": 1}


def _window(attributes: str) -> dict[str, list[Any]]:
    """Returns {setting: value of each spatial dimension} of a convolution's window."""
    match = re.search(r"\bwindow=\{([^}]*)\}", attributes)
    window: dict[str, list[Any]] = {}
    for key, value in re.findall(r"(\w+)=(\S+)", match[1] if match else ""):
        if key == "pad":
            window[key] = [tuple(int(n) for n in pair.split("_")) for pair in value.split("x")]
        elif key in _DEFAULTS:
            window[key] = [int(n) for n in value.split("x")]
    return window


@functools.lru_cache(maxsize=4096)
def _valid_positions(
    size: int,
    kernel: int,
    out: int,
    stride: int,
    pad: tuple[int, int],
    lhs_dilate: int,
    rhs_dilate: int,
) -> int:
    """Returns the number of (output, kernel) positions that meet an element of the input."""
    last = (size - 1) * lhs_dilate
    count = 0
    for k in range(kernel):
        position = np.arange(out, dtype=np.int64) * stride + k * rhs_dilate - pad[0]
        inside = (position >= 0) & (position <= last)
        if lhs_dilate > 1:
            inside &= position % lhs_dilate == 0
        count += int(inside.sum())
    return count


def _custom_call(computation: Computation, instruction: Instruction) -> float | None:
    target = instruction.attribute("custom_call_target").strip('"')
    if _NO_PRODUCTS.fullmatch(target):
        return 0.0
    config = instruction.backend_config
    if estimate := cost_estimate(instruction):
        return float(estimate.get("flops", 0))
    operands = [
        operand.arrays[0] for operand in computation.operands(instruction) if operand.arrays
    ]
    gemm = config.get("gemm_backend_config")
    if gemm and operands:
        dims = gemm["dot_dimension_numbers"].get("lhs_contracting_dimensions", [])
        contracted = math.prod(operands[0].dims[int(i)] for i in dims)
        return 2.0 * instruction.arrays[0].size * contracted
    if target.startswith("__cudnn$conv") and len(operands) >= 2:
        return _cudnn_convolution(instruction, target, operands)
    if target.startswith("__cudnn$fmha") and operands:
        shape = config.get("cudnn_fmha_backend_config", {}).get("intermediate_tensor_shape", {})
        scores = math.prod(int(size) for size in shape.get("dimensions", ()))
        # Two products forward; backward these and three more, of which one repeats the scores.
        products = 5 if "Backward" in target else 2
        return 2.0 * products * scores * operands[0].dims[-1] if shape else None
    return None


def _cudnn_convolution(instruction: Instruction, target: str, operands: list) -> float:
    first, second, result = operands[0].dims, operands[1].dims, instruction.arrays[0].dims
    if target.endswith("BackwardInput"):
        lhs, rhs, out = result, second, first
    elif target.endswith("BackwardFilter"):
        lhs, rhs, out = first, result, second
    else:
        lhs, rhs, out = first, second, result
    return _convolution(instruction, lhs, rhs, out)


def cost_estimate(instruction: Instruction) -> dict[str, Any]:
    """Returns the estimate that the author of a Pallas kernel gave: flops, bytes_accessed, …"""
    config = instruction.backend_config
    inner = config.get("custom_call_config", config)
    estimate = inner.get("cost_estimate") if isinstance(inner, dict) else None
    return {key: float(value) for key, value in (estimate or {}).items()}
