"""Bytes that an instruction reads from and writes to the memory of the device.

Arrays in other memory spaces (on the chip, on the host) cost nothing. A fusion that slices an array
reads only the slice, and one that updates a slice in place writes only the slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmjax.aot import matrix
from mmjax.aot.hlo import Array, Computation, Instruction, Module

_SLICES = frozenset(("slice", "dynamic-slice", "gather"))
# Custom calls that rename or allocate memory.
_NO_BYTES = frozenset(("ConcatBitcast", "AllocateBuffer", "AssumeGatherIndicesInBound"))


def bytes_of(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Returns the bytes that an instruction reads and writes."""
    opcode, arrays = instruction.opcode, instruction.arrays
    operands = computation.operands(instruction)
    if opcode == "fusion":
        return _fusion(module, instruction, operands)
    if opcode == "custom-call":
        return _custom_call(instruction, operands)
    if opcode == "copy-start":  # results: the copy, the operand, a flag
        return _sum(arrays[:2])
    if opcode in _SLICES or opcode.endswith("slice-start"):
        moved = arrays[-2] if opcode.endswith("-start") and len(arrays) > 1 else arrays[0]
        source = operands[0].arrays[0]
        return moved.bytes * ((source.space == 0) + (moved.space == 0))
    if opcode == "dynamic-update-slice":
        update = operands[1].arrays[0]
        return _sum([update]) + (update.bytes if arrays[0].space == 0 else 0)
    if opcode == "scatter":  # reads the updates and what they are added to, and writes the sum
        return 3 * _sum(operands[-1].arrays) if arrays[0].space == 0 else 0
    if opcode.endswith("-start") and len(arrays) > 1:  # operands, results, flags
        arrays = arrays[1:2]
    return _sum_operands(operands) + _sum(arrays)


def _sum(arrays: Iterable[Array]) -> float:
    return float(sum(array.bytes for array in arrays if array.space == 0))


def _sum_operands(operands: Sequence[Instruction]) -> float:
    unique = {operand.name: operand for operand in operands}.values()
    return sum(_sum(operand.arrays) for operand in unique)


def _fusion(module: Module, instruction: Instruction, operands: Sequence[Instruction]) -> float:
    inner = module.computations[instruction.called["calls"][0]]
    total, seen = 0.0, set()
    for index, operand in enumerate(operands):
        if len(operand.arrays) != 1:
            total += _sum(operand.arrays)
        elif operand.arrays[0].space == 0 and operand.name not in seen:
            total += _read(module, inner, inner.parameters[index])
            seen.add(operand.name)
    root = inner.root
    results = inner.operands(root) if root.opcode == "tuple" else [root]
    if len(results) == len(instruction.arrays):
        for result, array in zip(results, instruction.arrays, strict=True):
            total += _written(module, inner, result) if array.space == 0 else 0
    elif not any(_is_part_of_collective(i) for i in inner.instructions.values()):
        total += _sum(instruction.arrays)
    return total


def _read(module: Module, computation: Computation, value: Instruction) -> float:
    """Returns how many bytes of a fusion's operand are read."""
    whole = float(sum(array.bytes for array in value.arrays))
    total = 0.0
    for user in computation.users.get(value.name, ()):
        first = user.operands[0] == value.name
        if user.opcode == "tuple" or _is_part_of_collective(user):
            continue
        if user.opcode in _SLICES and first:
            total += user.arrays[0].bytes
        elif user.opcode == "dynamic-update-slice" and first:
            continue
        elif _renamed_operand(module, user) is not None:
            total += _read(module, computation, user)
        elif user.opcode == "fusion":
            inner = module.computations[user.called["calls"][0]]
            for index, name in enumerate(user.operands):
                if name == value.name:
                    total += _read(module, inner, inner.parameters[index])
        else:
            return whole
    return min(total, whole)


def _written(module: Module, computation: Computation, result: Instruction) -> float:
    """Returns how many bytes of a fusion's result are written."""
    result = _renamed(module, computation, result)
    if result.opcode == "parameter" or _is_part_of_collective(result):
        return 0.0
    if result.opcode == "get-tuple-element":
        return float(result.arrays[0].bytes) if result.arrays else 0.0
    if result.opcode == "dynamic-update-slice":
        return float(computation.operands(result)[1].arrays[0].bytes)
    if result.opcode == "fusion" and len(result.arrays) == 1:
        inner = module.computations[result.called["calls"][0]]
        return _written(module, inner, inner.root)
    return float(sum(array.bytes for array in result.arrays))


def _renamed(module: Module, computation: Computation, value: Instruction) -> Instruction:
    """Returns the value that bitcasts, and fusions of only bitcasts, rename."""
    while (index := _renamed_operand(module, value)) is not None:
        value = computation.operands(value)[index]
    return value


def _renamed_operand(module: Module, instruction: Instruction) -> int | None:
    """Returns the index of the operand that an instruction renames; None if it does more."""
    if instruction.opcode == "bitcast":
        return 0
    if instruction.opcode != "fusion":
        return None
    inner = module.computations[instruction.called["calls"][0]]
    source = _renamed(module, inner, inner.root)
    return int(source.arguments) if source.opcode == "parameter" else None


def _is_part_of_collective(instruction: Instruction) -> bool:
    """Whether an instruction only passes data on to an asynchronous collective operation."""
    target = instruction.attribute("custom_call_target").strip('"')
    return target.startswith("AsyncCollective") or instruction.opcode.startswith("all-gather")


def _custom_call(instruction: Instruction, operands: Sequence[Instruction]) -> float:
    if estimate := matrix.cost_estimate(instruction).get("bytes_accessed"):
        return estimate
    target = instruction.attribute("custom_call_target").strip('"')
    in_place = "output_to_operand_aliasing" in instruction.attributes
    if target in _NO_BYTES or (target == "ZeroCrop" and in_place):
        return 0.0
    written = instruction.arrays
    if target.startswith("__cu") and len(written) > 1 and written[-1].dtype in ("s8", "u8"):
        written = written[:-1]  # scratch memory
    return _sum_operands(operands) + _sum(written)
