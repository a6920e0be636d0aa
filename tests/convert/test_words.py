"""Tables of word embeddings, pickled as VATT pickled them, and pickles that want to run code."""

import pickle

import numpy as np
import pytest

from mmjax.convert import words
from mmjax.errors import UserError
from mmjax.tools import cli

TABLE = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def renamed(data, module):
    """A pickle with the array's module under another NumPy's name of it (protocol 2 and below)."""
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        data = data.replace(b"c" + name + b"\n", b"c" + module + b"\n")
    return data


def python2_pickle():
    """The bytes Python 2 writes (protocol 2): data and names are its `str`, opcode U or T."""
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
def test_pickles_of_all_ages(tmp_path, protocol, module):
    data = pickle.dumps({words.KEY: TABLE}, protocol=protocol)
    if protocol < 4:
        data = renamed(data, module)
        assert module in data
    path = tmp_path / "word2vec.pkl"
    path.write_bytes(data)
    np.testing.assert_array_equal(words.load(path), TABLE)


def test_a_pickle_of_python_2(tmp_path):
    path = tmp_path / "word2vec.pkl"
    path.write_bytes(python2_pickle())
    np.testing.assert_array_equal(words.load(path), TABLE)
    path.write_bytes(pickle.dumps({words.KEY: np.asfortranarray(TABLE, dtype=">f8")}))
    np.testing.assert_array_equal(words.load(path), TABLE)


class _Touch:
    """Makes a file when it is unpickled."""

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
@pytest.mark.parametrize("inside", ["value", "array", "alone"])
def test_nothing_is_executed(tmp_path, capsys, how, inside):
    bait = tmp_path / "executed"
    evil = _Touch(bait, how)
    content = {
        "value": {words.KEY: TABLE, "more": evil},
        "array": {words.KEY: np.array([evil], dtype=object)},
        "alone": evil,
    }[inside]
    path = tmp_path / "word2vec.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="refused: the pickle names .*could run code"):
        words.load(path)
    assert cli.main(["convert", str(path), "--out", str(tmp_path / "x.npz")]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["word2vec.pkl"]
    pickle.loads(path.read_bytes())  # the bait works
    assert bait.exists()


@pytest.mark.parametrize(
    "content, said",
    [
        ({"embeddings": TABLE}, "has no 'word_embeddings', only \\['embeddings'\\]"),
        ({words.KEY: TABLE[0]}, "not float32 \\(3,\\)"),
        ({words.KEY: TABLE.astype(np.int32)}, "not int32"),
        ({words.KEY: [[1.0]]}, "floating point"),
        ("text", "floating point"),
    ],
)
def test_other_content(tmp_path, content, said):
    path = tmp_path / "word2vec.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=said):
        words.load(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        words.load(tmp_path / "none.pkl")
    whole = pickle.dumps({words.KEY: TABLE})
    for name, data in {"cut.pkl": whole[:-20], "text.pkl": b"hello", "text.npz": b"hello"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            words.load(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(UserError, match="objects.npy cannot be read"):
        words.load(tmp_path / "objects.npy")


def test_the_command(tmp_path, capsys):
    source, out, vocab = (tmp_path / name for name in ("words.pkl", "words.npz", "vocab.txt"))
    source.write_bytes(pickle.dumps({words.KEY: TABLE}))
    command = ["convert", str(source), "--out", str(out), "--vocab", str(vocab)]
    vocab.write_text("<pad>\n<unk>\n")
    assert cli.main(command) == 2
    assert "has 2 words" in capsys.readouterr().err
    vocab.write_text("".join(f"word{i}\n" for i in range(7)))
    assert cli.main(command) == 0
    assert "7 words, 3 features" in capsys.readouterr().out
    np.testing.assert_array_equal(words.load(out), TABLE)
    assert cli.main(command) == 2  # it is there
    assert cli.main(["convert", str(source)]) == 2
    assert "Give --out PATH, or --inspect" in capsys.readouterr().err
