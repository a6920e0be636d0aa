"""Parser of the text of optimized HLO modules, as `jax.stages.Compiled.as_text()` returns it.

It reads what cost estimates need: computations, instructions with their types, called computations
and source lines. It does not import JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([^\s=]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_CALLED_LISTS = re.compile(r"\b(branch_computations|called_computations|calls)=\{([^}]*)\}")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_LIBRARIES = ("site-packages", "dist-packages", "/lib/python3")


@dataclasses.dataclass(frozen=True)
class Array:
    """The type of an array.

    Attributes:
      dtype: Element type as XLA spells it, for example 'bf16'.
      dims: Sizes, in logical order.
      minor_to_major: Dimensions from the fastest varying one; empty for the default order.
      tile: Sizes of the first level of tiling, of the minor dimensions; empty without tiling.
      space: Memory space: 0 is the memory of the device; others are on the chip or on the host.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes, including the padding of tiles."""
        order = self.minor_to_major or tuple(reversed(range(len(self.dims))))
        sizes = [self.dims[i] for i in order]
        for i, width in enumerate(reversed(self.tile)):
            if i < len(sizes):
                sizes[i] = -(-sizes[i] // width) * width
            else:
                sizes.append(width)
        return math.ceil(math.prod(sizes) * bits(self.dtype) / 8)


def bits(dtype: str) -> int:
    """Returns the number of bits of an element type."""
    if dtype in _BITS:
        return _BITS[dtype]
    match = re.match(r"[a-z]+(\d+)", dtype)
    return int(match[1]) if match else 0


@functools.lru_cache(maxsize=65536)
def parse_type(text: str) -> tuple[Array, ...]:
    """Returns the arrays of a type; those of a tuple, also of a nested one, in order."""
    arrays = []
    for dtype, dims, layout in _ARRAY.findall(text):
        order, _, rest = layout.partition(":")
        tile = re.match(r"T\(([\d,*]+)\)", rest)
        space = re.search(r"S\((\d+)\)", rest)
        arrays.append(
            Array(
                dtype,
                tuple(int(d.strip(" <=")) for d in dims.split(",") if d.strip()),
                tuple(int(d) for d in order.split(",") if d),
                tuple(int(d) for d in tile[1].replace("*", "1").split(",")) if tile else (),
                int(space[1]) if space else 0,
            )
        )
    return tuple(arrays)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Attributes:
      name: Its name, without '%'.
      opcode: For example 'fusion'.
      type_text: Its type, as text.
      operands: Names of its operands.
      arguments: The text between the parentheses, for constants and parameters.
      attributes: The text after the parentheses.
      root: Whether it is the result of its computation.
    """

    name: str
    opcode: str
    type_text: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str
    root: bool = False

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its type."""
        return parse_type(self.type_text)

    @functools.cached_property
    def called(self) -> dict[str, list[str]]:
        """{attribute: names of computations that it calls}."""
        result: dict[str, list[str]] = {}
        text = self.attributes
        for key, name in _CALLED.findall(text):
            result.setdefault(key, []).append(name)
        for key, names in _CALLED_LISTS.findall(text):
            result.setdefault(key, []).extend(
                name.strip().lstrip("%") for name in names.split(",") if name.strip()
            )
        return result

    def attribute(self, key: str) -> str:
        """Returns the text of an attribute without nested braces; '' if it is not set."""
        match = re.search(rf"\b{key}=(\{{[^}}]*\}}|[^\s,]+)", self.attributes)
        return match[1].strip("{}") if match else ""

    def numbers(self, key: str) -> tuple[int, ...]:
        """Returns the numbers of an attribute such as `dimensions={0,1}`."""
        return tuple(int(n) for n in re.findall(r"-?\d+", self.attribute(key)))

    @functools.cached_property
    def backend_config(self) -> dict[str, Any]:
        """The settings of the compiler's backend; {} without any."""
        return _json_after(self.attributes, "backend_config=") or {}

    @property
    def op_name(self) -> str:
        """Path of the JAX operation that it comes from; '' if unknown."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return match[1] if match else ""

    @property
    def frame(self) -> int:
        """Index of the innermost stack frame; 0 if unknown."""
        match = re.search(r"stack_frame_id=(\d+)", self.attributes)
        return int(match[1]) if match else 0


def _json_after(text: str, key: str) -> Any:
    start = text.find(key)
    if start < 0:
        return None
    start += len(key)
    try:
        if text[start] == '"':  # a JSON object as an escaped string
            return json.loads(json.JSONDecoder().raw_decode(text, start)[0])
        return json.JSONDecoder().raw_decode(text, start)[0]
    except ValueError:
        return None


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation: instructions by name, in order of the schedule."""

    name: str
    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction that computes the result."""
        values = list(self.instructions.values())
        return next((i for i in values if i.root), values[-1])

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """{index: parameter}."""
        return {int(i.arguments): i for i in self.instructions.values() if i.opcode == "parameter"}

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """{name of an instruction: the instructions that use it}."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """Returns the operands of an instruction."""
        return [self.instructions[name] for name in instruction.operands]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: {name: computation}.
      entry: Name of the computation that runs first.
      files: {index: file name}.
      locations: {index: (index of the file, line)}.
      frames: {index: (index of the location, index of the caller's frame or 0)}.
    """

    computations: Mapping[str, Computation]
    entry: str
    files: Mapping[int, str]
    locations: Mapping[int, tuple[int, int]]
    frames: Mapping[int, tuple[int, int]]

    def stack(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        """Yields (file, line) of the calls that made an instruction, the innermost first."""
        index = instruction.frame
        while index in self.frames:
            location, index = self.frames[index]
            file, line = self.locations[location]
            yield self.files[file], line
        file = re.search(r'source_file="([^"]*)"', instruction.attributes)
        line = re.search(r"source_line=(\d+)", instruction.attributes)
        if file and line:
            yield file[1], int(line[1])

    def source(self, instruction: Instruction) -> str:
        """Returns 'file:line' of the innermost call outside of libraries; '' if there is none.

        Files of mmjax are relative to the directory that contains the package.
        """
        for file, line in self.stack(instruction):
            _, package, path = file.rpartition("/mmjax/")  # also of an environment in a checkout
            if not file.startswith("<") and not any(part in path for part in _LIBRARIES):
                return f"mmjax/{path}:{line}" if package else f"{file}:{line}"
        return ""


def parse(text: str) -> Module:
    """Returns the module of an HLO text."""
    computations: dict[str, Computation] = {}
    tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
    entry, current, table = "", None, None
    for line in text.split("\n"):
        if current is not None:
            if line.startswith("}"):
                current = None
            elif match := _INSTRUCTION.match(line):
                current[match[2]] = _instruction(line, match)
        elif match := _HEADER.match(line):
            current, table = {}, None
            computations[match[2]] = Computation(match[2], current)
            entry = match[2] if match[1] else entry
        elif line in tables:
            table = tables[line]
        elif table is not None and (match := re.match(r"(\d+) (.*)", line)):
            table[int(match[1])] = match[2]
    return Module(
        computations,
        entry or next(reversed(computations), ""),
        {index: value.strip('"') for index, value in tables["FileNames"].items()},
        {
            index: (_field(value, "file_name_id"), _field(value, "line"))
            for index, value in tables["FileLocations"].items()
        },
        # XLA prints the index of the caller plus one.
        {
            index: (_field(value, "file_location_id"), max(_field(value, "parent_frame_id") - 1, 0))
            for index, value in tables["StackFrames"].items()
        },
    )


def _field(text: str, key: str) -> int:
    match = re.search(rf"\b{key}=(\d+)", text)
    return int(match[1]) if match else 0


def _instruction(line: str, match: re.Match) -> Instruction:
    rest = line[match.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_text, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    close = _closing(rest, start)
    arguments = rest[start + 1 : close]
    return Instruction(
        name=match[2],
        opcode=rest[:start],
        type_text=type_text,
        operands=tuple(_NAME.findall(arguments)),
        arguments=arguments,
        attributes=rest[close + 1 :],
        root=bool(match[1]),
    )


def _closing(text: str, start: int) -> int:
    """Returns the position of the parenthesis that closes the one at `start`."""
    depth, quoted = 0, False
    for position in range(start, len(text)):
        character = text[position]
        if character == '"' and text[position - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if not depth:
                return position
    raise ValueError(f"Unbalanced parentheses: {text[:200]}")
