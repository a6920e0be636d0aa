"""Files of PyTorch's arrays, read without PyTorch and without running what they say.

`.safetensors`, and what `torch.save` writes: a zip archive with a pickle, whose tensors are views
of storages that lie in the archive as they are; before PyTorch 1.6, a pickle with the storages
behind it. A pickle may name tensors, plain containers, numbers and text. Objects of configurations,
as PyTorch Lightning saves a training's, are left empty; anything else is refused before it could
run.
"""

from __future__ import annotations

import io
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import ml_dtypes
import numpy as np

from mmjax.errors import UserError
from mmjax.formats import pickles, published_checkpoints, safetensors

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", safetensors.SUFFIX)
_MAX_DEPTH, _MAX_ENTRIES = 50, 100_000  # of containers in containers, and in all
_LEGACY = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")  # begins files of PyTorch before 1.6
_ADVICE = (
    "which is neither a tensor nor a plain container, number or text; loading it could run code. "
    "Where you trust the file, save its weights alone: torch.save(torch.load(FILE, "
    "weights_only=False)[…], NEW), with the entry that holds them, or as .safetensors."
)
_DTYPES: dict[str, np.dtype] = {  # by torch's name
    **{name: np.dtype(name) for name in ("float16", "float32", "float64")},
    **{name: np.dtype(name) for name in ("int8", "int16", "int32", "int64")},
    **{name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64", "bool")},
    **{name: np.dtype(name) for name in ("complex64", "complex128")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
_STORAGES = {  # by the first word of its class
    **{"Half": "float16", "Float": "float32", "Double": "float64", "BFloat16": "bfloat16"},
    **{"Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64"},
    **{"Byte": "uint8", "Bool": "bool", "Untyped": "uint8"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
}


def is_file(source: str | os.PathLike) -> bool:
    """Whether a source is one of these files, by its name, and no prefix of TensorFlow's."""
    path = pathlib.Path(source)
    prefix = path.with_name(f"{path.name}.index").is_file()
    return path.suffix in SUFFIXES and not path.is_dir() and not prefix


def open_file(source: str | os.PathLike) -> Any:
    """What was saved: nested dicts, lists and tuples with arrays for tensors.

    Arrays are read-only views of the file, read when they are used; tensors that shared memory do.
    An argparse.Namespace is a dict, a dtype its name.

    Raises:
      UserError: there is no such file; it is damaged, of a format that is not read, or names what
        is not allowed.
    """
    path = pathlib.Path(source)
    if not path.is_file():
        raise UserError(f"{source}: there is no such file.{published_checkpoints.hint(source)}")
    try:
        return _open(path)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        raise UserError(
            f"{source} cannot be read: {type(error).__name__}: {error}. It may be damaged or cut "
            "short; copy it again."
        ) from error


def entries(source: str | os.PathLike) -> dict[str, Any]:
    """{name: array or other value} of everything in a file; keys of nested ones joined by '.'.

    Raises:
      UserError: see `open_file`; or two entries have the same name.
    """
    found: dict[str, Any] = {}

    def add(name: str, value: Any, depth: int) -> None:
        if depth > _MAX_DEPTH or len(found) > _MAX_ENTRIES:
            raise UserError(f"{source}: its entries are nested without end, at {name[:80]}.")
        if isinstance(value, Mapping) and value:
            items = list(value.items())
        elif isinstance(value, list | tuple) and any(map(_is_container, value)):
            items = list(enumerate(value))
        elif name in found:
            raise UserError(f"{source} has two entries called {name}.")
        else:
            found[name] = value
            return
        for key, item in items:
            add(f"{name}.{key}" if name else str(key), item, depth + 1)

    add("", open_file(source), 0)
    return found


def _is_container(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple | np.ndarray)


def tensors(source: str | os.PathLike) -> dict[str, np.ndarray]:
    """{name: array} of a file's tensors; see `entries`."""
    return {name: x for name, x in entries(source).items() if isinstance(x, np.ndarray)}


def _open(path: pathlib.Path) -> Any:
    with open(path, "rb") as file:
        start = file.read(512)
    if start[:2] == b"PK":
        return _Archive(path).load()
    if _LEGACY in start[:32]:
        return _Legacy(path).load()
    if start[257:262] == b"ustar":
        raise UserError(
            "it is in PyTorch's first format, a tar archive. Write it anew with PyTorch: "
            "torch.save(torch.load(FILE), NEW)"
        )
    if start.startswith(b"version https://git-lfs"):
        raise UserError("it is Git LFS's pointer to a file, not the file: git lfs pull")
    if path.suffix == safetensors.SUFFIX or start[8:9] == b"{":
        return safetensors.read(path)
    raise UserError(
        "it is neither an archive that torch.save wrote nor a .safetensors file. It may be damaged "
        "or cut short; copy it again."
    )


class _Dict(dict):
    """An OrderedDict; attributes that PyTorch gives to it are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Namespace(dict):
    """An argparse.Namespace: its attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state)


class _Defaults(dict):
    """A defaultdict: its items."""

    def __init__(self, factory: Any = None):
        super().__init__()


class _Object:
    """Stands for an object of a configuration: whatever it is given is left out."""

    __slots__ = ()
    kind = ""

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
        return f"an object of {self.kind}"


class _Type:
    """Stands for a class of PyTorch that is only named; it makes nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __setstate__(self, state: Any) -> None:
        raise UserError("refused: the pickle sets the state of a type.")


def _view(storage: np.ndarray, offset: int, size: Sequence[int], stride: Sequence[int], *_):
    """A tensor of a storage; what it may see of memory is checked."""
    size, stride = tuple(size), tuple(stride)
    if not isinstance(storage, np.ndarray) or len(size) != len(stride):
        raise UserError("a tensor is damaged.")
    if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
        raise UserError("a tensor is damaged.")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= len(storage):
        raise UserError("a tensor goes beyond its storage: the file is damaged or cut short.")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False)


def _typed_view(storage, offset, size, stride, requires_grad, hooks, dtype, *_):
    return _view(storage.view(_DTYPES[dtype]), offset, size, stride)


def _name_of_device(kind: str, index: int | None = None) -> str:
    return kind if index is None else f"{kind}:{index}"


def _first(value: Any, *_) -> Any:
    """Of a parameter its tensor; whether it is trained, and hooks, are left out."""
    return value


def _of_type(function: pickles.Function, kind: _Type, arguments: tuple, state: Any) -> Any:
    """A tensor with attributes, which are left out."""
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
    ("torch._tensor", "_rebuild_from_type_v2"): pickles.Function(_of_type),
    ("torch", "Size"): tuple,
    ("torch", "device"): pickles.Function(_name_of_device),
    ("torch", "Tensor"): _Type("Tensor"),
    ("torch.nn.parameter", "Parameter"): _Type("Parameter"),
    ("torch.storage", "UntypedStorage"): _Type("uint8"),
    **{("torch", f"{word}Storage"): _Type(dtype) for word, dtype in _STORAGES.items()},
    **{("torch", dtype): dtype for dtype in _DTYPES},
}

# What configurations that were saved with weights are made of, and the types that these name.
_CONFIGURATIONS = ("omegaconf", "pytorch_lightning", "lightning", "lightning_fabric")
_TYPES = ("dict", "list", "tuple", "str", "bytes", "int", "float", "bool", "object")
_NAMED = {("builtins", name) for name in _TYPES} | {("typing", "Any")}
# In Python 2's words, as pickles of protocol 2 have it.
_NAMED |= {("__builtin__", name) for name in (*_TYPES, "unicode", "long")}

# For a first reading, before it is known where storages lie: no tensor is made.
_WITHOUT_TENSORS = _ALLOWED | {
    (module, name): pickles.Function(lambda *_: None)
    for (module, name), made in _ALLOWED.items()
    if module.startswith("torch") and isinstance(made, pickles.Function)
}


class _Unpickler(pickles.Unpickler):
    """Reads a pickle whose storages `storage(key, dtype, count)` finds."""

    def __init__(
        self,
        file: IO[bytes],
        storage: Callable[[str, np.dtype, int], Any],
        allowed: Mapping[tuple[str, str], Any] = _ALLOWED,
    ):
        super().__init__(file, allowed=allowed, advice=_ADVICE, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        known = module.split(".")[0] in _CONFIGURATIONS or (module, name) in _NAMED
        if known and (module, name) not in self._allowed:
            return type("_Object", (_Object,), {"__slots__": (), "kind": f"{module}.{name}"})
        return super().find_class(module, name)

    def persistent_load(self, pid: tuple) -> Any:
        kind, storage, key, _, count, *view = pid
        if kind != "storage" or any(part is not None for part in view):
            raise UserError(
                f"refused: the pickle refers to a {kind!r} as no PyTorch since 0.4 did."
            )
        return self._storage(str(key), _DTYPES[storage.name], count)


class _Archive:
    """The zip archive that `torch.save` writes."""

    def __init__(self, path: pathlib.Path):
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(f"it is damaged or cut short ({error}); copy it again.") from error
        self._bytes = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        self._storages: dict[str, np.ndarray] = {}
        names = self._zip.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("data.pkl")]
        roots = [root for root in roots if root.count("/") <= 1]
        if not roots:
            raise UserError("it is a zip archive, but none that torch.save wrote.")
        self._root = roots[0]
        if f"{self._root}constants.pkl" in names:
            raise UserError(
                "it is a TorchScript program, not a file of weights. Save those with PyTorch: "
                "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), NEW)"
            )
        order = f"{self._root}byteorder"
        if order in names and self._member(order).tobytes() != b"little":
            raise UserError("it was written on a big-endian machine, which mmjax does not read.")

    def load(self) -> Any:
        data = self._member(f"{self._root}data.pkl").tobytes()
        return _Unpickler(io.BytesIO(data), self.storage).load()

    def storage(self, key: str, dtype: np.dtype, count: int) -> np.ndarray:
        """A storage, flat; the same array whenever it is asked for."""
        if key not in self._storages:
            self._storages[key] = self._member(f"{self._root}data/{key}")
        data = self._storages[key]
        if len(data) != count * dtype.itemsize:
            raise UserError(f"its storage {key} has {len(data)} bytes: the file is damaged.")
        return data.view(dtype)

    def _member(self, name: str) -> np.ndarray:
        """The bytes of a member: of the file itself, if they are not compressed."""
        try:
            info = self._zip.getinfo(name)
        except KeyError:
            raise UserError(f"{name} is missing in it: the file is damaged.") from None
        if info.compress_type != zipfile.ZIP_STORED:
            return np.frombuffer(self._zip.read(info), np.uint8)
        header = self._bytes[info.header_offset : info.header_offset + 30].tobytes()
        before = sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        start = info.header_offset + 30 + before
        if header[:4] != b"PK\x03\x04" or start + info.file_size > len(self._bytes):
            raise UserError(f"{name} is damaged in it; copy the file again.")
        return self._bytes[start : start + info.file_size]


class _Legacy:
    """A file of PyTorch before 1.6: pickles in a row, and the bytes of storages.

    The pickles are a number, the format's version, facts of the machine, what was saved, and the
    keys of its storages, each of which then follows, with its length in front.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._bytes = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        self._dtypes: dict[str, np.dtype] = {}
        self._storages: dict[str, np.ndarray] = {}

    def load(self) -> Any:
        with open(self._path, "rb") as file:
            for _ in range(2):
                self._skip(file)
            machine = self._skip(file)
            if not (isinstance(machine, dict) and machine.get("little_endian", True)):
                raise UserError(
                    "it was written on a big-endian machine, which mmjax does not read."
                )
            start = file.tell()
            self._skip(file)
            keys = self._skip(file)
            self._find(file.tell(), keys)
            file.seek(start)
            return _Unpickler(file, self._storage).load()

    def _skip(self, file: IO[bytes]) -> Any:
        """A pickle without its tensors; the types of its storages are kept."""

        def note(key: str, dtype: np.dtype, count: int) -> None:
            self._dtypes[key] = dtype

        return _Unpickler(file, note, _WITHOUT_TENSORS).load()

    def _find(self, at: int, keys: Sequence[Any]) -> None:
        for key in map(str, keys):
            count = int.from_bytes(self._bytes[at : at + 8].tobytes(), "little")
            end = at + 8 + count * self._dtypes[key].itemsize
            if end > len(self._bytes):
                raise UserError(f"its storage {key} is cut short: the file is damaged.")
            self._storages[key] = self._bytes[at + 8 : end].view(self._dtypes[key])
            at = end

    def _storage(self, key: str, dtype: np.dtype, count: int) -> np.ndarray:
        found = self._storages[key]
        if len(found) != count or found.dtype != dtype:
            raise UserError(f"its storage {key} has {len(found)} items: the file is damaged.")
        return found
