"""Sentence encoders of published folders: the numbers of an independent BERT."""

import json

import jax
import numpy as np
import pytest

from mmjax import sentences
from mmjax.convert import sentence
from mmjax.errors import UserError
from tests import tiny_bert

PLAIN = ("Transformer", "Pooling")
TEXTS = [
    "a red cat sits",
    "The dogs, the cats, the RED dogs, running.",
    "",
    "blue",
    " unknown words\tsit  ",
    "a cat runs, a dog sits. " * 9,  # longer than the model takes
]


def expected(texts, *, length=tiny_bert.POSITIONS, **options):
    arrays = tiny_bert.weights()
    return np.stack(
        [tiny_bert.embed(arrays, tiny_bert.pieces(t, length), **options) for t in texts]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert.write(tmp_path_factory.mktemp("bert") / "model")


@pytest.mark.parametrize("batch_size", [3, 16])
def test_embeddings_are_those_of_numpy(folder, batch_size):
    model = sentences.SentenceModel(folder, batch_size=batch_size)
    assert (model.width, model.max_length, model.normalized) == (24, 40, True)
    found = model.embed(TEXTS * 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.tile(expected(TEXTS), (3, 1)), atol=2e-6)
    assert model.embed([]).shape == (0, 24)


def test_texts_of_similar_lengths_are_computed_together(folder, monkeypatch):
    monkeypatch.setattr(sentences, "LENGTHS", (12, 24))
    model = sentences.SentenceModel(folder, batch_size=8)
    texts = [" ".join(["cat"] * n) for n in np.random.default_rng(0).permutation(24)]
    ids = [tiny_bert.pieces(text) for text in texts]
    batches = list(model._batches(ids))
    rows = np.concatenate([rows for rows, _ in batches])
    assert sorted(rows) == list(range(24))
    assert [batch["ids"].shape for _, batch in batches] == [(8, 25), (8, 24), (8, 12)]
    assert [batch["mask"].sum() for _, batch in batches] == [
        sum(range(n, n + 8)) for n in (18, 10, 2)
    ]
    np.testing.assert_allclose(model.embed(texts), expected(texts), atol=2e-6)


@pytest.mark.parametrize(
    ("options", "computed"),
    [
        (dict(pooling={"pooling_mode_cls_token": True}), dict(pooling="cls")),
        (dict(pooling={"pooling_mode": "mean"}, modules=PLAIN), dict(normalize=False)),
        (dict(modules=()), dict(normalize=False)),
        (dict(prefix="bert."), {}),
        (dict(sentence={"max_seq_length": 7}), dict(length=7)),
    ],
)  # fmt: skip
def test_the_folder_says_how(tmp_path, options, computed):
    model = sentences.SentenceModel(tiny_bert.write(tmp_path / "m", **options), batch_size=8)
    assert model.normalized is computed.get("normalize", True)
    np.testing.assert_allclose(model.embed(TEXTS), expected(TEXTS, **computed), atol=5e-6)


def test_version_5_of_the_pooling_file(tmp_path):
    folder = tiny_bert.write(tmp_path / "m", pooling={"pooling_mode": "cls"})
    assert sentence.load(folder)[0].pooling == "cls"


def test_a_length_of_ones_own(folder):
    model = sentences.SentenceModel(folder, batch_size=8, max_length=5)
    np.testing.assert_allclose(model.embed(TEXTS), expected(TEXTS, length=5), atol=2e-6)
    for length in (2, 41):
        with pytest.raises(UserError, match="takes 3 to 40 pieces"):
            sentences.SentenceModel(folder, max_length=length)


def test_bfloat16_is_near(folder):
    found = sentences.SentenceModel(folder, batch_size=8, dtype="bfloat16").embed(TEXTS)
    cosines = (found * expected(TEXTS)).sum(axis=1)
    assert 0.99 < cosines.min() and 1e-5 < np.abs(found - expected(TEXTS)).max()


def test_float32_is_float32_on_accelerators_too(folder):
    for dtype in ("float32", "bfloat16"):
        model = sentences.SentenceModel(folder, dtype=dtype)
        (_, batch), *_ = model._batches([[2, 3]])
        text = str(jax.make_jaxpr(model._run)(model._params, **batch))
        products, exact = text.count("dot_general["), text.count("precision=(Precision.HIGHEST,")
        assert products >= 8 and exact == (products if dtype == "float32" else 0)


def test_batches_are_split_over_all_devices(folder):
    model = sentences.SentenceModel(folder, batch_size=9)
    assert model._batch_size == 16 and jax.device_count() == 8
    with pytest.raises(UserError, match="batch_size=0 must be at least 1"):
        sentences.SentenceModel(folder, batch_size=0)
    values = {id(x): x for x in jax.tree.leaves(model._params)}.values()
    assert all(len(x.sharding.device_set) == 8 for x in values)


def test_the_fingerprint_is_of_the_weights(folder, tmp_path):
    same = sentences.SentenceModel(tiny_bert.write(tmp_path / "a", prefix="bert."))
    other = sentences.SentenceModel(tiny_bert.write(tmp_path / "b", arrays=tiny_bert.weights(1)))
    mine = sentences.SentenceModel(folder).fingerprint
    assert mine == same.fingerprint != other.fingerprint


def test_the_tokenizer_of_the_folder(folder, tmp_path):
    """tokenizer.json and vocab.txt are the same; its padding and cutting are not used."""
    _, _, pieces = sentence.load(folder)
    for text in TEXTS:
        assert pieces.encode(text.strip()).ids == tiny_bert.pieces(text)
    other = tiny_bert.write(tmp_path / "json")
    pieces.enable_padding(length=12)
    pieces.enable_truncation(6)
    pieces.save(str(other / "tokenizer.json"))
    (other / "vocab.txt").unlink()
    np.testing.assert_allclose(
        sentences.SentenceModel(other, batch_size=8).embed(TEXTS), expected(TEXTS), atol=2e-6
    )
    lower = tiny_bert.write(tmp_path / "lower", sentence={"do_lower_case": True})
    (lower / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert sentence.load(lower)[2].encode("RED Cats").ids == tiny_bert.pieces("red cats")
    (lower / "sentence_bert_config.json").unlink()
    assert sentence.load(lower)[2].encode("RED").ids == [2, 1, 3]


def test_arrays_that_are_not_used(tmp_path):
    arrays = tiny_bert.weights() | {
        "embeddings.position_ids": np.arange(40)[None],
        "pooler.dense.weight": np.zeros((24, 24), np.float32),
    }
    found = sentences.SentenceModel(tiny_bert.write(tmp_path / "m", arrays=arrays)).embed(TEXTS)
    np.testing.assert_allclose(found, expected(TEXTS), atol=2e-6)


def without(name):
    return {k: v for k, v in tiny_bert.weights().items() if k != name}


QUERY = "encoder.layer.1.attention.self.query.bias"
EXTRA = r'pip install "mmjax\[sentences\]".*st:all-mpnet-base-v2'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(config={"model_type": "mpnet"}), f"model_type is 'mpnet', not 'bert'.*{EXTRA}"),
        (dict(config={"hidden_act": "relu"}), f"hidden_act is 'relu'.*{EXTRA}"),
        (dict(config={"position_embedding_type": "relative_key"}), EXTRA),
        (dict(modules=(*PLAIN, "Dense")), f"of Transformer, Pooling, Dense.*{EXTRA}"),
        (dict(pooling={"pooling_mode_max_tokens": True}), f"pooling max_tokens.*{EXTRA}"),
        (dict(pooling={"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}), EXTRA),
        (dict(pooling={"pooling_mode": "lasttoken"}), f"pooling lasttoken.*{EXTRA}"),
        (dict(arrays=without(QUERY)), f"{QUERY}: missing"),
        (dict(arrays=without("embeddings.token_type_embeddings.weight")), "types: missing"),
        (dict(arrays=tiny_bert.weights() | {"adapter.w": np.zeros(3)}), "adapter.w: is no array"),
        (dict(arrays=without("embeddings.word_embeddings.weight")), "it is no BERT"),
        (dict(config={"intermediate_size": 41}), "makes encoder/layers/mlp/up/.*by config.json"),
        (dict(config={"num_hidden_layers": None}), "does not describe a BERT"),
    ],
)  # fmt: skip
def test_folders_that_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        sentences.SentenceModel(tiny_bert.write(tmp_path / "m", **options))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "There is no .*config.json"),
        ("config.json", "{", "config.json is not JSON"),
        ("model.safetensors", None, "holds no model.safetensors"),
        ("model.safetensors", "x", "model.safetensors"),
        ("vocab.txt", None, "neither tokenizer.json nor vocab.txt"),
        ("vocab.txt", "a\nb", r"vocabulary has \[CLS\], \[SEP\], \[UNK\]"),
        ("tokenizer.json", "{}", "tokenizer.json is no tokenizer"),
        ("modules.json", "[3]", "is no list of modules"),
        ("modules.json", "{}", "is not what its name says"),
        ("1_Pooling/config.json", None, "There is no .*1_Pooling"),
    ],
)
def test_files_that_are_missing_or_damaged(tmp_path, file, content, message):
    folder = tiny_bert.write(tmp_path / "m")
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(UserError, match=message):
        sentences.SentenceModel(folder)


def test_a_tokenizer_of_another_model(tmp_path):
    folder = tiny_bert.write(tmp_path / "bert")
    (folder / "vocab.txt").write_text("\n".join([*tiny_bert.WORDS, "parrot"]))
    message = f"'parrot' has number {len(tiny_bert.WORDS)}, but the model has"
    with pytest.raises(UserError, match=message):
        sentences.SentenceModel(folder)


def test_as_transformers_computes_it(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertModel(transformers.BertConfig(**tiny_bert.CONFIG)).eval()
    arrays = {name: x.numpy() for name, x in theirs.state_dict().items()}
    folder = tiny_bert.write(tmp_path / "m", arrays=arrays, modules=())
    found = sentences.SentenceModel(folder, batch_size=8).embed(TEXTS)
    for row, text in zip(found, TEXTS, strict=True):
        with torch.no_grad():
            tokens = theirs(torch.tensor([tiny_bert.pieces(text)])).last_hidden_state[0]
        np.testing.assert_allclose(row, tokens.mean(0).numpy(), atol=5e-6)


def test_a_folder_is_known_by_its_files(folder, tmp_path):
    assert sentence.is_folder(folder) and not sentence.is_folder(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([]))
    assert sentence.is_folder(str(tmp_path))
