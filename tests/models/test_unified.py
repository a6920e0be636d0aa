"""A single encoder shared by several modalities, and the BERT text tower."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import special

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models.blocks.positions import resize_table
from mmjax.models.towers.registry import build_tower
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef
from tests.messages import raises
from tests.random_arrays import random_arrays

SMALL = dict(width=16, num_heads=2, head_dim=8, mlp_dim=24, num_layers=2, scan_unroll=1)


@functools.cache
def _unified(**options):
    model = ModelDef(
        make_model(
            "ut_fac",
            size="tiny",
            text=dict(vocab_size=20, embedding_dim=6),
            head=dict(name="fac", fine=8, coarse=8),
            post_projection=12,
            **{**SMALL, "dropout_rate": 0.0, **options},
        )
    )
    return model, *random_arrays(model)


def _inputs(clips=2, captions=6):
    rng = np.random.default_rng(0)
    text = rng.integers(1, 20, (captions, 5))
    text[1, 2:] = 0
    return dict(
        video=rng.normal(size=(clips, 8, 16, 16, 3)).astype(np.float32),
        audio=rng.normal(size=(clips, 1280)).astype(np.float32),
        text=text,
    )


def _numpy_encoder(p, tokens, mask, layers, heads):
    """Reference pre-norm encoder in float64 for one sequence [T, D] with a mask [T]."""

    def norm(p, x):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    for i in range(layers):
        q = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], np.float64), p["layers"])
        dense = lambda q, x: x @ q["kernel"] + q["bias"]  # noqa: E731
        y = norm(q["attention_norm"], tokens)
        out = []
        for columns in np.split(np.arange(q["attention"]["query"]["bias"].size), heads):
            query, key, value = (
                dense(q["attention"][n], y)[:, columns] for n in ("query", "key", "value")
            )
            scores = np.where(mask, query @ key.T / np.sqrt(len(columns)), -np.inf)
            out.append(special.softmax(scores, axis=-1) @ value)
        tokens = tokens + dense(q["attention"]["out"], np.concatenate(out, axis=-1))
        y = dense(q["mlp"]["up"], norm(q["mlp_norm"], tokens))
        tokens = tokens + dense(q["mlp"]["down"], y * special.ndtr(y))
    return norm(jax.tree.map(np.asarray, p["final_norm"]), tokens)


def _gelu_dense(p, x):
    y = x @ np.asarray(p["kernel"], np.float64) + np.asarray(p.get("bias", 0.0))
    return y * special.ndtr(y)


def test_encoding_modalities_together_equals_encoding_them_separately():
    model, params, extra = _unified()
    x = _inputs()
    run = jax.jit(lambda x: model.bind(params, extra).encode(x, tokens=True))
    together, tokens = run(x)
    for modality in x:
        separate, separate_tokens = run({modality: x[modality]})
        np.testing.assert_allclose(together[modality], separate[modality], atol=1e-5)
        np.testing.assert_allclose(tokens[modality], separate_tokens[modality], atol=1e-5)
    assert {k: v.shape for k, v in together.items()} == dict(
        video=(2, 12), audio=(2, 12), text=(6, 12)
    )


def test_batch_sizes_may_differ_between_modalities():
    model, params, extra = _unified()
    run = jax.jit(lambda x: model.bind(params, extra).encode(x))
    odd, even = _inputs(clips=2, captions=3), _inputs(clips=2, captions=6)
    odd["text"] = even["text"][:3]
    np.testing.assert_allclose(run(odd)["text"], run(even)["text"][:3], atol=1e-5)


def test_sharding_over_eight_devices_does_not_change_the_result():
    model, params, extra = _unified()
    x = _inputs(clips=8, captions=40)
    run = jax.jit(lambda params, x: model.bind(params, extra).encode(x))
    expected = run(params, x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded, replicated = (NamedSharding(mesh, PartitionSpec(axes)) for axes in ("data", None))
    actual = run(jax.device_put(params, replicated), jax.device_put(x, sharded))
    for modality, value in expected.items():
        assert actual[modality].sharding.spec == PartitionSpec("data")
        np.testing.assert_allclose(actual[modality], value, atol=1e-5)


def test_text_and_audio_equal_numpy_reference():
    model, params, extra = _unified()
    x = _inputs()
    pooled = jax.jit(lambda: model.bind(params, extra).encode(x))()
    for modality in ("audio", "text"):
        p = params[modality]
        for i in (0, 1):
            example = x[modality][i]
            if modality == "text":
                raw, mask = np.asarray(p["word_embedding"], np.float64)[example], example != 0
                tokens = _gelu_dense(p["pre_projection"], raw)
            else:
                kernel = np.asarray(p["patch"]["kernel"]).reshape(128, -1)
                patches = example.reshape(-1, 128) @ kernel
                tokens = _gelu_dense(p["pre_projection"], patches + p["patch"]["bias"])
                mask = np.ones(len(tokens), bool)
            table = np.asarray(p["positions"]["temporal"], np.float64)
            if len(table) != len(tokens):  # another length: resampled
                table = resize_table(table, len(tokens))
            table = table - table.mean(-1, keepdims=True)
            table = table / np.sqrt((table**2).mean(-1, keepdims=True) + 1e-6)
            tokens = (
                tokens + table * p["positions"]["norm"]["scale"] + p["positions"]["norm"]["bias"]
            )
            tokens = np.concatenate([np.asarray(p["agg_token"])[None], tokens])
            mask = np.concatenate([[True], mask])
            encoded = _numpy_encoder(params["encoder"], tokens, mask, layers=2, heads=2)
            expected = _gelu_dense(p["post_projection"], encoded[0])
            np.testing.assert_allclose(pooled[modality][i], expected, rtol=2e-4, atol=2e-4)


def test_shared_encoder_gets_gradients_from_every_modality():
    model, params, extra = _unified(dropout_rate=0.1)
    x = _inputs()

    def loss(params, weights):
        module = model.bind(params, extra)
        pooled = module.encode(x, key=jax.random.key(1), train=True)
        return sum(weights[m] * jnp.sum(v**2) for m, v in pooled.items())

    gradient = jax.jit(jax.grad(loss))
    for modality in x:
        grads = gradient(params, {m: float(m == modality) for m in x})
        grads = tree.flatten(jax.device_get(grads))
        shared = grads["encoder/layers/mlp/up/kernel"]
        assert np.abs(shared).max() > 1e-6, modality
        others = [p for p in grads if p.split("/")[0] in set(x) - {modality}]
        assert others and all(not np.any(grads[p]) for p in others)


def test_unified_classifier_has_the_parameter_paths_of_pretraining():
    pretrained = tree.flatten(ModelDef(make_model("ut_fac", size="tiny")).params)
    for modality in ("video", "audio"):
        model = ModelDef(
            make_model(
                "classifier", backbone=dict(name="ut_tiny", modality=modality), num_classes=3
            )
        )
        params = tree.flatten(model.params)
        new = {"classifier/kernel", "classifier/bias"}
        assert set(params) - set(pretrained) == new
        assert any(p.startswith("encoder/") for p in params)
        assert all(params[p].shape == pretrained[p].shape for p in set(params) - new)
        assert model.module.modality == modality and model.module.dropout_rate == 0.2


def test_unified_classifier_equals_the_tower_with_both_projections():
    """VATT fine-tunes this model as vit_* with pre_projection and post_projection."""
    shared = dict(num_classes=3, dropout_rate=0.0)
    options = dict(SMALL, dropout_rate=0.0)
    unified = ModelDef(
        make_model(
            "classifier", backbone=dict(name="ut_tiny", **options, post_projection=12), **shared
        )
    )
    tower = dict(name="vit_tiny", **options, pre_projection=True, post_projection=12)
    single = ModelDef(make_model("classifier", backbone=tower, **shared))
    params, extra = random_arrays(unified)
    moved = dict(params, video=dict(params["video"], encoder=params["encoder"]))
    del moved["encoder"]
    x = {"video": _inputs()["video"]}
    expected = jax.jit(lambda: unified.bind(params, extra).encode(x))()
    actual = jax.jit(lambda: single.bind(moved, extra).encode(x))()
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_bert_ignores_padding_and_depends_on_token_order():
    def build(**options):
        spec = dict(name="bert_tiny", vocab_size=20, embedding_dim=8, buckets=5, **SMALL, **options)
        model = ModelDef(lambda rngs: build_tower(dict(spec, dropout_rate=0.0), rngs=rngs))
        return model.bind(*random_arrays(model))

    call = jax.jit(lambda tower, ids: tower(ids))
    ids = np.array([[3, 4, 5, 0, 0], [3, 4, 9, 0, 0], [5, 4, 3, 0, 0]])
    tower = build()
    pooled, tokens = call(tower, ids)
    assert tokens.shape == (3, 5, 16)
    tower.word_embedding[...] = tower.word_embedding[...].at[0].set(7.0)
    np.testing.assert_allclose(call(tower, ids)[0], pooled, atol=1e-5)
    assert np.abs(pooled[0] - pooled[1]).max() > 1e-4
    assert np.abs(pooled[0] - pooled[2]).max() > 1e-4
    outer = build(outer_agg=True, pre_norm=False)
    pooled, tokens = call(outer, ids)
    assert tokens.shape == (3, 6, 16)
    embedded = np.asarray(outer.word_embedding[...], np.float64)[ids]
    embedded = np.insert(embedded, 0, outer.outer_agg_token[...], axis=1)
    embedded = _gelu_dense({"kernel": outer.pre_projection.kernel[...]}, embedded)
    embedded = embedded + jax.jit(lambda: outer.positions((6,)))()
    embedded = np.insert(embedded, 0, outer.agg_token[...], axis=1)
    mask = np.insert(ids != 0, 0, np.ones((2, 1), bool), axis=1)
    run = jax.jit(lambda tower, x: tower.encoder(x, key_mask=mask))
    np.testing.assert_allclose(pooled, run(outer, jnp.float32(embedded))[:, 0], atol=1e-5)
    # The outer token is projected; the encoder gets 7 tokens instead of 6.
    projection, linear, scores = 8 * 16, 4 * 16 * 16 + 2 * 16 * 24, 2 * 16 * (7**2 - 6**2)
    extra_flops = 2 * (projection + 2 * (linear + scores))
    assert outer.flops((5,)) - tower.flops((5,)) == extra_flops


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(video=dict(width=8)), ("config.model.video.width", "config.model.width")),
        (
            dict(video=dict(patch_sizes=(4, 8, 8))),
            ("vit_tiny", "'model.video.patch_sizes'", "'model.video.patch_size'"),
        ),
        (dict(text="t5_tiny"), ("config.model.text", "'t5_tiny'", "encoder", "bert_tiny")),
        (dict(size="huge"), ("size", "'huge'", "base", "large", "medium", "tiny")),
        (dict(num_layer=3), ("'model.num_layer'", "'model.num_layers'")),
    ],
)
def test_errors_mention_the_invalid_option(options, facts):
    with raises(UserError, *facts):
        ModelDef(make_model("ut_fac", **{"size": "tiny", **options}))


def test_joint_head_projects_all_pairs_of_modalities():
    model = ModelDef(make_model("ut_fac", size="tiny", head="joint", **SMALL))
    pooled = {m: np.ones((3, 128), np.float32) for m in ("video", "audio", "text")}

    def run(params, extra):
        return model.bind(params, extra).project(pooled)

    out = jax.eval_shape(run, model.params, model.extra)
    names = ("video", "audio", "text")
    assert set(out) == {f"{a}/{b}" for a in names for b in names if a != b}
