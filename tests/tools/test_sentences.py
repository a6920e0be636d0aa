"""`mmjax sentences`: which row is of which record, and what training reads of it."""

import json
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from mmjax.data import schema, sources, stored, word_neighbours
from mmjax.tools import cli, sentence_encoders, sentences
from tests import tiny_bert
from tests.data import toy_clips as toy

TEXTS = [
    ["a red cat sits", "the cat"],
    [],
    ["blue dogs, running"],
    ["  ", "the dog runs"],
    ["A red cat sits"],
    ["!"],
    ["the cat", "a dog", "a red cat sits"],
]
COUNT = len(TEXTS)


def build(path, texts, name="toy"):
    example = lambda n: schema.Example(captions=texts[n], filename=f"d/{n}.jpg")  # noqa: E731
    return str(toy.build(path / name, len(texts), payload=lambda n: schema.encode(example(n))))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return build(tmp_path_factory.mktemp("data"), TEXTS)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert.write(tmp_path_factory.mktemp("bert") / "model")


def run(data, out, encoder, *options):
    places = [data, "--out", out, "--encoder", encoder, "--quiet"]
    return cli.main(["sentences", *map(str, [*places, *options])])


def rows(data, out, encoder, *options):
    assert run(data, out, encoder, *options) == 0
    return np.load(out / "train" / "text.npy")


def embedded(*texts):
    arrays = tiny_bert.weights()
    return np.stack([tiny_bert.embed(arrays, tiny_bert.pieces(text)) for text in texts])


def unit(row):
    return row / np.linalg.norm(row)


@pytest.mark.parametrize("chunk", [3, 100])
def test_the_first_caption_of_each_record(data, bert, tmp_path, monkeypatch, capsys, chunk):
    monkeypatch.setattr(sentences, "CHUNK", chunk)
    found = rows(data, tmp_path, bert, "--batch-size", 8)
    assert found.dtype == np.float32 and found.shape == (COUNT, 24)
    first = [texts[0] if texts else None for texts in TEXTS]
    first[3] = "the dog runs"  # the first that says anything
    for row, text in zip(found, first, strict=True):
        expected = np.zeros(24) if text is None else embedded(text)[0]
        np.testing.assert_allclose(row, expected, atol=2e-6)
    said = capsys.readouterr().out
    assert f"float32 [{COUNT}, 24] of toy/train" in said
    assert "1 records have no caption: their rows are zeros." in said
    pairs = f"pairs/{tmp_path.name}"
    assert f"Next: mmjax neighbours {tmp_path} --data {data} --out {pairs}, or train on" in said
    made = stored.read_description(tmp_path)["made"]["train/text"]
    assert made["encoder"] == str(bert) and made["captions"] == "first"
    assert len(made["fingerprint"]) == 12 and made["max_length"] == 40
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["text.npy"]


def test_mean_and_all(data, bert, tmp_path, capsys):
    mean = rows(data, tmp_path / "mean", bert, "--captions", "mean")
    both = embedded("a red cat sits", "the cat")
    np.testing.assert_allclose(mean[0], unit(both.mean(axis=0)), atol=2e-6)
    np.testing.assert_allclose(mean[2], embedded("blue dogs, running")[0], atol=2e-6)
    assert "Next: mmjax neighbours" in capsys.readouterr().out
    each = rows(data, tmp_path / "all", bert, "--captions", "all")
    assert "Next: train on them: --config.data.text.features=" in capsys.readouterr().out
    assert each.shape == (COUNT, 3, 24) and not each[1].any()
    np.testing.assert_allclose(each[0], both[[0, 1, 0]], atol=2e-6)
    three = embedded("the cat", "a dog", "a red cat sits")
    np.testing.assert_allclose(each[6], three, atol=2e-6)


def test_training_opens_what_is_written(data, tmp_path):
    rows(data, tmp_path, "words", "--width", 32)
    source = sources.open_source(data, split="train")
    (array,) = stored.open_features(str(tmp_path), "text", sources=[source], split="train")
    assert array.shape == (COUNT, 1, 32)


def test_the_built_in_world(tmp_path, monkeypatch):
    from mmjax.data import world

    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(world, "ensure_world", lambda spec: build(tmp_path, [["a"], ["b"]], "w"))
    assert rows("world:demo", tmp_path / "f", "words").shape == (2, 1024)


class Interrupted(Exception):
    pass


def test_an_interrupted_run_goes_on(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sentences, "CHUNK", 2)
    whole = rows(data, tmp_path / "whole", "words")
    embed, seen = sentence_encoders.Words.embed, []

    def stopping(self, texts):
        if len(seen) == 2:
            raise Interrupted
        seen.append(list(texts))
        return embed(self, texts)

    monkeypatch.setattr(sentence_encoders.Words, "embed", stopping)
    with pytest.raises(Interrupted):
        run(data, tmp_path / "f", "words")
    assert not (tmp_path / "f" / "train" / "text.npy").exists()
    assert stored.read_description(tmp_path / "f") is None
    rest = []
    monkeypatch.setattr(
        sentence_encoders.Words, "embed", lambda s, t: rest.append(list(t)) or embed(s, t)
    )
    np.testing.assert_array_equal(rows(data, tmp_path / "f", "words"), whole)
    assert rest == [["A red cat sits", "!"], ["the cat"]]  # not the first two chunks again
    assert "1 records have no caption" in capsys.readouterr().out.splitlines()[-3]


@pytest.mark.parametrize("change", [{"of": ["other", None]}, {"made": {}}, {"shape": [7, 3]}, None])
def test_another_job_does_not_go_on_with_it(data, tmp_path, change):
    whole = rows(data, tmp_path / "whole", "words")
    made = stored.read_description(tmp_path / "whole")["made"]["train/text"]
    job = {"of": ["toy/train", None], "shape": [COUNT, 1024], "made": made}
    folder = tmp_path / "f" / "train"
    folder.mkdir(parents=True)
    np.lib.format.open_memmap(folder / "text.npy.partial", "w+", np.float32, (COUNT, 1024))
    state = {"job": job | (change or {}), "done": 6, "without": 0, "blank": 0}
    (folder / "text.npy.partial.json").write_text(json.dumps(state))
    found = rows(data, tmp_path / "f", "words")
    assert np.array_equal(found, whole) == bool(change)  # the same job: its zeros are believed


def test_other_vectors_and_other_words_are_another_job(tmp_path):
    def describe(spec, captions):
        encoder = sentence_encoders.make_encoder(spec)
        encoder.prepare(captions)
        return encoder.describe()

    path = tmp_path / "a.vec"
    path.write_text("cat 1 2\ndog 3 4\n")
    before = [describe(spec, ["a cat"]) for spec in (f"vectors:{path}", "words")]
    assert before == [describe(spec, ["a cat"]) for spec in (f"vectors:{path}", "words")]
    path.write_text("cat 1 3\ndog 3 4\n")
    assert describe(f"vectors:{path}", ["a cat"]) != before[0]
    for other in (["a cat", "cat"], ["a dog"]):
        assert describe("words", other) != before[1]


def test_words_keep_the_cosines_of_tf_idf(tmp_path):
    rng = np.random.default_rng(0)
    vocabulary = [f"word{n}" for n in range(200)]
    texts = [[" ".join(rng.choice(vocabulary, 8))] for _ in range(80)]
    found = rows(build(tmp_path, texts), tmp_path / "f", "words", "--width", 4096)
    exact = word_neighbours.vectorizer().fit_transform([t[0] for t in texts]).toarray()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    difference = np.abs(found @ found.T - exact @ exact.T)
    assert difference.max() < 0.1 and difference.mean() < 0.02
    numbers, _ = word_neighbours.nearest_by_words([t[0] for t in texts], k=1)
    nearest = (found @ found.T - 2 * np.eye(80)).argmax(axis=1)
    assert (nearest == numbers[:, 0]).mean() > 0.8


def test_words_without_a_word(data, tmp_path, capsys):
    found = rows(data, tmp_path / "f", "words")
    assert np.flatnonzero(~found.any(axis=1)).tolist() == [1, 5]
    said = capsys.readouterr().out
    assert "1 records have captions without a known word" in said
    np.testing.assert_array_equal(found[0], found[4])  # spelled alike but for capitals
    assert run(build(tmp_path, [["!"], []], "none"), tmp_path / "g", "words") == 2
    assert run(build(tmp_path, [[], []], "empty"), tmp_path / "h", "words") == 2
    assert "there is no word in these captions" in capsys.readouterr().err


VECTORS = {"cat": [1, 2, 2], "dog": [0, 3, 4], "red": [2, 0, 0], "zebra": [9, 9, 9]}


@pytest.mark.parametrize("header", ["", "4 3\n"])
def test_word_vectors(data, tmp_path, header):
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in VECTORS.items()]
    (tmp_path / "wiki.vec").write_text(header + "\n".join(lines))
    found = rows(data, tmp_path / "f", f"vectors:{tmp_path / 'wiki.vec'}")
    expected = np.zeros((COUNT, 3))
    expected[[0, 4]] = unit(np.array([1.5, 1, 1]))
    expected[3], expected[6] = np.array([0, 0.6, 0.8]), unit(np.array([1, 2, 2]))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_table_of_words(data, tmp_path):
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *VECTORS]
    table = np.array([[7.0] * 3] * 4 + list(VECTORS.values()), np.float32)
    np.savez(tmp_path / "t.npz", word_embeddings=table)
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    encoder, vocab = f"vectors:{tmp_path / 't.npz'}", ("--vocab", tmp_path / "vocab.txt")
    found = rows(data, tmp_path / "f", encoder, *vocab)
    np.testing.assert_allclose(found[6], unit(np.array([1, 2, 2])), atol=1e-6)
    assert not found[2].any()


class Clip:
    """What is used of sentence_transformers: pieces are words, the model counts letters."""

    max_seq_length = None

    def __init__(self, name):
        if name == "none":
            raise OSError("no such model")
        self.seen = []

    def tokenizer(self, text):
        return {"input_ids": [0, *(len(word) for word in text.split()), 0]}

    def encode(self, texts, *, batch_size, show_progress_bar, convert_to_numpy):
        assert batch_size == 5 and not show_progress_bar and convert_to_numpy
        self.seen += texts
        return np.array([[len(text), 1.0] for text in texts])


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer, module.__version__ = Clip, "5.0"
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def test_sentence_transformers(package, data, tmp_path, capsys):
    found = rows(data, tmp_path, "st:some-model", "--batch-size", 5)
    np.testing.assert_array_equal(found[2], [len("blue dogs, running"), 1])
    made = stored.read_description(tmp_path)["made"]["train/text"]
    assert made["sentence_transformers"] == "5.0" and made["max_length"] is None
    assert run(data, tmp_path, "st:none") == 2
    assert "cannot load it: no such model" in capsys.readouterr().err
    for option, number in (("--max-length", 0), ("--max-length", 1), ("--batch-size", 0)):
        assert run(data, tmp_path, "st:clip-ViT-B-32", option, number) == 2
        assert f"{option} {number}" in capsys.readouterr().err


class Pieces:
    """A tokenizer whose pieces are words, of which some are spelled with two when they are read."""

    def __call__(self, text):
        return {"input_ids": ["<", *text.split(), ">"]}

    def decode(self, ids):
        return " ".join(ids).replace("½", "1 2").replace("∞", "∞ ∞")


def test_long_texts_are_cut_for_clip(package, monkeypatch):
    text = " ".join(["½"] * 400)
    short = sentence_encoders.shortened(text, Pieces(), 77)
    assert short == " ".join((["1", "2"] * 40)[:75])
    assert sentence_encoders.shortened("a ½ cat", Pieces(), 77) == "a ½ cat"
    assert len(sentence_encoders.shortened("∞ " * 400, Pieces(), 77).split()) <= 75
    monkeypatch.setattr(Clip, "tokenizer", Pieces())
    encoder = sentence_encoders.make_encoder("st:clip-ViT-B-32", batch_size=5)
    encoder.embed([text, "a cat"])
    assert encoder._model.max_seq_length == 77 and encoder._model.seen[-2:] == [short, "a cat"]


def test_without_the_package(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert run(data, tmp_path, "st:all-mpnet-base-v2") == 2
    assert 'pip install "mmjax[sentences]"' in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(COUNT, 4), (COUNT, 2, 4)])
def test_rows_that_are_there(data, tmp_path, monkeypatch, shape):
    monkeypatch.setattr(sentences, "CHUNK", 3)
    given = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "g.npy", given)
    found = rows(data, tmp_path / "f", f"npy:{tmp_path / 'g.npy'}")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, given.astype(np.float32))


def test_rows_by_file_name(data, tmp_path, capsys):
    order = [5, 3, 0, 1, 2, 6]  # without 4, and one of no record
    given = np.arange(7 * 2, dtype=np.float16).reshape(7, 2)
    np.save(tmp_path / "g.npy", given)
    (tmp_path / "ids").write_text("".join(f"d/{n}.jpg\n" for n in order) + "elsewhere.jpg\n")
    found = rows(data, tmp_path / "f", f"npy:{tmp_path / 'g.npy'}", "--ids", tmp_path / "ids")
    expected = np.zeros((COUNT, 2))
    expected[order] = given[:6]
    np.testing.assert_array_equal(found, expected)
    said = capsys.readouterr().out
    assert "1 records have no row, first 'd/4.jpg': they are zeros." in said
    assert "1 rows are of no record of the split." in said


def test_the_commands_of_the_page(bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/all-MiniLM-L6-v2").symlink_to(bert)
    Path("models/wiki-news-300d-1M.vec").write_text("cat 1 2 2\ndog 0 3 4\n")
    np.save("mine.npy", np.eye(COUNT))
    Path("mine.txt").write_text("".join(f"d/{n}.jpg\n" for n in range(COUNT)))
    build(tmp_path / "data", TEXTS, "redcaps")
    page = Path(__file__).parents[2] / "docs" / "sentences.md"
    blocks = re.findall(r"^```\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).splitlines()
    assert len(lines) == 5
    for line in lines:
        assert cli.main([*shlex.split(line)[1:], "--quiet"]) == 0, line
    for name, width in {"redcaps": 24, "words": 1024, "vectors": 3, "mine": COUNT}.items():
        assert np.load(f"features/{name}/train/text.npy").shape == (COUNT, width)
    neighbours = np.load("pairs/redcaps/neighbours.npy")
    assert neighbours[0, 0] == 4 and neighbours[1, 0] == -1  # the same words; no caption


def save(path, array):
    np.save(path, array)
    return f"npy:{path}"


def test_mistakes(data, bert, tmp_path, capsys):
    nan = np.ones((COUNT, 2))
    nan[3, 1] = np.nan

    def ids(name, text):
        (tmp_path / name).write_text(text)
        return "--ids", tmp_path / name

    words = tmp_path / "w.npy"
    np.save(words, np.ones((5, 2)))
    (tmp_path / "bad.vec").write_text("{}")
    (tmp_path / "cut.vec").write_text("cat 1 2\ndog 3\n")
    good = save(tmp_path / "g.npy", np.ones((COUNT, 2)))
    (tmp_path / "empty.npy").touch()
    (tmp_path / "latin").write_bytes("é\n".encode("latin1") * COUNT)
    for encoder, options, message in (
        ("nowhere", (), "is no folder with config.json and model.safetensors"),
        ("minilm:x", (), "is no folder with config.json"),
        (bert, ("--width", 3), "--width is not for --encoder"),
        ("words", ("--batch-size", 3), "--batch-size is not for --encoder words, which takes --w"),
        ("words", ("--width", 0), "--width 0 must be at least 1"),
        ("words", ("--ids", "x"), "--ids says what the rows of"),
        (good, ("--captions", "mean"), "--captions is not for rows that are there"),
        ("npy:none.npy", (), "there is no such file"),
        (save(tmp_path / "a.npy", np.ones((6, 2))), (), "has 6 rows, but toy/train 7 records"),
        (save(tmp_path / "b.npy", nan), (), "row 3, of record 3, has numbers that are not finite"),
        (save(tmp_path / "c.npy", np.ones((COUNT, 2), int)), (), "expected floating point"),
        (f"npy:{tmp_path / 'empty.npy'}", (), "is no .npy file"),
        (good, ("--ids", tmp_path / "latin"), "is not text in UTF-8"),
        (good, ids("i", "a\nb\n"), "has 2 lines, but"),
        (good, ids("j", "a\n" * COUNT), "'a' comes twice"),
        (good, ids("k", "".join(f"{n}\n" for n in range(COUNT))), "the first record 'd/0.jpg'"),
        (f"vectors:{tmp_path / 'none.vec'}", (), "there is no such file"),
        (f"vectors:{tmp_path / 'bad.vec'}", (), "expected fastText's text format"),
        (f"vectors:{tmp_path / 'cut.vec'}", (), "line 2: not a word and 2 numbers"),
        (f"vectors:{words}", (), "is a table without words"),
        (bert, ("--max-length", 99), "takes 3 to 40 pieces"),
        (bert, ("--split", "test"), "has no shards for the split 'test'"),
    ):
        assert run(data, tmp_path / "f", encoder, *options) == 2, encoder
        assert message in capsys.readouterr().err
    assert stored.read_description(tmp_path / "f") is None


def test_embeddings_that_are_no_numbers(data, tmp_path, capsys):
    arrays = tiny_bert.weights()
    arrays["embeddings.word_embeddings.weight"][tiny_bert.WORDS.index("dog")] = np.inf
    bert = tiny_bert.write(tmp_path / "bert", arrays=arrays)
    assert run(data, tmp_path / "f", bert, "--captions", "all") == 2
    assert "dog" in (told := capsys.readouterr().err) and "not finite" in told


def test_other_splits_and_modalities_stay(data, tmp_path, capsys):
    stored.write_description(
        tmp_path,
        dataset="toy",
        num_examples={"test": 3},
        towers={"text": "0", "image": "1"},
        made={"of": ["runs/a"]},
    )
    rows(data, tmp_path, "words")
    found = stored.read_description(tmp_path)
    assert found["num_examples"] == {"test": 3, "train": COUNT}
    assert found["towers"] == {"image": "1"}
    assert found["made"].keys() == {"of", "train/text"}
    stored.write_description(tmp_path, dataset="other", num_examples={})
    assert run(data, tmp_path, "words") == 2
    assert "holds features of other, not of toy" in capsys.readouterr().err
