"""Pickles of files that nobody vouches for: only what is on a list is made, nothing is run."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np

from mmjax.errors import UserError


class Function:
    """A function that a pickle may call and cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise UserError("refused: the pickle sets the state of a function.")


@Function
def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What Python 3 writes for bytes into pickles that Python 2 can read."""
    if encoding != "latin1":
        raise UserError(f"refused: it encodes text as {encoding!r}.")
    return text.encode(encoding)


@Function
def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """A NumPy scalar; one of objects would hold a pickle of its own."""
    if dtype.hasobject:
        raise UserError("refused: the pickle has a NumPy scalar that is an object.")
    return np.frombuffer(data, dtype, count=1)[0]


_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
_CORES = ("core", "_core")
# Everything that a pickled array of numbers names, under the modules of NumPy 1 and 2.
ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in _CORES},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _FROM_BUFFER for core in _CORES},
}
SCALARS = {(f"numpy.{core}.multiarray", "scalar"): _scalar for core in _CORES}


class Unpickler(pickle.Unpickler):
    """Reads a pickle that names nothing but what is allowed.

    Args:
      file: opened for bytes.
      allowed: {(module, name): what stands for it}.
      advice: ends the message about a name that is not allowed: what it is no part of, and the way
        out.
      encoding: of text that Python 2 wrote.

    Raises (in `load`):
      UserError: another name; nothing of it has been imported or called.
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
        self._allowed, self._advice = allowed, advice

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise UserError(f"refused: the pickle names {module}.{name}, {self._advice}")
        return self._allowed[module, name]
