"""Reads the pickles in PyTorch files: tensors, plain containers, numbers and text.

Configuration objects, which PyTorch Lightning saves with the weights, are read as empty
placeholders. Any other name is refused before it could run code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import IO, Any

import ml_dtypes
import numpy as np

from mmjax import limits
from mmjax.errors import UserError
from mmjax.formats import pickles

_ADVICE = (
    "which is not a tensor, plain container, number or text; loading it could run code. If you "
    "trust the file, save only its weights: torch.save(torch.load(FILE, weights_only=False)[…], "
    "NEW) with the entry that contains them, or a .safetensors file."
)
_DTYPES: dict[str, np.dtype] = {  # by PyTorch's name
    **{name: np.dtype(name) for name in ("float16", "float32", "float64")},
    **{name: np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64", "bool")},
    **{name: np.dtype(name) for name in ("complex64", "complex128")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
_STORAGES = {  # by the prefix of the class name
    **{"Half": "float16", "Float": "float32", "Double": "float64", "BFloat16": "bfloat16"},
    **{"Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64"},
    **{"Byte": "uint8", "Bool": "bool", "Untyped": "uint8"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
}


class _Dict(dict):
    """An OrderedDict without the attributes that PyTorch adds."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Namespace(dict):
    """The attributes of an argparse.Namespace."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state)


class _Defaults(dict):
    """The items of a defaultdict."""

    def __init__(self, factory: Any = None):
        super().__init__()


class _Object:
    """A placeholder for a configuration object. It ignores its arguments, state and items."""

    __slots__ = ()
    type_name = ""

    def __new__(cls, *_: Any) -> _Object:
        return super().__new__(cls)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"an object of {self.type_name}"


class _Type:
    """A placeholder for a PyTorch class that is only named, never called."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        raise UserError("refused: the pickle sets the state of a type.")

    def __repr__(self) -> str:
        return f"the type {self.name}"


def _view(storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int], *_):
    """Returns a tensor as a view of its storage, after checking that it stays inside."""
    size, stride = tuple(size), tuple(stride)
    if not isinstance(storage, np.ndarray) or len(size) != len(stride):
        raise UserError("a tensor is damaged. Copy the file again.")
    if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
        raise UserError("a tensor is damaged. Copy the file again.")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(storage):
        raise UserError(
            "a tensor extends beyond its storage. The file is damaged or truncated; copy it again."
        )
    limits.check_unpacked(
        math.prod(size) * storage.itemsize, storage.nbytes, "a tensor with repeated items has"
    )
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _typed_view(storage, offset, size, stride, requires_grad, hooks, dtype, *_):
    return _view(storage.view(_DTYPES[dtype]), offset, size, stride)


def _device_name(device: str, index: int | None = None) -> str:
    return device if index is None else f"{device}:{index}"


def _first(value: Any, *_) -> Any:
    """Returns the tensor of a parameter, without its hooks and whether it is trained."""
    return value


def _typed(function: pickles.Function, type_: _Type, arguments: tuple, state: Any) -> Any:
    """Returns a tensor without its attributes."""
    return function(*arguments)


_TENSORS = "torch._utils"
_ALLOWED: dict[tuple[str, str], Any] = {
    **pickles.ARRAYS,
    **pickles.SCALARS,
    ("collections", "OrderedDict"): _Dict,
    ("collections", "defaultdict"): _Defaults,
    ("argparse", "Namespace"): _Namespace,
    **{(module, "set"): set for module in ("builtins", "__builtin__")},
    (_TENSORS, "_rebuild_tensor"): pickles.Function(_view),
    (_TENSORS, "_rebuild_tensor_v2"): pickles.Function(_view),
    (_TENSORS, "_rebuild_tensor_v3"): pickles.Function(_typed_view),
    (_TENSORS, "_rebuild_parameter"): pickles.Function(_first),
    (_TENSORS, "_rebuild_parameter_with_state"): pickles.Function(_first),
    ("torch._tensor", "_rebuild_from_type_v2"): pickles.Function(_typed),
    ("torch", "Size"): tuple,
    ("torch", "device"): pickles.Function(_device_name),
    ("torch", "Tensor"): _Type("Tensor"),
    ("torch.nn.parameter", "Parameter"): _Type("Parameter"),
    ("torch.storage", "UntypedStorage"): _Type("uint8"),
    **{("torch", f"{word}Storage"): _Type(dtype) for word, dtype in _STORAGES.items()},
    **{("torch", dtype): dtype for dtype in _DTYPES},
}

# Packages whose objects occur in saved configurations, and the types that these refer to.
_CONFIGURATIONS = ("omegaconf", "pytorch_lightning", "lightning", "lightning_fabric")
_TYPES = ("dict", "list", "tuple", "str", "bytes", "int", "float", "bool", "object")
_NAMED = {("builtins", name) for name in _TYPES} | {("typing", "Any")}
# Names of Python 2, which pickles of protocol 2 use.
_NAMED |= {("__builtin__", name) for name in (*_TYPES, "unicode", "long")}

# For the first pass over legacy files, before the positions of the storages are known.
_WITHOUT_TENSORS = _ALLOWED | {
    (module, name): pickles.Function(lambda *_: None)
    for (module, name), value in _ALLOWED.items()
    if module.startswith("torch") and isinstance(value, pickles.Function)
}


class TorchUnpickler(pickles.Unpickler):
    """Reads a pickle of `torch.save`.

    Args:
      file: The pickle, opened for reading bytes.
      storage: Function from the key, dtype and number of items of a storage to a flat array.
      tensors: Whether to create tensors. Without them the result shows only which storages exist.
    """

    def __init__(
        self,
        file: IO[bytes],
        storage: Callable[[str, np.dtype, int], Any],
        *,
        tensors: bool = True,
    ):
        allowed = _ALLOWED if tensors else _WITHOUT_TENSORS
        super().__init__(file, allowed=allowed, advice=_ADVICE, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        known = module.split(".")[0] in _CONFIGURATIONS or (module, name) in _NAMED
        if known and (module, name) not in self._allowed:
            return type("_Object", (_Object,), {"__slots__": (), "type_name": f"{module}.{name}"})
        return super().find_class(module, name)

    def persistent_load(self, pid: tuple) -> Any:
        type_name, storage, key, _, count, *view = pid
        if type_name != "storage" or any(part is not None for part in view):
            raise UserError(
                f"refused: the pickle has a reference of type {type_name!r} in a form that PyTorch "
                "has not written since version 0.4."
            )
        return self._storage(str(key), _DTYPES[storage.name], count)
