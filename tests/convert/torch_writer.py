"""Writes files of `torch.save` without PyTorch.

A file is a zip archive with a pickle of protocol 2 or, before PyTorch 1.6, a sequence of pickles.
Pickles are assembled from opcodes, so that tests can also write hostile ones.
"""

import argparse
import collections
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int8": "CharStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Global:
    """A global name, which the opcode GLOBAL looks up."""

    def __init__(self, module, name):
        self.code = f"c{module}\n{name}\n".encode()


class Call:
    """A call of a global with arguments (REDUCE), then BUILD if `state` is not None."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state


class Tensor:
    """A view of a storage; its stride and offset count items."""

    def __init__(self, storage, shape, stride, offset=0):
        self.storage, self.shape, self.stride, self.offset = storage, shape, stride, offset


def tensor(array):
    """Returns the tensor of a whole array."""
    array = np.asarray(array)
    steps = [int(step) // array.itemsize for step in np.ascontiguousarray(array).strides]
    return Tensor(array.ravel(), array.shape, steps[-array.ndim :] if array.ndim else ())


class Writer:
    """Encodes values as opcodes and collects their storages.

    Args:
      *more: Items that end the persistent id of a storage.
    """

    def __init__(self, *more):
        self.storages = []
        self.more = more

    def key(self, storage):
        for key, known in enumerate(self.storages):
            if known is storage:
                return str(key)
        self.storages.append(storage)
        return str(len(self.storages) - 1)

    def tuple(self, *items):
        return b"(" + b"".join(map(self.code, items)) + b"t"

    def persistent(self, storage):
        storage_type = Global("torch", STORAGES[storage.dtype.name])
        name = ("storage", storage_type, self.key(storage), "cpu", len(storage), *self.more)
        return self.tuple(*name) + b"Q"

    def code(self, value):
        """Returns the opcodes that push a value on the stack."""
        if isinstance(value, np.ndarray):
            value = tensor(value)
        if isinstance(value, Global):
            return value.code
        if isinstance(value, Call):
            out = self.code(value.function) + self.tuple(*value.args) + b"R"
            return out if value.state is None else out + self.code(value.state) + b"b"
        if isinstance(value, Tensor):
            rebuild = Global("torch._utils", "_rebuild_tensor_v2").code
            args = (value.offset, tuple(value.shape), tuple(value.stride), False)
            hooks = Call(Global("collections", "OrderedDict"))
            inner = b"".join(map(self.code, (*args, hooks)))
            return rebuild + b"(" + self.persistent(value.storage) + inner + b"tR"
        if isinstance(value, argparse.Namespace):
            namespace = Global("argparse", "Namespace").code + b")\x81"  # NEWOBJ
            return namespace + self.code(vars(value)) + b"b"
        if isinstance(value, collections.OrderedDict):
            empty = self.code(Call(Global("collections", "OrderedDict")))
            items = b"".join(self.code(k) + self.code(v) for k, v in value.items())
            return empty + b"(" + items + b"u" + self.code({"_metadata": 1}) + b"b"
        if isinstance(value, dict):
            return b"}(" + b"".join(self.code(k) + self.code(v) for k, v in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(self.code, value)) + b"e"
        if isinstance(value, tuple):
            return self.tuple(*value)
        if isinstance(value, str):
            raw = value.encode()
            return b"X" + struct.pack("<I", len(raw)) + raw
        return pickle.dumps(value, protocol=2)[2:-1]  # numbers, None


def save(path, value, *, compression=zipfile.ZIP_STORED, root="archive", **more):
    """Writes a zip archive; `more` adds or replaces its members, None removes one."""
    writer = Writer()
    members = {"data.pkl": b"\x80\x02" + writer.code(value) + b".", "byteorder": b"little"}
    members |= {f"data/{i}": x.tobytes() for i, x in enumerate(writer.storages)}
    members |= {"version": b"3\n", **{name.replace("__", "/"): x for name, x in more.items()}}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            if data is not None:
                file.writestr(f"{root}/{name}", data)
    return str(path)


def save_legacy(path, value, *, little_endian=True, view=None):
    """Writes a file in the format before PyTorch 1.6."""
    writer = Writer(view)
    code = writer.code(value)
    system = dict(protocol_version=1001, little_endian=little_endian)
    start = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, system)]
    keys = pickle.dumps([str(i) for i in range(len(writer.storages))], 2)
    content = b"".join([*start, b"\x80\x02" + code + b".", keys])
    for storage in writer.storages:
        content += struct.pack("<q", len(storage)) + storage.tobytes()
    path.write_bytes(content)
    return str(path)
