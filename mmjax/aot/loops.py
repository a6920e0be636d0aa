"""Numbers of iterations of the loops of an HLO module."""

from __future__ import annotations

from mmjax.aot.hlo import Computation, Instruction, Module

# A value, and the computation that it belongs to.
_Value = tuple[Computation, Instruction]


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Returns the number of iterations of a `while` instruction; None if it is unknown.

    XLA for GPUs and CPUs records it. XLA for TPUs does not, so it follows from the loop: as in
    `jax.lax.scan` and `fori_loop`, the condition compares a counter with a constant, and the
    counter starts at a constant and grows by a constant.

    Args:
      module: The program.
      computation: The computation that contains the loop.
      loop: The `while` instruction.
    """
    if known := loop.backend_config.get("known_trip_count"):
        return int(known["n"])
    condition = module.computations[loop.called["condition"][0]]
    body = module.computations[loop.called["body"][0]]
    start = _source((computation, computation.operands(loop)[0]))[1]
    if start.opcode != "tuple" or body.root.opcode != "tuple":
        return None
    compare, operands = _unfused(module, condition, condition.root)
    direction = compare.attribute("direction") if compare.opcode == "compare" else ""
    if direction not in ("LT", "GT"):
        return None
    low, high = operands if direction == "LT" else reversed(operands)
    index, limit = _counter(low), _constant(high)
    if index is None or limit is None:
        return None
    first = _constant((computation, computation.operands(start)[index]))
    step = _step(module, body, index)
    if first is None or step is None or step <= 0:
        return None
    return max(0, -(-(limit - first) // step))


def _unfused(
    module: Module, computation: Computation, instruction: Instruction
) -> tuple[Instruction, list[_Value]]:
    """Returns an instruction, or the root of a fusion, with its operands outside of the fusion."""
    if instruction.opcode != "fusion":
        return instruction, [(computation, o) for o in computation.operands(instruction)]
    inner = module.computations[instruction.called["calls"][0]]
    outside = computation.operands(instruction)
    return inner.root, [
        (computation, outside[int(o.arguments)]) if o.opcode == "parameter" else (inner, o)
        for o in inner.operands(inner.root)
    ]


def _source(value: _Value) -> _Value:
    """Returns the value that copies and conversions start from."""
    computation, instruction = value
    while instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.operands(instruction)[0]
    return computation, instruction


def _counter(value: _Value) -> int | None:
    """Returns the index of a value among those that the loop carries."""
    computation, instruction = _source(value)
    if instruction.opcode != "get-tuple-element":
        return None
    carried = computation.operands(instruction)[0].opcode == "parameter"
    return instruction.numbers("index")[0] if carried else None


def _constant(value: _Value) -> int | None:
    _, instruction = _source(value)
    if instruction.opcode != "constant" or not instruction.arguments.lstrip("-").isdigit():
        return None
    return int(instruction.arguments)


def _step(module: Module, body: Computation, index: int) -> int | None:
    """Returns by how much one iteration increases the carried value at an index."""
    _, result = _source((body, body.operands(body.root)[index]))
    add, operands = _unfused(module, body, result)
    if add.opcode != "add" or index not in map(_counter, operands):
        return None
    return next((n for n in map(_constant, operands) if n is not None), None)
