"""Operations, bytes and collectives of a compiled program, with loops counted by their trips.

`Compiled.cost_analysis()` counts the body of a loop once, and not at all on some backends.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

from mmjax.aot import matrix, memory
from mmjax.aot.collectives import Collective, collective_of
from mmjax.aot.hlo import Array, Computation, Instruction, Module
from mmjax.aot.loops import trip_count

# Instructions without work of their own: they name, group or order values.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all opt-barrier partition-id "
    "replica-id add-dependency domain".split()
)
_ELEMENTWISE = frozenset(
    "abs add and atan2 cbrt ceil clamp compare cosine divide erf exponential "
    "exponential-minus-one floor is-finite log log-plus-one logistic maximum minimum multiply "
    "negate not or popcnt power remainder round-nearest-afz round-nearest-even rsqrt select "
    "shift-left shift-right-arithmetic shift-right-logical sign sine sqrt subtract tan tanh xor "
    "rng rng-bit-generator".split()
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction that the device runs: a fusion, a kernel, a copy or a collective.

    Attributes:
      name: Name of the instruction.
      kind: 'fusion', 'custom-call', 'copy', ….
      times: How often it runs in one step.
      flops: Operations on matrix units in one run.
      dtype: Element type of its matrix products; '' without any.
      bytes: Bytes that one run reads from and writes to the memory of the device.
      elementwise: Elements that its other operations compute in one run.
      source: 'file:line' in mmjax or the user's code; '' if unknown.
      op_name: Path of the JAX operation.
      collectives: The collective operations that it starts.
    """

    name: str
    kind: str
    times: int
    flops: float
    dtype: str
    bytes: float
    elementwise: float
    source: str
    op_name: str
    collectives: tuple[Collective, ...] = ()


@dataclasses.dataclass(frozen=True)
class Costs:
    """What one run of a program costs on each device.

    Attributes:
      operations: What the device runs.
      uncounted: {what is missing in the numbers: how often it occurs}.
    """

    operations: tuple[Operation, ...]
    uncounted: Mapping[str, int]

    @functools.cached_property
    def flops(self) -> float:
        """Operations on matrix units."""
        return sum(o.flops * o.times for o in self.operations)

    @functools.cached_property
    def bytes(self) -> float:
        """Bytes read from and written to the memory of the device."""
        return sum(o.bytes * o.times for o in self.operations)

    @functools.cached_property
    def elementwise(self) -> float:
        """Elements that are computed outside of matrix units."""
        return sum(o.elementwise * o.times for o in self.operations)

    @property
    def collectives(self) -> list[tuple[Collective, int]]:
        """The collective operations, and how often each runs."""
        return [(c, o.times) for o in self.operations for c in o.collectives]


@dataclasses.dataclass(frozen=True)
class _Inside:
    """What a called computation contains: the work of a fusion."""

    flops: float = 0.0
    elementwise: float = 0.0
    heaviest: tuple[float, Computation, Instruction] | None = None
    collectives: tuple[Collective, ...] = ()
    unknown: tuple[str, ...] = ()


def count(module: Module) -> Costs:
    """Returns the costs of a program."""
    counter = _Counter(module)
    operations = _count_once(list(counter.visit(module.entry, 1)))
    return Costs(tuple(operations), dict(counter.uncounted))


def _count_once(operations: list[Operation]) -> list[Operation]:
    """Returns the operations, with each collective in only one of them.

    The compiler splits an asynchronous collective into parts that it fuses with other work, also
    with that of a loop which runs at the same time.
    """
    parts: dict[str, list[int]] = collections.defaultdict(list)
    for i, operation in enumerate(operations):
        for collective in operation.collectives:
            parts[collective.key].append(i)
    first = {key: min(found, key=lambda i: operations[i].times) for key, found in parts.items()}
    return [
        dataclasses.replace(o, collectives=tuple(c for c in o.collectives if first[c.key] == i))
        for i, o in enumerate(operations)
    ]


class _Counter:
    """Walks through the computations that a device runs."""

    def __init__(self, module: Module):
        self._module = module
        self.uncounted: collections.Counter[str] = collections.Counter()
        self._inside: dict[str, _Inside] = {}

    def visit(self, name: str, times: int) -> Iterator[Operation]:
        """Yields the operations of a computation that runs `times` times."""
        computation = self._module.computations[name]
        for instruction in computation.instructions.values():
            opcode, called = instruction.opcode, instruction.called
            if opcode in _FREE or opcode.endswith(("-done", "-update")):
                continue
            if opcode == "while":
                trips = trip_count(self._module, computation, instruction)
                if trips is None:
                    self.uncounted["loops with an unknown number of iterations, counted once"] += 1
                yield from self.visit(called["body"][0], times * (1 if trips is None else trips))
            elif opcode == "conditional":
                yield from self._largest_branch(instruction, times)
            elif opcode in ("call", "async-start"):
                for target in [*called.get("to_apply", ()), *called.get("calls", ())]:
                    yield from self.visit(target, times)
            else:
                yield self._operation(computation, instruction, times)

    def _largest_branch(self, instruction: Instruction, times: int) -> list[Operation]:
        names = [
            name
            for key in ("branch_computations", "true_computation", "false_computation")
            for name in instruction.called.get(key, ())
        ]
        branches = [list(self.visit(name, times)) for name in names]
        return max(
            branches,
            key=lambda ops: (sum(o.flops * o.times for o in ops), sum(o.bytes for o in ops)),
            default=[],
        )

    def _operation(
        self, computation: Computation, instruction: Instruction, times: int
    ) -> Operation:
        inside = self._work(computation, instruction)
        for what in inside.unknown:
            self.uncounted[f"operations of {what}"] += times
        where, dtype = instruction, ""
        if inside.heaviest:
            _, owner, where = inside.heaviest
            dtype = owner.operands(where)[0].arrays[0].dtype
        source, op_name = self._origin(computation, instruction, where)
        return Operation(
            name=instruction.name,
            kind=instruction.opcode.removesuffix("-start"),
            times=times,
            flops=inside.flops,
            dtype=dtype,
            bytes=memory.bytes_of(self._module, computation, instruction),
            elementwise=inside.elementwise,
            source=source,
            op_name=op_name,
            collectives=tuple({c.key: c for c in inside.collectives}.values()),
        )

    def _work(self, computation: Computation, instruction: Instruction) -> _Inside:
        """Returns the work of one instruction, with that of the computations it fuses."""
        opcode = instruction.opcode
        if opcode in ("fusion", "call", "async-start"):
            names = [*instruction.called.get("calls", ()), *instruction.called.get("to_apply", ())]
            return _total([self._contents(name) for name in names])
        scattered = computation.name.startswith("all-reduce-scatter")
        collective = collective_of(computation, instruction, scattered=scattered)
        if collective:
            return _Inside(collectives=(collective,))
        if opcode in _ELEMENTWISE:
            return _Inside(elementwise=sum(array.size for array in instruction.arrays))
        if opcode in ("reduce", "reduce-window", "select-and-scatter", "sort", "fft"):
            return _Inside(elementwise=computation.operands(instruction)[0].arrays[0].size)
        flops = matrix.flops(computation, instruction)
        if flops is None:
            target = instruction.attribute("custom_call_target").strip('"')
            return _Inside(unknown=(f"custom call {target}",))
        return _Inside(flops=flops, heaviest=(flops, computation, instruction) if flops else None)

    def _contents(self, name: str) -> _Inside:
        if name not in self._inside:
            computation = self._module.computations[name]
            works = [
                self._work(computation, instruction)
                for instruction in computation.instructions.values()
                if instruction.opcode not in _FREE
            ]
            self._inside[name] = _total(works)
        return self._inside[name]

    def _origin(
        self, computation: Computation, instruction: Instruction, heaviest: Instruction
    ) -> tuple[str, str]:
        """Returns the source line and the JAX operation of an instruction."""
        candidates = [heaviest, instruction]
        for name in instruction.called.get("calls", ()):
            inner = self._module.computations[name]
            candidates += [inner.root, *reversed(inner.instructions.values())]
        source, op_name = "", ""
        for candidate in candidates:
            source = source or self._module.source(candidate)
            op_name = op_name or candidate.op_name
            if source and op_name:
                break
        if instruction.opcode.startswith(("copy", "slice")) and not source:
            op_name = _copied(computation, instruction)
        return source, op_name


def _copied(computation: Computation, instruction: Instruction) -> str:
    """Returns what a copy that the compiler adds is for, for example 'prefetch of state'."""
    arrays = instruction.arrays
    if instruction.opcode == "copy-start" and arrays[1].space != 0:
        return "write-back from on-chip memory"
    value = instruction
    while value.operands and value.opcode not in ("fusion", "while", "custom-call"):
        value = computation.operands(value)[0]
    name = re.match(r"\w+(\['\w+'\])?", value.op_name) if value.opcode == "parameter" else None
    prefetch = instruction.opcode.endswith("-start") and arrays[0].space != 0
    return ("prefetch" if prefetch else "copy") + (f" of {name[0]}" if name else "")


def _total(works: list[_Inside]) -> _Inside:
    return _Inside(
        flops=sum(w.flops for w in works),
        elementwise=sum(w.elementwise for w in works),
        heaviest=max(
            (w.heaviest for w in works if w.heaviest), key=lambda item: item[0], default=None
        ),
        collectives=tuple(c for w in works for c in w.collectives),
        unknown=tuple(what for w in works for what in w.unknown),
    )


def materialized_arrays(module: Module) -> dict[Array, int]:
    """Returns {array without layout: count} of the values that operations exchange.

    Values inside of fusions are left out: they stay in registers. The largest come first.
    """
    fused = {
        name
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "fusion"
        for name in instruction.called.get("calls", ())
    }
    result: collections.Counter[Array] = collections.Counter()
    for computation in module.computations.values():
        if computation.name not in fused:
            for instruction in computation.instructions.values():
                if instruction.opcode not in ("tuple", "get-tuple-element", "parameter", "bitcast"):
                    result.update(Array(a.dtype, a.dims) for a in instruction.arrays)
    return dict(sorted(result.items(), key=lambda item: -math.prod(item[0].dims)))
