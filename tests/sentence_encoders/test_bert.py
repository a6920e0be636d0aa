"""Sentence encoders in published formats, against an independent BERT in NumPy."""

import json

import jax
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.formats import safetensors
from mmjax.sentence_encoders import bert, bert_files
from mmjax.sentence_encoders.bert import BertEncoder
from mmjax.sentence_encoders.registry import make_encoder
from tests.convert import torch_writer
from tests.messages import assert_mentions, raises
from tests.sentence_encoders import tiny_bert

PLAIN = ("Transformer", "Pooling")
TEXTS = [
    "a red cat sits",
    "The dogs, the cats, the RED dogs, running.",
    "",
    "blue",
    " unknown words\tsit  ",
    "a cat runs, a dog sits. " * 9,  # longer than the maximum length
]


def expected(texts, *, length=tiny_bert.POSITIONS, **options):
    arrays = tiny_bert.weights()
    ids = [tiny_bert.token_ids(text, length) for text in texts]
    return np.stack([tiny_bert.embed(arrays, text_ids, **options) for text_ids in ids])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return tiny_bert.write(tmp_path_factory.mktemp("bert") / "model")


@pytest.mark.parametrize("batch_size", [3, 16])
def test_embeddings_match_numpy(model_dir, batch_size):
    model = BertEncoder(model_dir, batch_size=batch_size)
    assert (model.width, model.max_length, model.normalized) == (24, 40, True)
    result = model.embed(TEXTS * 3)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.tile(expected(TEXTS), (3, 1)), atol=2e-6)
    assert model.embed([]).shape == (0, 24)


def test_texts_of_similar_lengths_are_batched_together(model_dir, monkeypatch):
    monkeypatch.setattr(bert, "LENGTHS", (12, 24))
    model = BertEncoder(model_dir, batch_size=8)
    texts = [" ".join(["cat"] * n) for n in np.random.default_rng(0).permutation(24)]
    ids = [tiny_bert.token_ids(text) for text in texts]
    batches = list(model._batches(ids))
    indices = np.concatenate([indices for indices, _ in batches])
    assert sorted(indices) == list(range(24))
    assert [batch["ids"].shape for _, batch in batches] == [(8, 25), (8, 24), (8, 12)]
    assert [batch["mask"].sum() for _, batch in batches] == [
        sum(range(n, n + 8)) for n in (18, 10, 2)
    ]
    np.testing.assert_allclose(model.embed(texts), expected(texts), atol=2e-6)


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        (dict(pooling={"pooling_mode_cls_token": True}), dict(pooling="cls")),
        (dict(pooling={"pooling_mode": "mean"}, modules=PLAIN), dict(normalize=False)),
        (dict(modules=()), dict(normalize=False)),
        (dict(prefix="bert."), {}),
        (dict(sentence={"max_seq_length": 7}), dict(length=7)),
    ],
)  # fmt: skip
def test_pooling_normalization_and_length_are_read_from_the_files(tmp_path, options, reference):
    model = BertEncoder(tiny_bert.write(tmp_path / "m", **options), batch_size=8)
    assert model.normalized is reference.get("normalize", True)
    np.testing.assert_allclose(model.embed(TEXTS), expected(TEXTS, **reference), atol=5e-6)


def test_the_pooling_file_of_version_5_is_read(tmp_path):
    model_dir = tiny_bert.write(tmp_path / "m", pooling={"pooling_mode": "cls"})
    assert bert_files.load(model_dir)[0].pooling == "cls"


def test_max_length_truncates_and_is_limited_by_the_model(model_dir):
    model = BertEncoder(model_dir, batch_size=8, max_length=5)
    np.testing.assert_allclose(model.embed(TEXTS), expected(TEXTS, length=5), atol=2e-6)
    for length in (2, 41):
        with raises(UserError, "--max-length", model_dir, length, 3, 40):
            BertEncoder(model_dir, max_length=length)


def test_bfloat16_is_close_to_float32(model_dir):
    result = BertEncoder(model_dir, batch_size=8, dtype="bfloat16").embed(TEXTS)
    cosines = (result * expected(TEXTS)).sum(axis=1)
    assert 0.99 < cosines.min() and 1e-5 < np.abs(result - expected(TEXTS)).max()


def test_float32_uses_the_highest_matmul_precision(model_dir):
    for dtype in ("float32", "bfloat16"):
        model = BertEncoder(model_dir, dtype=dtype)
        (_, batch), *_ = model._batches([[2, 3]])
        text = str(jax.make_jaxpr(model._run)(model._params, **batch))
        products, exact = text.count("dot_general["), text.count("precision=(Precision.HIGHEST,")
        assert products >= 8 and exact == (products if dtype == "float32" else 0)


def test_batches_are_sharded_over_all_devices(model_dir):
    model = BertEncoder(model_dir, batch_size=9)
    assert model._batch_size == 16 and jax.device_count() == 8
    with raises(UserError, "--batch-size", 0, 1):
        make_encoder(str(model_dir), batch_size=0)
    values = {id(x): x for x in jax.tree.leaves(model._params)}.values()
    assert all(len(x.sharding.device_set) == 8 for x in values)


def test_the_fingerprint_depends_only_on_the_weights(model_dir, tmp_path):
    same = BertEncoder(tiny_bert.write(tmp_path / "a", prefix="bert."))
    other = BertEncoder(tiny_bert.write(tmp_path / "b", arrays=tiny_bert.weights(1)))
    fingerprint = BertEncoder(model_dir).fingerprint
    assert fingerprint == same.fingerprint != other.fingerprint


def test_the_tokenizer_is_read_without_its_padding_and_truncation(model_dir, tmp_path):
    """tokenizer.json and vocab.txt are equivalent."""
    _, _, tokenizer = bert_files.load(model_dir)
    for text in TEXTS:
        assert tokenizer.encode(text.strip()).ids == tiny_bert.token_ids(text)
    other = tiny_bert.write(tmp_path / "json")
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(6)
    tokenizer.save(str(other / "tokenizer.json"))
    (other / "vocab.txt").unlink()
    np.testing.assert_allclose(
        BertEncoder(other, batch_size=8).embed(TEXTS), expected(TEXTS), atol=2e-6
    )
    lower = tiny_bert.write(tmp_path / "lower", sentence={"do_lower_case": True})
    (lower / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert bert_files.load(lower)[2].encode("RED Cats").ids == tiny_bert.token_ids("red cats")
    (lower / "sentence_bert_config.json").unlink()
    assert bert_files.load(lower)[2].encode("RED").ids == [2, 1, 3]


def google_names(arrays):
    """The names of LayerNorm in the published bert-base-uncased."""
    new = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {
        next((k.replace(a, b) for a, b in new.items() if k.endswith(a)), k): x
        for k, x in arrays.items()
    }


def write_shards(directory, arrays, *, name="model.safetensors"):
    """Replaces the weights of a model by two files and an index."""
    (directory / "model.safetensors").unlink()
    stem, suffix = name.split(".")
    weight_map = {}
    for number, part in enumerate((list(arrays)[:5], list(arrays)[5:]), 1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        write = safetensors.write if suffix == "safetensors" else torch_writer.save
        write(directory / file, {key: arrays[key] for key in part})
        weight_map |= dict.fromkeys(part, file)
    index = directory / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_the_layer_norms_of_googles_code_are_read(model_dir, tmp_path):
    arrays = google_names(tiny_bert.weights())
    assert "embeddings.LayerNorm.gamma" in arrays
    directory = tiny_bert.write(tmp_path / "gamma", arrays=arrays, prefix="bert.")
    assert BertEncoder(directory).fingerprint == BertEncoder(model_dir).fingerprint
    arrays["embeddings.LayerNorm.weight"] = arrays["embeddings.LayerNorm.gamma"]
    directory = tiny_bert.write(tmp_path / "both", arrays=arrays)
    with raises(UserError, "model.safetensors", "embeddings.LayerNorm.weight", "gamma"):
        BertEncoder(directory)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_several_files_are_read(model_dir, tmp_path, name):
    directory = tiny_bert.write(tmp_path / "parts")
    arrays = google_names(tiny_bert.weights())
    index = write_shards(directory, arrays, name=name)
    assert BertEncoder(directory).fingerprint == BertEncoder(model_dir).fingerprint
    content = json.loads(index.read_text())
    for weight_map, facts in (
        (content["weight_map"] | {"w": "../other.bin"}, ("../other.bin",)),
        (content["weight_map"] | {"w": "none.bin"}, ("none.bin",)),
        (content["weight_map"] | {"w": next(iter(content["weight_map"].values()))}, ("w",)),
        (["a"], ("weight_map",)),
    ):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with raises(UserError, directory, *facts):
            BertEncoder(directory)


def test_weights_that_are_not_finite_are_named(tmp_path, caplog):
    arrays = tiny_bert.weights()
    key = "encoder.layer.1.intermediate.dense.weight"
    arrays[key][3, 4] = np.nan
    BertEncoder(tiny_bert.write(tmp_path / "nan", arrays=arrays))
    (record,) = [r for r in caplog.records if "NaN" in r.getMessage()]
    assert_mentions(record.getMessage(), tmp_path / "nan", key, "1 of")
    assert "encoder.layer.0" not in record.getMessage()


def test_unused_arrays_are_ignored(tmp_path):
    arrays = tiny_bert.weights() | {
        "embeddings.position_ids": np.arange(40)[None],
        "pooler.dense.weight": np.zeros((24, 24), np.float32),
    }
    result = BertEncoder(tiny_bert.write(tmp_path / "m", arrays=arrays)).embed(TEXTS)
    np.testing.assert_allclose(result, expected(TEXTS), atol=2e-6)


def without(name):
    return {k: v for k, v in tiny_bert.weights().items() if k != name}


QUERY = "encoder.layer.1.attention.self.query.bias"
OTHER_ENCODERS = ('pip install "mmjax[sentences]"', "st:all-mpnet-base-v2")


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (
            dict(config={"model_type": "mpnet"}),
            ("m/config.json", "model_type", "'mpnet'", "'bert'", *OTHER_ENCODERS),
        ),
        (
            dict(config={"hidden_act": "relu"}),
            ("m/config.json", "hidden_act", "'relu'", "'gelu'", *OTHER_ENCODERS),
        ),
        (
            dict(config={"position_embedding_type": "relative_key"}),
            ("position_embedding_type", "'relative_key'", *OTHER_ENCODERS),
        ),
        (
            dict(modules=(*PLAIN, "Dense")),
            ("/modules.json", "Transformer, Pooling, Dense", *OTHER_ENCODERS),
        ),
        (
            dict(pooling={"pooling_mode_max_tokens": True}),
            ("/1_Pooling/config.json", "max_tokens", *OTHER_ENCODERS),
        ),
        (
            dict(pooling={"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}),
            ("/1_Pooling/config.json", "cls, mean", *OTHER_ENCODERS),
        ),
        (
            dict(pooling={"pooling_mode": "lasttoken"}),
            ("/1_Pooling/config.json", "lasttoken", *OTHER_ENCODERS),
        ),
        (dict(arrays=without(QUERY)), ("/model.safetensors", QUERY)),
        (
            dict(arrays=without("embeddings.token_type_embeddings.weight")),
            ("/model.safetensors", "embeddings.token_type_embeddings.weight"),
        ),
        (
            dict(arrays=tiny_bert.weights() | {"adapter.w": np.zeros(3)}),
            ("/model.safetensors", "adapter.w"),
        ),
        (
            dict(arrays=without("embeddings.word_embeddings.weight")),
            ("/model.safetensors", "embeddings.word_embeddings.weight", *OTHER_ENCODERS),
        ),
        (
            dict(config={"intermediate_size": 41}),
            (
                "/model.safetensors",
                "encoder.layer.0.intermediate.dense.bias",
                "(40,)",
                "(41,)",
                "config.json",
            ),
        ),
        (
            dict(config={"num_hidden_layers": 3}),
            ("/model.safetensors", "encoder.layer.2.", "num_hidden_layers", 3, 2),
        ),
        (
            dict(config={"num_hidden_layers": None}),
            ("m/config.json", "num_hidden_layers", None, *OTHER_ENCODERS),
        ),
        (dict(config={"hidden_size": 10**15, "num_attention_heads": 5}), ("m/config.json", 10**15)),
        (dict(config={"intermediate_size": 10**12}), ("m/config.json", 10**12)),
        (dict(sentence={"max_seq_length": [20]}), ("max_seq_length", [20])),
        (
            dict(modules=("Transformer", "Other.Pooling")),
            ("modules.json", "Pooling", "config.json"),
        ),
        (dict(config={"hidden_size": "24"}), ("m/config.json", "hidden_size", "'24'")),
        (
            dict(config={"num_attention_heads": 5}),
            ("m/config.json", "num_attention_heads", 5, "hidden_size", 24),
        ),
    ],
)
def test_unsupported_models_are_an_error(tmp_path, options, facts):
    with raises(UserError, *facts):
        BertEncoder(tiny_bert.write(tmp_path / "m", **options))


@pytest.mark.parametrize(
    ("file", "content", "facts"),
    [
        ("config.json", None, ("m/config.json",)),
        ("config.json", "{", ("m/config.json", "JSON", "line 1")),
        ("model.safetensors", None, ("model.safetensors", *OTHER_ENCODERS)),
        ("model.safetensors", "x", ("m/model.safetensors", "header")),
        ("vocab.txt", None, ("tokenizer.json", "vocab.txt")),
        ("vocab.txt", "a\nb", ("m/vocab.txt", "[CLS], [SEP], [UNK]")),
        ("tokenizer.json", "{}", ("m/tokenizer.json", "line 1 column 2")),
        ("modules.json", "[3]", ("m/modules.json", "entry 0", "'type'", "'path'", 3)),
        ("modules.json", "{}", ("m/modules.json", "list", "object")),
        ("1_Pooling/config.json", None, ("m/1_Pooling/config.json",)),
    ],
)
def test_missing_or_damaged_files_are_an_error(tmp_path, file, content, facts):
    model_dir = tiny_bert.write(tmp_path / "m")
    (model_dir / file).unlink(missing_ok=True)
    if content is not None:
        (model_dir / file).write_text(content)
    with raises(UserError, *facts):
        BertEncoder(model_dir)


def test_a_tokenizer_larger_than_the_token_embedding_is_an_error(tmp_path):
    model_dir = tiny_bert.write(tmp_path / "bert")
    (model_dir / "vocab.txt").write_text("\n".join([*tiny_bert.WORDS, "parrot"]))
    with raises(UserError, model_dir, "'parrot'", len(tiny_bert.WORDS)):
        BertEncoder(model_dir)


def test_embeddings_match_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = transformers.BertModel(transformers.BertConfig(**tiny_bert.CONFIG)).eval()
    arrays = {name: x.numpy() for name, x in reference.state_dict().items()}
    model_dir = tiny_bert.write(tmp_path / "m", arrays=arrays, modules=())
    result = BertEncoder(model_dir, batch_size=8).embed(TEXTS)
    for embedding, text in zip(result, TEXTS, strict=True):
        with torch.no_grad():
            tokens = reference(torch.tensor([tiny_bert.token_ids(text)])).last_hidden_state[0]
        np.testing.assert_allclose(embedding, tokens.mean(0).numpy(), atol=5e-6)


def test_a_model_directory_is_recognized_by_its_files(model_dir, tmp_path):
    assert bert_files.is_directory(model_dir) and not bert_files.is_directory(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([]))
    assert bert_files.is_directory(str(tmp_path))
