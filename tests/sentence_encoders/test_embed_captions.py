"""`mmjax sentences`: caption embeddings of every record, and how training reads them."""

import json
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from mmjax.data.pairs import tfidf
from mmjax.data.pipeline import precomputed_features
from mmjax.data.sources import registry as sources
from mmjax.data.storage import schema
from mmjax.sentence_encoders import text_features
from mmjax.sentence_encoders.bag_of_words import BagOfWords
from mmjax.sentence_encoders.registry import make_encoder
from mmjax.sentence_encoders.sentence_transformers import truncate
from mmjax.tools import cli
from tests.data import toy_clips as toy
from tests.data.importers.importing import assert_line_mentions
from tests.messages import assert_mentions
from tests.sentence_encoders import tiny_bert

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
    arguments = [data, "--out", out, "--encoder", encoder, "--quiet", *options]
    return cli.main(["sentences", *map(str, arguments)])


def embeddings_of(data, out, encoder, *options):
    assert run(data, out, encoder, *options) == 0
    return np.load(out / "train" / "text.npy")


def embedded(*texts):
    arrays = tiny_bert.weights()
    return np.stack([tiny_bert.embed(arrays, tiny_bert.token_ids(text)) for text in texts])


def unit(vector):
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("chunk", [3, 100])
def test_first_caption_of_each_record_is_embedded(data, bert, tmp_path, monkeypatch, capsys, chunk):
    monkeypatch.setattr(text_features, "CHUNK", chunk)
    result = embeddings_of(data, tmp_path, bert, "--batch-size", 8)
    assert result.dtype == np.float32 and result.shape == (COUNT, 24)
    first = [texts[0] if texts else None for texts in TEXTS]
    first[3] = "the dog runs"  # the first caption that is not blank
    for vector, text in zip(result, first, strict=True):
        expected = np.zeros(24) if text is None else embedded(text)[0]
        np.testing.assert_allclose(vector, expected, atol=2e-6)
    output = capsys.readouterr().out
    facts = (tmp_path / "train" / "text.npy", "float32", f"[{COUNT}, 24]", "toy/train", bert)
    assert_line_mentions(output, *facts)
    assert_line_mentions(output, 1, "caption")
    pairs = f"pairs/{tmp_path.name}"
    following = f"mmjax neighbors {tmp_path} --data {data} --out {pairs}"
    assert_line_mentions(output, following, f"--config.data.text.features={tmp_path}")
    made = precomputed_features.read_description(tmp_path)["made"]["train/text"]
    assert made["encoder"] == str(bert) and made["captions"] == "first"
    assert len(made["fingerprint"]) == 12 and made["max_length"] == 40
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["text.npy"]


def test_captions_mean_and_all(data, bert, tmp_path, capsys):
    mean = embeddings_of(data, tmp_path / "mean", bert, "--captions", "mean")
    both = embedded("a red cat sits", "the cat")
    np.testing.assert_allclose(mean[0], unit(both.mean(axis=0)), atol=2e-6)
    np.testing.assert_allclose(mean[2], embedded("blue dogs, running")[0], atol=2e-6)
    assert_mentions(capsys.readouterr().out, f"mmjax neighbors {tmp_path / 'mean'}")
    each = embeddings_of(data, tmp_path / "all", bert, "--captions", "all")
    output = capsys.readouterr().out
    assert_mentions(output, f"--config.data.text.features={tmp_path / 'all'}")
    assert "mmjax neighbors" not in output  # one embedding per record is needed
    assert each.shape == (COUNT, 3, 24) and not each[1].any()
    np.testing.assert_allclose(each[0], both[[0, 1, 0]], atol=2e-6)
    three = embedded("the cat", "a dog", "a red cat sits")
    np.testing.assert_allclose(each[6], three, atol=2e-6)


def test_written_features_are_opened_for_training(data, tmp_path):
    embeddings_of(data, tmp_path, "words", "--width", 32)
    source = sources.open_source(data, split="train")
    (array,) = precomputed_features.open_features(
        str(tmp_path), "text", sources=[source], split="train"
    )
    assert array.shape == (COUNT, 1, 32)
    np.testing.assert_array_equal(array[:, 0], np.load(tmp_path / "train" / "text.npy"))


def test_captions_of_the_built_in_world_are_embedded(tmp_path, monkeypatch):
    from mmjax.data.world import build as world

    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(world, "ensure_world", lambda spec: build(tmp_path, [["a"], ["b"]], "w"))
    features = embeddings_of("world:demo", tmp_path / "f", "words")
    assert features.shape == (2, 1024)
    # The two captions have no word in common, and hashed directions are almost orthogonal.
    np.testing.assert_allclose(features @ features.T, np.eye(2), atol=0.2)


class Interrupted(Exception):
    pass


def test_interrupted_run_is_resumed(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text_features, "CHUNK", 2)
    uninterrupted = embeddings_of(data, tmp_path / "whole", "words")
    embed, seen = BagOfWords.embed, []

    def interrupted(self, texts):
        if len(seen) == 2:
            raise Interrupted
        seen.append(list(texts))
        return embed(self, texts)

    monkeypatch.setattr(BagOfWords, "embed", interrupted)
    with pytest.raises(Interrupted):
        run(data, tmp_path / "f", "words")
    assert not (tmp_path / "f" / "train" / "text.npy").exists()
    assert precomputed_features.read_description(tmp_path / "f") is None
    rest = []
    monkeypatch.setattr(BagOfWords, "embed", lambda s, t: rest.append(list(t)) or embed(s, t))
    capsys.readouterr()
    np.testing.assert_array_equal(embeddings_of(data, tmp_path / "f", "words"), uninterrupted)
    assert rest == [["A red cat sits", "!"], ["the cat"]]  # the first two chunks are kept
    # Record 1 has no caption and record 5 no word: both chunks count, before and after.
    notices = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1 ")]
    assert len(notices) == 2


@pytest.mark.parametrize("change", [{"of": ["other", None]}, {"made": {}}, {"shape": [7, 3]}, None])
def test_partial_file_of_a_different_job_is_not_resumed(data, tmp_path, change):
    complete = embeddings_of(data, tmp_path / "whole", "words")
    made = precomputed_features.read_description(tmp_path / "whole")["made"]["train/text"]
    job = {"of": ["toy/train", None], "shape": [COUNT, 1024], "made": made}
    directory = tmp_path / "f" / "train"
    directory.mkdir(parents=True)
    np.lib.format.open_memmap(directory / "text.npy.partial", "w+", np.float32, (COUNT, 1024))
    state = {"job": job | (change or {}), "done": 6, "no_caption": 0, "no_known_word": 0}
    (directory / "text.npy.partial.json").write_text(json.dumps(state))
    result = embeddings_of(data, tmp_path / "f", "words")
    assert np.array_equal(result, complete) == bool(change)  # the same job keeps the stored zeros


def test_description_depends_on_vectors_and_captions(tmp_path):
    def describe(spec, captions):
        encoder = make_encoder(spec)
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


def test_words_encoder_preserves_tf_idf_cosines(tmp_path):
    rng = np.random.default_rng(0)
    vocabulary = [f"word{n}" for n in range(200)]
    texts = [[" ".join(rng.choice(vocabulary, 8))] for _ in range(80)]
    result = embeddings_of(build(tmp_path, texts), tmp_path / "f", "words", "--width", 4096)
    exact = tfidf.vectorizer().fit_transform([t[0] for t in texts]).toarray()
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, atol=1e-6)
    difference = np.abs(result @ result.T - exact @ exact.T)
    assert difference.max() < 0.1 and difference.mean() < 0.02
    expected, _ = tfidf.nearest_by_tfidf([t[0] for t in texts], k=1)
    nearest = (result @ result.T - 2 * np.eye(80)).argmax(axis=1)
    assert (nearest == expected[:, 0]).mean() > 0.8


def test_captions_without_a_known_word_get_zeros(data, tmp_path, capsys):
    result = embeddings_of(data, tmp_path / "f", "words")
    assert np.flatnonzero(~result.any(axis=1)).tolist() == [1, 5]
    output = capsys.readouterr().out
    assert_line_mentions(output, 1, COUNT, "toy/train", "no caption")
    assert_line_mentions(output, 1, COUNT, "toy/train", "without a known word")
    np.testing.assert_array_equal(result[0], result[4])  # these differ only in capitalization
    for captions, name in (([["!"], []], "none"), ([[], []], "empty")):
        assert run(build(tmp_path, captions, name), tmp_path / "g", "words") == 2
        assert_mentions(capsys.readouterr().err, "toy/train", "--encoder words", "captions")


VECTORS = {"cat": [1, 2, 2], "dog": [0, 3, 4], "red": [2, 0, 0], "zebra": [9, 9, 9]}


@pytest.mark.parametrize("header", ["", "4 3\n"])
def test_word_vectors_are_averaged_and_normalized(data, tmp_path, header):
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in VECTORS.items()]
    (tmp_path / "wiki.vec").write_text(header + "\n".join(lines))
    result = embeddings_of(data, tmp_path / "f", f"vectors:{tmp_path / 'wiki.vec'}")
    expected = np.zeros((COUNT, 3))
    expected[[0, 4]] = unit(np.array([1.5, 1, 1]))
    expected[3], expected[6] = np.array([0, 0.6, 0.8]), unit(np.array([1, 2, 2]))
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_embedding_table_with_a_vocabulary(data, tmp_path):
    vocabulary = ["<pad>", "<bos>", "<eos>", "<unk>", *VECTORS]
    table = np.array([[7.0] * 3] * 4 + list(VECTORS.values()), np.float32)
    np.savez(tmp_path / "t.npz", word_embeddings=table)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    encoder, vocab = f"vectors:{tmp_path / 't.npz'}", ("--vocab", tmp_path / "vocab.txt")
    result = embeddings_of(data, tmp_path / "f", encoder, *vocab)
    np.testing.assert_allclose(result[6], unit(np.array([1, 2, 2])), atol=1e-6)
    assert not result[2].any()


class FakeTransformer:
    """Imitates `SentenceTransformer`: words are tokens, and the embedding is the text's length."""

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
    module.SentenceTransformer, module.__version__ = FakeTransformer, "5.0"
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def test_sentence_transformers_encoder_and_its_errors(package, data, tmp_path, capsys):
    result = embeddings_of(data, tmp_path, "st:some-model", "--batch-size", 5)
    np.testing.assert_array_equal(result[2], [len("blue dogs, running"), 1])
    made = precomputed_features.read_description(tmp_path)["made"]["train/text"]
    assert made["sentence_transformers"] == "5.0" and made["max_length"] is None
    assert run(data, tmp_path, "st:none") == 2
    assert_mentions(capsys.readouterr().err, "--encoder st:none", "no such model")
    for option, value in (("--max-length", 0), ("--max-length", 1), ("--batch-size", 0)):
        assert run(data, tmp_path, "st:clip-ViT-B-32", option, value) == 2
        assert_line_mentions(capsys.readouterr().err, option, value)


class FakeTokenizer:
    """A tokenizer whose tokens are words; some decode to text with more tokens than before."""

    def __call__(self, text):
        return {"input_ids": ["<", *text.split(), ">"]}

    def decode(self, ids):
        return " ".join(ids).replace("½", "1 2").replace("∞", "∞ ∞")


def test_long_texts_are_truncated_for_clip(package, monkeypatch):
    text = " ".join(["½"] * 400)
    short = truncate(text, FakeTokenizer(), 77)
    assert short == " ".join((["1", "2"] * 40)[:75])
    assert truncate("a ½ cat", FakeTokenizer(), 77) == "a ½ cat"
    doubling = truncate("∞ " * 400, FakeTokenizer(), 77).split()
    assert 1 <= len(doubling) <= 75 and set(doubling) == {"∞"}
    monkeypatch.setattr(FakeTransformer, "tokenizer", FakeTokenizer())
    encoder = make_encoder("st:clip-ViT-B-32", batch_size=5)
    encoder.embed([text, "a cat"])
    assert encoder._model.max_seq_length == 77 and encoder._model.seen[-2:] == [short, "a cat"]


def test_missing_sentence_transformers_package_is_named(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert run(data, tmp_path, "st:all-mpnet-base-v2") == 2
    facts = ("st:all-mpnet-base-v2", 'pip install "mmjax[sentences]"')
    assert_mentions(capsys.readouterr().err, *facts)


@pytest.mark.parametrize("shape", [(COUNT, 4), (COUNT, 2, 4)])
def test_existing_embeddings_are_copied_in_float32(data, tmp_path, monkeypatch, shape):
    monkeypatch.setattr(text_features, "CHUNK", 3)
    embeddings = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / "g.npy", embeddings)
    result = embeddings_of(data, tmp_path / "f", f"npy:{tmp_path / 'g.npy'}")
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, embeddings.astype(np.float32))


def test_existing_embeddings_are_assigned_by_file_name(data, tmp_path, capsys):
    order = [5, 3, 0, 1, 2, 6]  # without 4, and with one that matches no record
    embeddings = np.arange(7 * 2, dtype=np.float16).reshape(7, 2)
    np.save(tmp_path / "g.npy", embeddings)
    (tmp_path / "ids").write_text("".join(f"d/{n}.jpg\n" for n in order) + "elsewhere.jpg\n")
    result = embeddings_of(
        data, tmp_path / "f", f"npy:{tmp_path / 'g.npy'}", "--ids", tmp_path / "ids"
    )
    expected = np.zeros((COUNT, 2))
    expected[order] = embeddings[:6]
    np.testing.assert_array_equal(result, expected)
    notices = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1 ")]
    assert len(notices) == 2  # a record without an embedding, an embedding without a record
    assert_mentions(notices[0], COUNT, "toy/train", tmp_path / "g.npy", "'d/4.jpg'")
    assert_mentions(notices[1], 7, "toy/train", tmp_path / "g.npy", "'elsewhere.jpg'")


def test_commands_of_the_docs_page_run_as_printed(bert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/all-MiniLM-L6-v2").symlink_to(bert)
    Path("models/wiki-news-300d-1M.vec").write_text("cat 1 2 2\ndog 0 3 4\n")
    np.save("mine.npy", np.eye(COUNT))
    Path("mine.txt").write_text("".join(f"d/{n}.jpg\n" for n in range(COUNT)))
    build(tmp_path / "datasets", TEXTS, "redcaps")
    page = Path(__file__).parents[2] / "docs" / "sentences.md"
    blocks = re.findall(r"^```bash\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).splitlines()
    assert len(lines) == 5
    for line in lines:
        assert cli.main([*shlex.split(line)[1:], "--quiet"]) == 0, line
    for name, width in {"redcaps": 24, "words": 1024, "vectors": 3, "mine": COUNT}.items():
        assert np.load(f"features/{name}/train/text.npy").shape == (COUNT, width)
    neighbors = np.load("pairs/redcaps/neighbors.npy")
    assert neighbors[0, 0] == 4 and neighbors[1, 0] == -1  # the same caption; no caption


def save(path, array):
    np.save(path, array)
    return f"npy:{path}"


def test_wrong_encoders_options_and_files_are_named(data, bert, tmp_path, capsys):
    nan = np.ones((COUNT, 2))
    nan[3, 1] = np.nan

    def ids(name, text):
        (tmp_path / name).write_text(text)
        return "--ids", tmp_path / name

    table = tmp_path / "w.npy"
    np.save(table, np.ones((5, 2)))
    (tmp_path / "bad.vec").write_text("{}")
    (tmp_path / "cut.vec").write_text("cat 1 2\ndog 3\n")
    good = save(tmp_path / "g.npy", np.ones((COUNT, 2)))
    (tmp_path / "empty.npy").touch()
    (tmp_path / "latin").write_bytes("é\n".encode("latin1") * COUNT)
    model_files = ("config.json", "model.safetensors", "words", "vectors:", "npy:", "st:")
    for encoder, options, facts in (
        ("nowhere", (), ("--encoder nowhere", *model_files)),
        ("minilm:x", (), ("--encoder minilm:x", *model_files, "package.module:Name")),
        ("mmjax.nowhere:Name", (), ("--encoder", "mmjax.nowhere")),
        ("mmjax.sharding:Name", (), ("--encoder", "mmjax.sharding", "Name")),
        (bert, ("--width", 3), ("--width", f"--encoder {bert}", "--max-length")),
        ("words", ("--batch-size", 3), ("--batch-size", "--encoder words", "--width")),
        ("words", ("--width", 0), ("--width", 0, 1)),
        ("words", ("--ids", "x"), ("--ids", "--encoder npy:FILE")),
        (good, ("--captions", "mean"), ("--captions mean", f"--encoder {good}")),
        ("npy:none.npy", (), ("--encoder npy:none.npy",)),
        (
            save(tmp_path / "a.npy", np.ones((6, 2))),
            (),
            (tmp_path / "a.npy", 6, "toy/train", 7, "--ids"),
        ),
        (
            save(tmp_path / "b.npy", nan),
            (),
            (tmp_path / "b.npy", "vector 3", "record 3", "toy/train", "finite"),
        ),
        (
            save(tmp_path / "c.npy", np.ones((COUNT, 2), int)),
            (),
            (tmp_path / "c.npy", "int64", f"[{COUNT}, 2]", "[N, D]"),
        ),
        (f"npy:{tmp_path / 'empty.npy'}", (), (tmp_path / "empty.npy", ".npy file")),
        (good, ("--ids", tmp_path / "latin"), (tmp_path / "latin", "UTF-8", "0xe9")),
        (good, ids("i", "a\nb\n"), (tmp_path / "i", 2, tmp_path / "g.npy", COUNT)),
        (good, ids("j", "a\n" * COUNT), (tmp_path / "j", "'a'")),
        (
            good,
            ids("k", "".join(f"{n}\n" for n in range(COUNT))),
            (tmp_path / "k", "toy/train", "'0'", "'d/0.jpg'"),
        ),
        (f"vectors:{tmp_path / 'none.vec'}", (), (f"--encoder vectors:{tmp_path / 'none.vec'}",)),
        (
            f"vectors:{tmp_path / 'bad.vec'}",
            (),
            (f"--encoder vectors:{tmp_path / 'bad.vec'}", "fastText", ".vec", "--vocab"),
        ),
        (f"vectors:{tmp_path / 'cut.vec'}", (), (tmp_path / "cut.vec", "line 2", 2)),
        (f"vectors:{table}", (), (f"--encoder vectors:{table}", "--vocab")),
        (bert, ("--max-length", 99), (bert, 3, 40)),
        (bert, ("--split", "test"), (data, "'test'", "train")),
    ):
        assert run(data, tmp_path / "f", encoder, *options) == 2, encoder
        assert_line_mentions(capsys.readouterr().err, *facts)
    assert precomputed_features.read_description(tmp_path / "f") is None


def test_embeddings_that_are_not_finite_are_refused(data, tmp_path, capsys):
    arrays = tiny_bert.weights()
    arrays["embeddings.word_embeddings.weight"][tiny_bert.WORDS.index("dog")] = np.inf
    bert = tiny_bert.write(tmp_path / "bert", arrays=arrays)
    assert run(data, tmp_path / "f", bert, "--captions", "all") == 2
    facts = ("toy/train, record 2", f"--encoder {bert}", "'blue dogs, running'", "finite")
    assert_mentions(capsys.readouterr().err, *facts)


def test_other_splits_and_modalities_are_kept(data, tmp_path, capsys):
    precomputed_features.write_description(
        tmp_path,
        dataset="toy",
        num_examples={"test": 3},
        towers={"text": "0", "image": "1"},
        made={"of": ["runs/a"]},
    )
    embeddings_of(data, tmp_path, "words")
    result = precomputed_features.read_description(tmp_path)
    assert result["num_examples"] == {"test": 3, "train": COUNT}
    assert result["towers"] == {"image": "1"}
    assert result["made"].keys() == {"of", "train/text"}
    precomputed_features.write_description(tmp_path, dataset="other", num_examples={})
    assert run(data, tmp_path, "words") == 2
    assert_line_mentions(capsys.readouterr().err, f"--out {tmp_path}", "other", "toy")
