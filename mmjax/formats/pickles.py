"""Reads untrusted pickles: only listed names can be used, and no other code runs."""

from __future__ import annotations

import pickle
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
# All names in the pickle of a numerical array, under the modules of NumPy 1 and 2.
ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in _CORES},
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
        self._allowed, self._advice = allowed, advice

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise UserError(f"refused: the pickle uses {module}.{name}, {self._advice}")
        return self._allowed[module, name]
