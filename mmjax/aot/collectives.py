"""Collective operations of a compiled program: kind, groups of devices, and bytes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from mmjax.aot.hlo import Computation, Instruction, bits

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation.

    Attributes:
      kind: One of `KINDS`.
      key: The same for the parts into which the compiler splits one operation.
      bytes: Bytes of the whole array that a group holds together: the result of an all-gather, the
        operand of all others.
      groups: Device positions of each group; for a permute, pairs of source and target. Empty if
        all devices form one group.
      dtype: Element type of the first array.
    """

    kind: str
    key: str
    bytes: int
    groups: tuple[tuple[int, ...], ...]
    dtype: str

    def axes(self, mesh: Mapping[str, int]) -> str:
        """Returns the mesh axes along which the devices of a group differ, joined by '+'.

        Args:
          mesh: {axis: size}, in order.
        """
        groups = np.asarray(self.groups or [range(math.prod(mesh.values()))])
        positions = np.unravel_index(groups, tuple(mesh.values()))
        varying = [
            axis
            for axis, position in zip(mesh, positions, strict=True)
            if (position != position[:, :1]).any()
        ]
        return "+".join(varying) or "none"

    def group_size(self, num_devices: int) -> int:
        """Returns the number of devices of a group."""
        return len(self.groups[0]) if self.groups else num_devices

    def sent(self, size: int) -> float:
        """Returns the bytes that each of `size` devices must at least send."""
        share = (size - 1) / size
        if self.kind == "all-reduce":
            return 2 * share * self.bytes
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes) if size > 1 else 0.0
        return share * self.bytes


def collective_of(
    computation: Computation, instruction: Instruction, *, scattered: bool = False
) -> Collective | None:
    """Returns the collective operation that an instruction starts, or None.

    Args:
      computation: Where the instruction is.
      instruction: Any instruction.
      scattered: Whether each device keeps only its part of an all-reduce.
    """
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    operands = [array for o in computation.operands(instruction) for array in o.arrays]
    arrays = operands
    if kind == "all-gather":
        arrays = instruction.arrays
        if instruction.opcode.endswith("-start"):  # operands and results
            arrays = arrays[len(operands) : 2 * len(operands)]
    if kind == "all-reduce" and scattered:
        kind = "reduce-scatter"
    channel = instruction.attribute("channel_id")
    if kind == "collective-permute":
        groups = _pairs(instruction.attributes)
    else:
        groups = parse_groups(instruction.attributes)
    return Collective(
        kind=kind,
        key=f"channel {channel}" if channel else instruction.name,
        bytes=sum(math.ceil(a.size * bits(a.dtype) / 8) for a in arrays),
        groups=groups,
        dtype=arrays[0].dtype if arrays else "",
    )


def _pairs(attributes: str) -> tuple[tuple[int, ...], ...]:
    match = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    pairs = re.findall(r"\{(\d+),(\d+)\}", match[1] if match else "")
    return tuple((int(a), int(b)) for a, b in pairs)


def parse_groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """Returns the replica groups of an instruction's attributes; () for one group of all devices.

    XLA writes them as lists `{{0,1},{2,3}}`, as a reshaped iota `[2,4]<=[4,2]T(1,0)`, or as axes of
    a mesh `mesh['a'=2,'b'=4] {'a'}`.
    """
    if match := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
        groups = re.findall(r"\{([\d,]+)\}", match[1])
        return tuple(tuple(int(n) for n in group.split(",")) for group in groups)
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        shape, sizes, order = (_numbers(text) for text in iota.groups())
        return _rows(_iota(sizes, order).reshape(shape))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](.*?)\{([^}]*)\}", attributes)
    if mesh:
        return _mesh_groups(*mesh.groups())
    return ()


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text or ""))


def _iota(sizes: Sequence[int], order: Sequence[int]) -> np.ndarray:
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(order) if order else ids


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(n) for n in row) for row in ids)


def _mesh_groups(axes: str, order: str, names: str) -> tuple[tuple[int, ...], ...]:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    ids = np.arange(math.prod(sizes.values()))
    if iota := re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
        ids = _iota(_numbers(iota[1]), _numbers(iota[2])).reshape(-1)
    elif "device_ids" in order:
        ids = np.array(_numbers(order))
    # An axis may be split: 'a':(2)4 is the part of size 4 behind a part of size 2.
    parts: list[tuple[str, int]] = []
    used = {
        (name, int(before or 1), int(size or sizes[name]))
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", names)
    }
    grouped: list[int] = []
    for name, size in sizes.items():
        mine = sorted((before, width) for other, before, width in used if other == name)
        done = 1
        for before, width in mine:
            if before > done:
                parts.append((name, before // done))
            grouped.append(len(parts))
            parts.append((name, width))
            done = before * width
        if done < size:
            parts.append((name, size // done))
    ids = ids.reshape([size for _, size in parts] or [1])
    rest = [i for i in range(ids.ndim) if i not in grouped]
    width = math.prod(ids.shape[i] for i in grouped)
    return _rows(ids.transpose(rest + grouped).reshape(-1, width))
