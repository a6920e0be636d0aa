"""Files of PyTorch without PyTorch: what is in them, and pickles that want more than tensors."""

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

from mmjax.convert import safetensors, torch_files
from mmjax.errors import UserError
from tests.convert import torch_writer
from tests.convert.torch_writer import Call, Global, Tensor, Writer, save, save_as_before

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
    read = torch_files.open_file(path)
    assert list(read) == list(value)
    np.testing.assert_array_equal(read["model"]["w"], W)
    assert read["model"]["scale"].shape == () and read["model"]["scale"] == 2.5
    assert read["args"] == {"datasets": ["ssvtp", "hct"], "flag": True}
    assert (read["dtype"], read["device"], read["size"]) == ("bfloat16", "cuda:0", (2, 3))
    entries = torch_files.entries(path)
    np.testing.assert_array_equal(entries.pop("state.0.mean"), W + 1)
    assert {k: v for k, v in entries.items() if not isinstance(v, np.ndarray)} == {
        **{"epoch": 7, "lr": 0.1, "name": "touch", "scaler": {}, "state.0.step": 5},
        **{"groups.0.lr": 1e-3, "groups.0.params": [0, 1]},
        **{"groups.1.lr": None, "groups.1.params": (2,)},
        **{"args.datasets": ["ssvtp", "hct"], "args.flag": True},
        **{"dtype": "bfloat16", "device": "cuda:0", "size": (2, 3)},
    }
    assert set(torch_files.tensors(path)) == {"model.w", "model.scale", "state.0.mean"}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("dtype", torch_writer.STORAGES)
def test_every_type(tmp_path, dtype, compression):
    dtype = torch_writer.BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    array = (3 * rng.normal(size=(2, 3, 5))).astype(dtype)
    read = torch_files.tensors(write(tmp_path, {"x": array}, compression=compression))["x"]
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
    read = torch_files.tensors(write(tmp_path, value))
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
        base = torch_files.tensors(path)["w"]
        assert not base.flags.writeable
        while not isinstance(base, mmap.mmap):
            base = base.base  # of an array of its own memory there is none in the end


def test_parameters_and_newer_ways_to_write_tensors(tmp_path):
    no_hooks = Call(Global("collections", "OrderedDict"))
    bits = rng.integers(0, 255, 8, np.uint8)

    class Untyped(Writer):
        def persistent(self, storage):
            kind = Global("torch.storage", "UntypedStorage")
            return self.tuple("storage", kind, self.key(storage), "cpu", storage.nbytes) + b"Q"

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
    for array in torch_files.open_file(path):
        np.testing.assert_array_equal(array, bits.view(ml_dtypes.bfloat16)[1:])


def test_numpy_in_a_pickle(tmp_path):
    value = {"best": np.float64(0.25), "scores": np.arange(3.0), "count": np.int64(3)}
    for protocol in (2, 4):
        data = pickle.dumps(value, protocol=protocol)
        read = torch_files.open_file(write(tmp_path, {}, **{"data.pkl": data}))
        assert read["best"] == 0.25 and read["count"] == 3 and read["best"].dtype == np.float64
        np.testing.assert_array_equal(read["scores"], np.arange(3.0))


class _Settings:
    """As a node of OmegaConf: its state refers to types, to other nodes and back to itself."""

    def __init__(self, **content):
        self.content = content
        self.meta = {"kind": dict, "key": str, "any": typing.Any, "hooks": None}
        self.parent = self


class _Attributes(dict):
    pass


@pytest.mark.parametrize("protocol", [2, 4])
def test_configurations_are_left_empty(tmp_path, monkeypatch, protocol):
    """As PyTorch Lightning saves them beside the weights, where OmegaConf is not installed."""
    for name, kind in (("omegaconf", _Settings), ("pytorch_lightning", None)):
        module = types.ModuleType(name)
        kind = kind or _Attributes
        monkeypatch.setattr(kind, "__module__", name)
        setattr(module, kind.__name__, kind)
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
    found = torch_files.entries(write(tmp_path, {}, **{"data.pkl": data}))
    model = found.pop("hyper_parameters.model")
    assert repr(model) == "an object of omegaconf._Settings"
    assert repr(found.pop("hyper_parameters.more")).endswith("pytorch_lightning._Attributes")
    assert found == {"state.0.step": 3, "epoch": 1}


# ---- what is refused


class _Runs:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def _eval(text):
    return _Runs(eval, text)


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
def test_anything_else_is_refused_by_name(tmp_path, hostile, name):
    mark = tmp_path / "run"
    hostile.args = tuple(
        a.replace("{}", str(mark)) if isinstance(a, str) else a for a in hostile.args
    )
    path = write(tmp_path, {"model": {"w": W}, "extra": hostile})
    with pytest.raises(UserError, match=f"{path}: refused: the pickle names .*{name}.*could run"):
        torch_files.open_file(path)
    assert not mark.exists()


def test_functions_and_types_cannot_be_changed(tmp_path):
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    for target in (rebuild, Global("torch", "FloatStorage")):
        code = target.code + Writer().code((None, {"__call__": 1})) + b"b."
        path = write(tmp_path, {}, **{"data.pkl": b"\x80\x02" + code})
        with pytest.raises(UserError, match="refused: the pickle sets the state"):
            torch_files.open_file(path)
    dtype = Call(Global("numpy", "dtype"), "O8", False, True)
    scalar = Call(Global("numpy.core.multiarray", "scalar"), dtype, "x")
    with pytest.raises(UserError, match="a NumPy scalar that is an object"):
        torch_files.open_file(write(tmp_path, {"x": scalar}))


@pytest.mark.parametrize(
    "tensor, words",
    [
        (Tensor(W.ravel(), (3, 5), (5, 1)), "beyond its storage"),
        (Tensor(W.ravel(), (3, 4), (4, 1), offset=1), "beyond its storage"),
        (Tensor(W.ravel(), (2,), (10**15,)), "beyond its storage"),
        (Tensor(W.ravel(), (2,), (-1,), offset=4), "a tensor is damaged"),
        (Tensor(W.ravel(), (2,), (1,), offset=-4), "a tensor is damaged"),
        (Tensor(W.ravel(), (3, 4), (4,)), "a tensor is damaged"),
        (Tensor(W.ravel(), (2.0,), (1,)), "a tensor is damaged"),
    ],
)
def test_no_tensor_sees_beyond_its_storage(tmp_path, tensor, words):
    with pytest.raises(UserError, match=words):
        torch_files.open_file(write(tmp_path, {"x": tensor}))


def test_containers_without_end(tmp_path):
    code = b"\x80\x02]q\x00h\x00a."  # a list that holds itself
    with pytest.raises(UserError, match="nested without end"):
        torch_files.entries(write(tmp_path, {}, **{"data.pkl": code}))
    # Twice the same list at each of 40 levels: 2^40 entries in a small file.
    data = b"\x80\x02" + b"](K\x01K\x02eq\x00" + b"](h\x00h\x00eq\x00" * 40 + b"."
    with pytest.raises(UserError, match="nested without end"):
        torch_files.entries(write(tmp_path, {}, **{"data.pkl": data}))
    with pytest.raises(UserError, match="two entries called a.b"):
        torch_files.entries(write(tmp_path, {"a": {"b": 1}, "a.b": 2}))


def test_damaged_files(tmp_path):
    path = tmp_path / "file.pth"
    write(tmp_path, {"w": rng.normal(size=300), "v": W})
    whole = path.read_bytes()
    for end in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="damaged or cut short"):
            torch_files.open_file(path)
    for member, data, words in (
        ("data/0", b"1234", "its storage 0 has 4 bytes"),
        ("data/1", None, "archive/data/1 is missing in it"),
        ("data.pkl", whole[:50], "cannot be read"),
        ("data.pkl", b"\x80\x02}.x", None),
        ("data.pkl", None, "none that torch.save wrote"),
        ("byteorder", b"big", "big-endian"),
        ("constants.pkl", b"", r"TorchScript.*torch.jit.load"),
    ):
        write(tmp_path, {"w": W, "v": W + 1}, **{member: data})
        if words is None:
            assert torch_files.open_file(path) == {}
            continue
        with pytest.raises(UserError, match=f"{path}.*{words}"):
            torch_files.open_file(path)
    # Bits that change anywhere in what describes the arrays never give more than an error.
    write(tmp_path, {"w": W})
    whole, errors = bytearray(path.read_bytes()), 0
    for at in rng.integers(0, len(whole), 300):
        changed = bytearray(whole)
        changed[at] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            torch_files.entries(path)
        except UserError:
            errors += 1
    assert errors > 50


def test_other_files(tmp_path):
    path = tmp_path / "file.pt"
    with pytest.raises(UserError, match="there is no such file"):
        torch_files.open_file(path)
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("sys_info"), io.BytesIO())
    with pytest.raises(UserError, match=r"first format.*torch\.save\(torch\.load\(FILE\), NEW\)"):
        torch_files.open_file(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n")
    with pytest.raises(UserError, match="git lfs pull"):
        torch_files.open_file(path)
    path.write_text("<html>404</html>")
    with pytest.raises(UserError, match="neither an archive that torch.save wrote nor"):
        torch_files.open_file(path)
    np.savez(tmp_path / "a.npz", w=W)
    (tmp_path / "a.npz").rename(path)
    with pytest.raises(UserError, match="none that torch.save wrote"):
        torch_files.open_file(path)
    assert torch_files.is_file("a/b.pth") and not torch_files.is_file("a/b.npz")
    (tmp_path / "run.ckpt").mkdir()
    assert not torch_files.is_file(tmp_path / "run.ckpt")
    (tmp_path / "model.ckpt.index").touch()  # of TensorFlow
    assert not torch_files.is_file(tmp_path / "model.ckpt")


# ---- the format before 1.6


def test_files_of_pytorch_before_its_archives(tmp_path):
    shared = rng.normal(size=12).astype(np.float32)
    value = dict(
        a=W,
        b=np.arange(5),
        c=Tensor(shared, (2, 3), (1, 4), 2),
        d=Tensor(shared, (12,), (1,)),
        more=dict(step=np.array(3), name="x", numbers=[1, 2.5], args=argparse.Namespace(lr=0.1)),
    )
    found = torch_files.entries(save_as_before(tmp_path / "a.pth", value))
    np.testing.assert_array_equal(found["a"], W)
    np.testing.assert_array_equal(found["b"], np.arange(5))
    np.testing.assert_array_equal(found["c"], shared[2:].reshape(-1)[[[0, 4, 8], [1, 5, 9]]])
    np.testing.assert_array_equal(found["d"], shared)
    assert np.shares_memory(found["c"], found["d"]) and found["more.step"] == 3
    assert found["more.name"] == "x" and found["more.args.lr"] == 0.1


def test_damaged_and_hostile_files_of_that_format(tmp_path):
    path = tmp_path / "a.pth"
    save_as_before(path, dict(a=W, b=np.arange(5)))
    whole = path.read_bytes()
    for length in range(30, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.pth"):
            torch_files.open_file(path)
    for value, words in (
        (Call(Global("os", "system"), "true"), "names os.system"),
        ([Tensor(W.ravel(), (1000,), (1,))], "beyond its storage"),
        ([W, Call(Global("builtins", "eval"), "1")], "names builtins.eval"),
    ):
        with pytest.raises(UserError, match=words):
            torch_files.open_file(save_as_before(path, value))
    with pytest.raises(UserError, match="big-endian"):
        torch_files.open_file(save_as_before(path, [W], little_endian=False))
    with pytest.raises(UserError, match="since 0.4"):
        torch_files.open_file(save_as_before(path, [W], view=("1", 0, 2)))


# ---- safetensors


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
    read = torch_files.tensors(path)
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)
    with pytest.raises(UserError, match="is there already"):
        safetensors.write(path, arrays)
    with pytest.raises(UserError, match="of type complex64"):
        safetensors.write(tmp_path / "y.safetensors", {"x": np.zeros(1, np.complex64)})
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def raw(path, header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def test_safetensors_by_its_description(tmp_path):
    """Bytes as the description of the format has them."""
    header = {
        "w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "__metadata__": {"format": "pt"},
        "n": {"dtype": "I64", "shape": [], "data_offsets": [16, 24]},
    }
    values = np.float32([1, 2, 3, 4]).tobytes() + np.int64(9).tobytes()
    path = raw(tmp_path / "x.safetensors", header, values)
    read = torch_files.open_file(path)
    np.testing.assert_array_equal(read["w"], [[1, 2], [3, 4]])
    assert read["n"] == 9 and set(read) == {"w", "n"}
    path.rename(tmp_path / "x.bin")  # known by what is in it
    assert set(torch_files.open_file(tmp_path / "x.bin")) == {"w", "n"}


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header, words",
    [
        ({"w": ENTRY | {"data_offsets": [0, 12]}}, "w does not fit"),
        ({"w": ENTRY | {"data_offsets": [4, 12]}}, "w does not fit"),
        ({"w": ENTRY | {"data_offsets": [-8, 0]}}, "damaged at w"),
        ({"w": ENTRY | {"shape": [-2]}}, "damaged at w"),
        ({"w": ENTRY | {"shape": 2}}, "damaged at w"),
        ({"w": ENTRY | {"dtype": "F4"}}, "w is of type F4"),
        ({"w": {}}, "damaged at w"),
        ({"w": 1}, "damaged at w"),
        ([1], "its header is damaged"),
        (b"{no json", "its header is damaged"),
    ],
)
def test_damaged_safetensors(tmp_path, header, words):
    path = raw(tmp_path / "x.safetensors", header, b"12345678")
    with pytest.raises(UserError, match=words):
        torch_files.open_file(path)


def test_cut_safetensors(tmp_path):
    path = raw(tmp_path / "x.safetensors", {"w": ENTRY}, b"12345678")
    whole = path.read_bytes()
    for end in (0, 4, 20, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="damaged or cut short|cannot be read"):
            torch_files.open_file(path)
    raw(path, {"w": ENTRY}, b"12345678", length=2**63)
    with pytest.raises(UserError, match="longer than the file"):
        torch_files.open_file(path)
