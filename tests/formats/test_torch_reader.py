"""PyTorch files are read without PyTorch, and pickles with anything but plain data are refused."""

import argparse
import collections
import io
import json
import mmap
import pickle
import sys
import tarfile
import types
import typing
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.formats import safetensors, torch_reader
from tests.convert import torch_writer
from tests.convert.torch_writer import Call, Global, Tensor, Writer, save, save_legacy
from tests.messages import assert_mentions, raises

rng = np.random.default_rng(0)
W = rng.normal(size=(3, 4)).astype(np.float32)


def write(tmp_path, value, **options):
    return save(tmp_path / "file.pth", value, **options)


def test_nested_containers_and_values(tmp_path):
    value = {
        "model": collections.OrderedDict(w=W, scale=np.array(2.5, np.float32)),
        "epoch": 7,
        "lr": 0.1,
        "name": "touch",
        "scaler": {},
        "groups": [{"lr": 1e-3, "params": [0, 1]}, {"lr": None, "params": (2,)}],
        "state": {0: {"step": 5, "mean": W + 1}},
        "args": argparse.Namespace(datasets=["ssvtp", "hct"], flag=True),
        "dtype": Global("torch", "bfloat16"),
        "device": Call(Global("torch", "device"), "cuda", 0),
        "size": Call(Global("torch", "Size"), (2, 3)),
    }
    path = write(tmp_path, value)
    read = torch_reader.open_file(path)
    assert list(read) == list(value)
    np.testing.assert_array_equal(read["model"]["w"], W)
    assert read["model"]["scale"].shape == () and read["model"]["scale"] == 2.5
    assert read["args"] == {"datasets": ["ssvtp", "hct"], "flag": True}
    assert (read["dtype"], read["device"], read["size"]) == ("bfloat16", "cuda:0", (2, 3))
    entries = torch_reader.entries(path)
    np.testing.assert_array_equal(entries.pop("state.0.mean"), W + 1)
    assert {k: v for k, v in entries.items() if not isinstance(v, np.ndarray)} == {
        **{"epoch": 7, "lr": 0.1, "name": "touch", "scaler": {}, "state.0.step": 5},
        **{"groups.0.lr": 1e-3, "groups.0.params": [0, 1]},
        **{"groups.1.lr": None, "groups.1.params": (2,)},
        **{"args.datasets": ["ssvtp", "hct"], "args.flag": True},
        **{"dtype": "bfloat16", "device": "cuda:0", "size": (2, 3)},
    }
    assert set(torch_reader.tensors(path)) == {"model.w", "model.scale", "state.0.mean"}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("dtype", torch_writer.STORAGES)
def test_all_dtypes_are_read(tmp_path, dtype, compression):
    dtype = torch_writer.BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    array = (3 * rng.normal(size=(2, 3, 5))).astype(dtype)
    read = torch_reader.tensors(write(tmp_path, {"x": array}, compression=compression))["x"]
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


def test_views_of_one_storage(tmp_path):
    storage = np.arange(20, dtype=np.float32)
    value = {
        "whole": Tensor(storage, (4, 5), (5, 1)),
        "transposed": Tensor(storage, (5, 4), (1, 5)),
        "part": Tensor(storage, (2, 2), (5, 2), offset=6),
        "repeated": Tensor(storage, (3, 2), (0, 1)),
        "empty": Tensor(storage, (0, 3), (3, 1)),
    }
    read = torch_reader.tensors(write(tmp_path, value))
    grid = storage.reshape(4, 5)
    np.testing.assert_array_equal(read["whole"], grid)
    np.testing.assert_array_equal(read["transposed"], grid.T)
    np.testing.assert_array_equal(read["part"], grid[1:3, 1:4:2])
    np.testing.assert_array_equal(read["repeated"], [[0, 1]] * 3)
    assert read["empty"].shape == (0, 3)
    assert np.shares_memory(read["whole"], read["part"])
    with zipfile.ZipFile(tmp_path / "file.pth") as file:
        assert [n for n in file.namelist() if "/data/" in n] == ["archive/data/0"]


def test_arrays_are_views_of_the_file(tmp_path):
    safetensors.write(tmp_path / "file.safetensors", {"w": W})
    for path in (write(tmp_path, {"w": W}), tmp_path / "file.safetensors"):
        base = torch_reader.tensors(path)["w"]
        assert not base.flags.writeable
        while not isinstance(base, mmap.mmap):
            base = base.base  # None for an array with memory of its own, which fails here
            assert base is not None


def test_parameters_and_newer_tensor_encodings_are_read(tmp_path):
    no_hooks = Call(Global("collections", "OrderedDict"))
    bits = rng.integers(0, 255, 8, np.uint8)

    class Untyped(Writer):
        def persistent(self, storage):
            storage_type = Global("torch.storage", "UntypedStorage")
            return (
                self.tuple("storage", storage_type, self.key(storage), "cpu", storage.nbytes) + b"Q"
            )

    class Storage:
        pass

    def code(self, value, plain=Writer.code):
        return self.persistent(bits) if isinstance(value, Storage) else plain(self, value)

    Untyped.code = code
    utils = "torch._utils"
    third = Call(
        Global(utils, "_rebuild_tensor_v3"),
        *(Storage(), 1, (3,), (1,), False, no_hooks, Global("torch", "bfloat16"), None),
    )
    parameter = Call(Global(utils, "_rebuild_parameter"), third, True, no_hooks)
    with_state = Call(Global(utils, "_rebuild_parameter_with_state"), third, True, no_hooks, {})
    typed = Call(
        Global("torch._tensor", "_rebuild_from_type_v2"),
        *(Global(utils, "_rebuild_parameter"), Global("torch.nn.parameter", "Parameter")),
        *((third, True, no_hooks), {"tag": 1}),
    )
    data = b"\x80\x02" + Untyped().code([parameter, with_state, typed]) + b"."
    path = write(tmp_path, {}, **{"data.pkl": data, "data/0": bits.tobytes()})
    for array in torch_reader.open_file(path):
        np.testing.assert_array_equal(array, bits.view(ml_dtypes.bfloat16)[1:])


def test_numpy_arrays_and_scalars_are_read(tmp_path):
    value = {"best": np.float64(0.25), "scores": np.arange(3.0), "count": np.int64(3)}
    for protocol in (2, 4):
        data = pickle.dumps(value, protocol=protocol)
        read = torch_reader.open_file(write(tmp_path, {}, **{"data.pkl": data}))
        assert read["best"] == 0.25 and read["count"] == 3 and read["best"].dtype == np.float64
        np.testing.assert_array_equal(read["scores"], np.arange(3.0))


class _Settings:
    """Mimics a node of OmegaConf: its state refers to types, to other nodes and back to itself."""

    def __init__(self, **content):
        self.content = content
        self.meta = {"kind": dict, "key": str, "any": typing.Any, "hooks": None}
        self.parent = self


class _Attributes(dict):
    pass


@pytest.mark.parametrize("protocol", [2, 4])
def test_configuration_objects_are_read_as_placeholders(tmp_path, monkeypatch, protocol):
    """PyTorch Lightning saves them with the weights; OmegaConf need not be installed."""
    for name, cls in (("omegaconf", _Settings), ("pytorch_lightning", None)):
        module = types.ModuleType(name)
        cls = cls or _Attributes
        monkeypatch.setattr(cls, "__module__", name)
        setattr(module, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, name, module)
    content = {
        "state": collections.defaultdict(dict, {0: {"step": 3}}),
        "hyper_parameters": {
            "model": _Settings(name="simclr", inner=_Settings(dims=[2048, 128])),
            "more": _Attributes(lr=1e-3),
        },
        "epoch": 1,
    }
    data = pickle.dumps(content, protocol)
    for name in ("omegaconf", "pytorch_lightning"):
        monkeypatch.delitem(sys.modules, name)
    entries = torch_reader.entries(write(tmp_path, {}, **{"data.pkl": data}))
    assert repr(entries.pop("hyper_parameters.model")).endswith(" omegaconf._Settings")
    assert repr(entries.pop("hyper_parameters.more")).endswith(" pytorch_lightning._Attributes")
    assert entries == {"state.0.step": 3, "epoch": 1}


# ---- Hostile and damaged files


@pytest.mark.parametrize(
    "hostile, name",
    [
        (Call(Global("os", "system"), "touch {}"), "os.system"),
        (Call(Global("builtins", "eval"), "open('{}', 'w')"), "builtins.eval"),
        (Call(Global("__builtin__", "getattr"), 1, "real"), "__builtin__.getattr"),
        (Call(Global("torch", "load"), "{}"), "torch.load"),
        (Call(Global("torch.nn.modules.linear", "Linear")), "torch.nn.modules.linear.Linear"),
        (Call(Global("torch._utils", "_rebuild_sparse_tensor")), "_rebuild_sparse_tensor"),
        (Call(Global("pathlib", "PosixPath"), "{}"), "pathlib.PosixPath"),
        (Call(Global("collections", "OrderedDict.__init__")), "OrderedDict.__init__"),
    ],
)
def test_names_outside_the_allowed_list_are_refused(tmp_path, hostile, name):
    mark = tmp_path / "run"
    hostile.args = tuple(
        a.replace("{}", str(mark)) if isinstance(a, str) else a for a in hostile.args
    )
    path = write(tmp_path, {"model": {"w": W}, "extra": hostile})
    # The file, what it names, and how to save only the weights.
    with raises(UserError, path, name, "weights_only=False", ".safetensors"):
        torch_reader.open_file(path)
    assert not mark.exists()


def test_pickles_cannot_change_functions_or_types(tmp_path):
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    for target in (rebuild, Global("torch", "FloatStorage")):
        code = target.code + Writer().code((None, {"__call__": 1})) + b"b."
        path = write(tmp_path, {}, **{"data.pkl": b"\x80\x02" + code})
        with raises(UserError, path, "pickle", "state"):
            torch_reader.open_file(path)
    dtype = Call(Global("numpy", "dtype"), "O8", False, True)
    scalar = Call(Global("numpy.core.multiarray", "scalar"), dtype, "x")
    with raises(UserError, "NumPy", "scalar"):
        torch_reader.open_file(write(tmp_path, {"x": scalar}))


@pytest.mark.parametrize(
    "tensor, fact",
    [
        (Tensor(W.ravel(), (3, 5), (5, 1)), "storage"),
        (Tensor(W.ravel(), (3, 4), (4, 1), offset=1), "storage"),
        (Tensor(W.ravel(), (2,), (10**15,)), "storage"),
        (Tensor(W.ravel(), (2,), (-1,), offset=4), "tensor"),
        (Tensor(W.ravel(), (2,), (1,), offset=-4), "tensor"),
        (Tensor(W.ravel(), (3, 4), (4,)), "tensor"),
        (Tensor(W.ravel(), (2.0,), (1,)), "tensor"),
    ],
)
def test_tensors_cannot_read_outside_their_storage(tmp_path, tensor, fact):
    path = write(tmp_path, {"x": tensor})
    with raises(UserError, path, fact):
        torch_reader.open_file(path)


def test_recursive_containers_and_duplicate_names_are_rejected(tmp_path):
    code = b"\x80\x02]q\x00h\x00a."  # a list that holds itself
    path = write(tmp_path, {}, **{"data.pkl": code})
    with raises(UserError, path, "nested", "0.0.0"):
        torch_reader.entries(path)
    # Twice the same list at each of 40 levels: 2^40 entries in a small file.
    data = b"\x80\x02" + b"](K\x01K\x02eq\x00" + b"](h\x00h\x00eq\x00" * 40 + b"."
    path = write(tmp_path, {}, **{"data.pkl": data})
    with raises(UserError, path, "nested", ".0.1."):
        torch_reader.entries(path)
    path = write(tmp_path, {"a": {"b": 1}, "a.b": 2})
    with raises(UserError, path, "a.b"):
        torch_reader.entries(path)


def test_damaged_archives_are_rejected(tmp_path):
    path = tmp_path / "file.pth"
    write(tmp_path, {"w": rng.normal(size=300), "v": W})
    whole = path.read_bytes()
    for end in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with raises(UserError, path, "zip" if end > 1 else ".safetensors"):
            torch_reader.open_file(path)
    for member, data, facts in (
        ("data/0", b"1234", ("storage", "4 bytes")),
        ("data/1", None, ("archive/data/1",)),
        ("data.pkl", whole[:50], ("UnpicklingError",)),
        ("data.pkl", b"\x80\x02}.x", None),
        ("data.pkl", None, ("zip", "torch.save")),
        ("byteorder", b"big", ("big-endian",)),
        ("constants.pkl", b"", ("TorchScript", "torch.jit.load", "torch.save(")),
    ):
        write(tmp_path, {"w": W, "v": W + 1}, **{member: data})
        if facts is None:
            assert torch_reader.open_file(path) == {}
            continue
        with raises(UserError, path, *facts):
            torch_reader.open_file(path)
    # Bytes that change anywhere in the file raise nothing but a `UserError`.
    write(tmp_path, {"w": W})
    whole, errors = bytearray(path.read_bytes()), 0
    for at in rng.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            torch_reader.entries(path)
        except UserError as error:
            assert_mentions(error, path)
            errors += 1
    assert errors > 50


def test_a_flipped_bit_of_a_tensor_is_found_by_the_crc(tmp_path):
    path = tmp_path / "file.pth"
    write(tmp_path, {"w": W, "v": W + 1})
    data = bytearray(path.read_bytes())
    data[data.index((W + 1).tobytes()) + 5] ^= 1
    path.write_bytes(data)
    with raises(UserError, path, "archive/data/1", "CRC"):
        torch_reader.open_file(path)
    write(tmp_path, {"w": W, "v": W + 1})  # the same path, intact
    assert set(torch_reader.tensors(path)) == {"w", "v"}


def test_archives_that_unpack_to_more_than_is_plausible_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_MAX_UNPACKED_BYTES", str(2**20))
    zeros = {"w": W, "large": np.zeros(2**20, np.float32)}
    path = write(tmp_path, zeros, compression=zipfile.ZIP_DEFLATED)
    with raises(UserError, path, "data/1", "MMJAX_MAX_UNPACKED_BYTES"):
        torch_reader.open_file(path)
    path = write(tmp_path, {}, compression=zipfile.ZIP_DEFLATED, **{"data.pkl": bytes(2**22)})
    with raises(UserError, path, "data.pkl", "MMJAX_MAX_UNPACKED_BYTES"):
        torch_reader.open_file(path)
    path = write(tmp_path, {"w": W}, compression=zipfile.ZIP_DEFLATED, unused=bytes(2**22))
    assert set(torch_reader.tensors(path)) == {"w"}  # `unused` is not unpacked
    path = write(tmp_path, {"w": Tensor(W.ravel(), (2**30, 2), (0, 1))})
    with raises(UserError, path, "MMJAX_MAX_UNPACKED_BYTES"):
        torch_reader.open_file(path)


@pytest.mark.parametrize(
    "code, fact",
    [
        (b"]r\xff\xff\xff\x0f.", "memo"),  # would allocate 4 GiB
        (b"})" + b"\x85" * 1_000_000 + b"K\x01s.", "tuples"),  # would overflow the stack
        (b"})q\x00" + b"\x85q\x00h\x00" * 5000 + b"K\x01s.", "tuples"),
        (b"(cnumpy\nndarray\n(J\xff\xff\xff\x7fttR.", "damaged"),
        (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(J\xff\xff\xff\x7ftU\x01b\x87R.",
            "array",
        ),
    ],
)
def test_pickles_that_would_exhaust_memory_or_stack_are_refused(tmp_path, code, fact):
    path = write(tmp_path, {}, **{"data.pkl": b"\x80\x02" + code})
    with raises(UserError, path, fact):
        torch_reader.open_file(path)


def test_tuples_of_ordinary_depth_are_read(tmp_path):
    value = {"sizes": [(i, (i, i)) for i in range(3000)], "w": W}
    assert torch_reader.open_file(write(tmp_path, value))["sizes"] == value["sizes"]


@pytest.mark.parametrize("name", ["checkpoint.pth.tar", "model_best", "weights.pkl", "w.dat"])
def test_files_are_recognized_by_content(tmp_path, name):
    path = tmp_path / name
    for write_file in (save, save_legacy):
        write_file(path, {"w": W})
        assert torch_reader.is_file(path) and set(torch_reader.tensors(path)) == {"w"}
    path.unlink()
    safetensors.write(path, {"w": W})
    assert torch_reader.is_file(path) and set(torch_reader.tensors(path)) == {"w"}
    np.savez(path, w=W)
    (tmp_path / f"{name}.npz").rename(path)
    assert not torch_reader.is_file(path)


@pytest.mark.parametrize(
    "start, fact",
    [
        (b"<!DOCTYPE html>", "web page"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x93NUMPY\x01", ".npy"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
    ],
)
def test_other_files_with_the_suffix_are_named(tmp_path, start, fact):
    path = tmp_path / "model.pth"
    path.write_bytes(start + bytes(100))
    with raises(UserError, path, fact):
        torch_reader.open_file(path)


def test_files_of_other_formats_are_rejected(tmp_path):
    path = tmp_path / "file.pt"
    with raises(UserError, path):
        torch_reader.open_file(path)
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    with raises(UserError, path, "tar", "torch.save(torch.load(FILE), NEW)"):
        torch_reader.open_file(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n")
    with raises(UserError, path, "git lfs pull"):
        torch_reader.open_file(path)
    path.write_text("<html>404</html>")
    with raises(UserError, path, "torch.save", ".safetensors"):
        torch_reader.open_file(path)
    np.savez(tmp_path / "a.npz", w=W)
    (tmp_path / "a.npz").rename(path)
    with raises(UserError, path, "zip", "torch.save"):
        torch_reader.open_file(path)
    assert torch_reader.is_file("a/b.pth") and not torch_reader.is_file("a/b.npz")
    (tmp_path / "run.ckpt").mkdir()
    assert not torch_reader.is_file(tmp_path / "run.ckpt")
    (tmp_path / "model.ckpt.index").touch()  # a TensorFlow checkpoint
    assert not torch_reader.is_file(tmp_path / "model.ckpt")


# ---- The format before PyTorch 1.6


def test_legacy_files_are_read(tmp_path):
    shared = rng.normal(size=12).astype(np.float32)
    value = dict(
        a=W,
        b=np.arange(5),
        c=Tensor(shared, (2, 3), (1, 4), 2),
        d=Tensor(shared, (12,), (1,)),
        more=dict(step=np.array(3), name="x", numbers=[1, 2.5], args=argparse.Namespace(lr=0.1)),
    )
    entries = torch_reader.entries(save_legacy(tmp_path / "a.pth", value))
    np.testing.assert_array_equal(entries["a"], W)
    np.testing.assert_array_equal(entries["b"], np.arange(5))
    np.testing.assert_array_equal(entries["c"], shared[2:].reshape(-1)[[[0, 4, 8], [1, 5, 9]]])
    np.testing.assert_array_equal(entries["d"], shared)
    assert np.shares_memory(entries["c"], entries["d"]) and entries["more.step"] == 3
    assert entries["more.name"] == "x" and entries["more.args.lr"] == 0.1


def test_damaged_and_hostile_legacy_files_are_rejected(tmp_path):
    path = tmp_path / "a.pth"
    save_legacy(path, dict(a=W, b=np.arange(5)))
    whole = path.read_bytes()
    for length in range(30, len(whole), 7):
        path.write_bytes(whole[:length])
        with raises(UserError, path):
            torch_reader.open_file(path)
    for value, fact in (
        (Call(Global("os", "system"), "true"), "os.system"),
        ([Tensor(W.ravel(), (1000,), (1,))], "storage"),
        ([W, Call(Global("builtins", "eval"), "1")], "builtins.eval"),
    ):
        with raises(UserError, path, fact):
            torch_reader.open_file(save_legacy(path, value))
    path.write_bytes(whole + b"\0")
    with raises(UserError, path, len(whole) + 1):
        torch_reader.open_file(path)
    with raises(UserError, path, "big-endian"):
        torch_reader.open_file(save_legacy(path, [W], little_endian=False))
    with raises(UserError, path, "'storage'", "PyTorch", "0.4"):
        torch_reader.open_file(save_legacy(path, [W], view=("1", 0, 2)))


# ---- Safetensors


def test_safetensors_round_trip(tmp_path):
    arrays = {
        "b": W.T,
        "a": np.array(3, np.float32),
        "c": rng.normal(size=5).astype(ml_dtypes.bfloat16),
        "empty": np.zeros((0, 3), np.int8),
        "flags": np.array([True, False, True]),
        **{str(t): np.arange(3).astype(t) for t in ("f2", "f8", "i8", "u2", "i4", "u1")},
    }
    path = tmp_path / "x.safetensors"
    safetensors.write(path, arrays)
    read = torch_reader.tensors(path)
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    with raises(UserError, f"--out {path}"):
        safetensors.write(path, arrays)
    with raises(UserError, "weight_0", "complex64", ".safetensors"):
        safetensors.write(tmp_path / "y.safetensors", {"weight_0": np.zeros(1, np.complex64)})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def raw(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def test_safetensors_files_are_read_by_the_format_description(tmp_path):
    """The bytes are those that the format's documentation describes."""
    header = {
        "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "__metadata__": {"format": "pt"},
        "n": {"dtype": "I64", "shape": [], "data_offsets": [16, 24]},
    }
    values = np.float32([1, 2, 3, 4]).tobytes() + np.int64(9).tobytes()
    path = raw(tmp_path / "x.safetensors", header, values)
    read = torch_reader.open_file(path)
    np.testing.assert_array_equal(read["w"], [[1, 2], [3, 4]])
    assert read["n"] == 9 and set(read) == {"w", "n"}
    path.rename(tmp_path / "x.bin")  # recognized by its content
    assert set(torch_reader.open_file(tmp_path / "x.bin")) == {"w", "n"}


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header, facts",
    [
        ({"w_0": ENTRY | {"data_offsets": [0, 12]}}, ("w_0",)),
        ({"w_0": ENTRY | {"data_offsets": [4, 12]}}, ("w_0",)),
        ({"w_0": ENTRY | {"data_offsets": [-8, 0]}}, ("header", "w_0")),
        ({"w_0": ENTRY | {"shape": [-2]}}, ("header", "w_0")),
        ({"w_0": ENTRY | {"shape": 2}}, ("header", "w_0")),
        ({"w_0": ENTRY | {"dtype": "F4"}}, ("w_0", "F4")),
        ({"w_0": {}}, ("header", "w_0")),
        ({"w_0": 1}, ("header", "w_0")),
        ([1], ("header",)),
        (b"{no json", ("header", "column 2")),
        (b'{"a": ' + b"[" * 100_000, ("header", "nested")),
        ({"w_0": ENTRY | {"data_offsets": [0, 4], "shape": [1]}}, ("8 bytes", "4")),
        ({"w_0": ENTRY, "w_1": ENTRY}, ("w_1", "8")),  # two arrays of the same bytes
        ({"w_0": ENTRY | {"data_offsets": [4, 8], "shape": [1]}}, ("w_0", "4")),
    ],
)
def test_damaged_safetensors_are_rejected(tmp_path, header, facts):
    path = raw(tmp_path / "x.safetensors", header, b"12345678")
    with raises(UserError, path, *facts):
        torch_reader.open_file(path)


@pytest.mark.parametrize("at", [0, 4, 8])
def test_safetensors_with_an_inserted_byte_are_rejected(tmp_path, at):
    data = b"12345678"
    path = raw(tmp_path / "x.safetensors", {"w_0": ENTRY}, data[:at] + b"\0" + data[at:])
    with raises(UserError, path, "9 bytes", "8"):
        torch_reader.open_file(path)


def test_truncated_safetensors_are_rejected(tmp_path):
    path = raw(tmp_path / "x.safetensors", {"w_0": ENTRY}, b"12345678")
    whole = path.read_bytes()
    for end, fact in {0: "empty", 4: "header", 20: "header", len(whole) - 1: "w_0"}.items():
        path.write_bytes(whole[:end])
        with raises(UserError, path, fact):
            torch_reader.open_file(path)
    raw(path, {"w_0": ENTRY}, b"12345678", length=2**63)
    with raises(UserError, path, "header"):
        torch_reader.open_file(path)
