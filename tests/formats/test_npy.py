"""Arrays of .npy and .npz files are read exactly or refused, with bounded memory."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.formats import npy
from tests.messages import raises

ARRAY = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def header_of(shape, dtype="<f4"):
    out = io.BytesIO()
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, description)
    return out.getvalue()


def bomb(path, member, *, head, mebibytes=64):
    """Writes a zip file with a member of zeros after `head`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open(member, "w") as out:
        out.write(head)
        for _ in range(mebibytes):
            out.write(bytes(2**20))


@pytest.fixture
def small_bounds(monkeypatch):
    """Archives may unpack to at most 1 MiB."""
    monkeypatch.setenv("MMJAX_MAX_UNPACKED_BYTES", str(2**20))


@pytest.mark.parametrize("array", [ARRAY, np.asfortranarray(ARRAY), ARRAY[:0], ARRAY[0, 0]])
def test_arrays_are_read(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", a=array, names=np.array(["x", "yy"]))
    np.testing.assert_array_equal(npy.open_array(tmp_path / "a.npy"), array)
    with npy.Archive(tmp_path / "a.npz") as archive:
        assert archive.names == ["a", "names"]
        assert archive.header("a") == (array.shape, array.dtype)
        np.testing.assert_array_equal(archive.read("a"), array)
        assert archive.read("names").tolist() == ["x", "yy"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\0",
        lambda data: data[:-1],
        lambda data: data[:128] + b"\0\0\0\0" + data[128:],
        lambda data: data[:128] + data[132:],
        lambda data: data.replace(b"(6, 4)", b"(7, 4)"),
        lambda data: data.replace(b"(6, 4)", b"(6,-4)"),
        lambda data: data.replace(b"(6, 4)", b"((((("),  # TokenError in NumPy
        lambda data: data.replace(b"'<f4'", b"'<f8'"),
        lambda data: data.replace(b"(6, 4)", b"(6,\n 4"),
        lambda data: data[:20],
        lambda data: data[:6] + b"\x03" + data[7:],
        lambda data: b"",
    ],
)
def test_files_that_do_not_fit_their_header_are_refused(tmp_path, change):
    out = io.BytesIO()
    np.save(out, ARRAY)
    data = change(out.getvalue())
    assert data != out.getvalue()
    (tmp_path / "a.npy").write_bytes(data)
    with raises(UserError, tmp_path / "a.npy"):
        npy.open_array(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("words.npy", data)
    with npy.Archive(tmp_path / "a.npz") as archive:
        with raises(UserError, tmp_path / "a.npz", "words"):
            archive.read("words")


def test_pickles_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with raises(UserError, tmp_path / "a.npy", "object", "allow_pickle=False"):
        npy.open_array(tmp_path / "a.npy")


def test_a_wrong_crc_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=ARRAY)
    data = bytearray(path.read_bytes())
    data[data.index(ARRAY.tobytes()) + 17] ^= 4
    path.write_bytes(data)
    with npy.Archive(path) as archive, raises(UserError, path, "a", "CRC"):
        archive.read("a")


def test_a_damaged_name_does_not_hide_an_array(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, a=ARRAY, class_names=ARRAY)
    data = path.read_bytes()
    at = data.rindex(b"class_names")  # in the directory of the archive
    path.write_bytes(data[:at] + b"klass_names" + data[at + 11 :])
    with raises(UserError, path, "klass_names"):
        npy.Archive(path)


def test_missing_files_and_arrays_are_named(tmp_path):
    for read in (npy.open_array, npy.Archive, npy.is_array):
        with raises(UserError, tmp_path / "none", "does not exist"):
            read(tmp_path / "none")
    np.savez(tmp_path / "a.npz", a=ARRAY)
    with npy.Archive(tmp_path / "a.npz") as archive, raises(UserError, "a.npz", "b.npy"):
        archive.read("b")


def test_large_arrays_are_refused_before_memory_is_used(tmp_path, small_bounds):
    path = tmp_path / "bomb.npz"
    bomb(path, "words.npy", head=header_of((64, 2**18)))
    tracemalloc.start()
    with npy.Archive(path) as archive:
        with raises(UserError, path, "words", "MMJAX_MAX_UNPACKED_BYTES=67108"):
            archive.read("words")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_sizes_are_added_up_and_unneeded_arrays_are_not_unpacked(tmp_path, small_bounds):
    path = tmp_path / "many.npz"
    zeros = {f"a{i}": np.zeros(2**19 + 2**10, np.uint8) for i in range(4)}
    np.savez_compressed(path, **zeros)
    with npy.Archive(path) as archive:
        for name in ("a3", "a1", "a3"):
            archive.header(name)
        with raises(UserError, path, "a0", "MMJAX_MAX_UNPACKED_BYTES"):
            assert not archive.read("a1").any()
            archive.read("a0")


def test_a_member_that_declares_less_than_it_contains_is_refused(tmp_path):
    path, head = tmp_path / "a.npz", header_of((4,))
    bomb(path, "a.npy", head=head, mebibytes=1)
    data, size = path.read_bytes(), len(head) + 2**20
    with zipfile.ZipFile(path) as file:
        assert file.getinfo("a.npy").file_size == size
    path.write_bytes(
        data.replace(size.to_bytes(4, "little"), (len(head) + 16).to_bytes(4, "little"))
    )
    with npy.Archive(path) as archive, raises(UserError, path, "CRC"):
        archive.read("a")


def test_compression_of_ordinary_data_is_not_limited(tmp_path, small_bounds):
    images = np.zeros((20, 256, 256), np.uint8)
    images[:, ::8, ::4] = np.random.default_rng(0).integers(0, 256, (20, 32, 64))
    np.savez_compressed(tmp_path / "a.npz", images=images)
    with npy.Archive(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive.read("images"), images)
