"""Reads untrusted pickles: only listed names can be used, and no other code runs."""

from __future__ import annotations

import os
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

from mmjax.errors import UserError


class Function:
    """A function that a pickle may call but cannot modify."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UserError("refused: the pickle sets the state of a function.")

    def __repr__(self) -> str:
        return f"the function {self._function.__name__}"


class _ArrayType:
    """Stands for numpy.ndarray, which a pickle only names: calling it would allocate memory."""

    def __repr__(self) -> str:
        return "numpy.ndarray"


@Function
def _reconstruct(array_type: Any, shape: tuple, code: Any) -> np.ndarray:
    """Returns an empty array; the state that follows in the pickle has its shape and content."""
    if shape != (0,):
        raise UserError(f"refused: the pickle creates an array {shape!r} without content.")
    return _RECONSTRUCT(np.ndarray, shape, code)


@Function
def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Returns bytes; Python 3 pickles bytes as a call of this for Python 2."""
    if encoding != "latin1":
        raise UserError(f"refused: the pickle encodes text as {encoding!r}; expected 'latin1'.")
    return text.encode(encoding)


@Function
def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """Returns a NumPy scalar. A scalar of type object would contain another pickle."""
    if dtype.hasobject:
        raise UserError("refused: the pickle contains a NumPy scalar of type object.")
    return np.frombuffer(data, dtype, count=1)[0]


_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
_CORES = ("core", "_core")
_PUT, _GET = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_MAX_DEPTH = 1000  # of tuples in tuples
# All names in the pickle of a numerical array, under the modules of NumPy 1 and 2.
ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType(),
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in _CORES},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in _CORES},
}
SCALARS = {(f"numpy.{core}.multiarray", "scalar"): _scalar for core in _CORES}


class Unpickler(pickle.Unpickler):
    """Reads a pickle that uses only allowed names.

    `load` raises a UserError at any other name, before anything is imported or called for it.

    Args:
      file: The pickle, opened for reading bytes.
      allowed: {(module, name): object to use for it}.
      advice: End of the error message about other names: why they are refused, and what to do.
      encoding: Encoding of text written by Python 2.
    """

    def __init__(
        self,
        file: IO[bytes],
        *,
        allowed: Mapping[tuple[str, str], Any],
        advice: str,
        encoding: str = "ASCII",
    ):
        super().__init__(file, encoding=encoding)
        self._file, self._allowed, self._advice = file, allowed, advice

    def load(self) -> Any:
        start = self._file.tell()
        _check_opcodes(_Bounded(self._file))
        self._file.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise UserError(f"refused: the pickle uses {module}.{name}, {self._advice}")
        return self._allowed[module, name]


class _Bounded:
    """A file that allocates no more memory than it has content, for any length in a pickle."""

    def __init__(self, file: IO[bytes]):
        self._file, start = file, file.tell()
        self._size = file.seek(0, os.SEEK_END)
        file.seek(start)
        self.tell, self.readline = file.tell, file.readline

    def read(self, count: int) -> bytes:
        return self._file.read(min(count, self._size - self._file.tell()))


def _check_opcodes(file: _Bounded) -> None:
    """Raises an exception for pickles that would exhaust the memory or the stack of the C code.

    Python's unpickler allocates its memo up to any index that a pickle names, and hashing a tuple
    nested a million times ends the process.

    Raises:
      UserError: The memo has gaps, or tuples are nested too deeply.
      pickle.UnpicklingError: The pickle is damaged.
    """
    depths: list[int | None] = []  # of tuples on the stack; None for a mark
    memo: dict[Any, int | None] = {}
    try:
        for opcode, argument, position in pickletools.genops(file):
            if opcode.name in _PUT:
                index = len(memo) if argument is None else argument
                if index > max(position, 256):
                    raise UserError(f"refused: the pickle uses index {index} of its memo.")
                memo[index] = depths[-1] if depths else 0
            elif opcode.name == "DUP":
                depths += depths[-1:]
            elif opcode.name == "MARK":
                depths.append(None)
            else:
                depth = 1 + max((x or 0 for x in _pop(depths, opcode)), default=0)
                if opcode.name in _GET:
                    depth = memo.get(argument) or 0
                elif not opcode.name.startswith("TUPLE"):
                    depth = 0
                if depth > _MAX_DEPTH:
                    raise UserError("refused: the pickle nests tuples too deeply.")
                depths += [depth] * len(opcode.stack_after)
    except UserError:
        raise
    except ValueError as error:
        raise pickle.UnpicklingError(str(error)) from error


def _pop(depths: list[int | None], opcode: pickletools.OpcodeInfo) -> list[int | None]:
    """Removes what an opcode takes from the stack, and returns it."""
    count = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        last = next((i for i in reversed(range(len(depths))) if depths[i] is None), 0)
        count = opcode.stack_before.index(pickletools.markobject) + len(depths) - last
    popped = depths[len(depths) - count :] if count else []
    del depths[len(depths) - len(popped) :]
    return popped
