"""Pickled tables of word embeddings are read, and pickles that would run code are refused."""

import pickle
import tracemalloc

import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.formats import word_vectors
from mmjax.tools import cli
from tests.messages import assert_mentions, raises

TABLE = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def renamed(data, module):
    """Renames the array's module to that of another NumPy version (protocol 3 and below)."""
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        data = data.replace(b"c" + name + b"\n", b"c" + module + b"\n")
    return data


def python2_pickle():
    """Returns the bytes that Python 2 writes (protocol 2); its `str` has the opcodes U and T."""
    raw = TABLE.tobytes()
    state = (
        b"(K\x01K\x07K\x03\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state
    return b"\x80\x02}U\x0fword_embeddings" + array + b"s."


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_pickles_of_all_protocols_and_numpy_versions(tmp_path, protocol, module):
    data = pickle.dumps({word_vectors.KEY: TABLE}, protocol=protocol)
    if protocol < 4:
        data = renamed(data, module)
        assert module in data
    path = tmp_path / "word2vec.pkl"
    path.write_bytes(data)
    np.testing.assert_array_equal(word_vectors.load(path), TABLE)


def test_pickles_of_python_2_and_other_byte_orders(tmp_path):
    path = tmp_path / "word2vec.pkl"
    path.write_bytes(python2_pickle())
    np.testing.assert_array_equal(word_vectors.load(path), TABLE)
    path.write_bytes(pickle.dumps({word_vectors.KEY: np.asfortranarray(TABLE, dtype=">f8")}))
    np.testing.assert_array_equal(word_vectors.load(path), TABLE)


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path, how):
        self.path, self.how = str(path), how

    def __reduce__(self):
        import os
        import pathlib

        if self.how == "os":
            return os.system, (f"touch {self.path}",)
        if self.how == "builtins":
            return eval, (f"open({self.path!r}, 'w')",)
        return pathlib.Path.touch, (pathlib.Path(self.path),)


@pytest.mark.parametrize("how", ["os", "builtins", "pathlib"])
@pytest.mark.parametrize("position", ["value", "array", "root"])
def test_code_in_a_pickle_is_not_executed(tmp_path, capsys, how, position):
    marker = tmp_path / "executed"
    hostile = _Touch(marker, how)
    content = {
        "value": {word_vectors.KEY: TABLE, "more": hostile},
        "array": {word_vectors.KEY: np.array([hostile], dtype=object)},
        "root": hostile,
    }[position]
    name = {"os": ".system", "builtins": "builtins.eval", "pathlib": "pathlib."}[how]
    path = tmp_path / "word2vec.pkl"
    path.write_bytes(pickle.dumps(content))
    with raises(UserError, path, name, f"numpy.savez(…, {word_vectors.KEY}="):
        word_vectors.load(path)
    assert cli.main(["convert", str(path), "--out", str(tmp_path / "x.npz")]) == 2
    assert_mentions(capsys.readouterr().err, path, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["word2vec.pkl"]
    pickle.loads(path.read_bytes())  # without protection, it is executed
    assert marker.exists()


@pytest.mark.parametrize(
    "content, facts",
    [
        ({"embeddings": TABLE}, ("'word_embeddings'", ["embeddings"])),
        ({word_vectors.KEY: TABLE[0]}, ("float32", (3,))),
        ({word_vectors.KEY: TABLE.astype(np.int32)}, ("int32", (7, 3))),
        ({word_vectors.KEY: [[1.0]]}, ("object", "()")),
        ("text", ("object", "()")),
    ],
)
def test_other_content_is_rejected(tmp_path, content, facts):
    path = tmp_path / "word2vec.pkl"
    path.write_bytes(pickle.dumps(content))
    with raises(UserError, path, *facts):
        word_vectors.load(path)


def test_missing_and_damaged_files_are_rejected(tmp_path):
    with raises(UserError, tmp_path / "none.pkl"):
        word_vectors.load(tmp_path / "none.pkl")
    whole = pickle.dumps({word_vectors.KEY: TABLE})
    for name, data, error in (
        ("cut.pkl", whole[:-20], "UnpicklingError"),
        ("text.pkl", b"hello", "Unpick"),
        ("text.npz", b"hello", ".npz"),
    ):
        (tmp_path / name).write_bytes(data)
        with raises(UserError, name, error):
            word_vectors.load(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with raises(UserError, "objects.npy", "object", "allow_pickle=False"):
        word_vectors.load(tmp_path / "objects.npy")


def test_a_length_beyond_the_file_allocates_no_memory(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04\x8e" + (2**33).to_bytes(8, "little") + b"abc.")  # BINBYTES8
    tracemalloc.start()
    with raises(UserError, path, "UnpicklingError"):
        word_vectors.load(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_convert_command_checks_the_vocabulary_and_writes_npz(tmp_path, capsys):
    source, out, vocab = (tmp_path / name for name in ("words.pkl", "words.npz", "vocab.txt"))
    source.write_bytes(pickle.dumps({word_vectors.KEY: TABLE}))
    command = ["convert", str(source), "--out", str(out), "--vocab", str(vocab)]
    vocab.write_text("<pad>\n<unk>\n")
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert_mentions(error, f"--vocab {vocab}", source)
    assert_mentions(error.replace(str(tmp_path), ""), 2, 7)
    vocab.write_text("".join(f"word{i}\n" for i in range(7)))
    assert cli.main(command) == 0
    output = capsys.readouterr().out
    assert_mentions(output, source, f"--config.init_from={out}")
    assert_mentions(output.replace(str(tmp_path), ""), 7, 3)
    np.testing.assert_array_equal(word_vectors.load(out), TABLE)
    assert cli.main(command) == 2  # the file exists
    assert_mentions(capsys.readouterr().err, f"--out {out}")
    assert cli.main(["convert", str(source)]) == 2
    assert_mentions(capsys.readouterr().err, "--out", "--inspect")
