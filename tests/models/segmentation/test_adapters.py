"""Bottleneck adapters: values by formula, sizes, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.inputs import InputError
from mmjax.models.segmentation.adapters import ADAPTERS, Adapter, build_adapter
from mmjax.models.segmentation.registry import build_segmentation
from mmjax.state import ModelDef
from tests.messages import raises
from tests.random_arrays import random_arrays

CHANNELS, WIDTH = 6, 8
IMAGES = np.array([2, 0, 2, 1, 2])  # image of each pair
RANDOM = np.random.default_rng(0)
BOTTLENECK = RANDOM.normal(size=(3, 4, 5, CHANNELS)).astype(np.float32)
TEXTS = RANDOM.normal(size=(5, WIDTH)).astype(np.float32)


def _model(name, **options):
    spec = dict(name=name, width=WIDTH) | options
    if "attn" in name:
        spec = dict(num_heads=2) | spec
    return ModelDef(lambda rngs: build_adapter(spec, bottleneck_width=CHANNELS, rngs=rngs))


def _normalize(x, scale, bias, mean, var, epsilon=1e-5):
    return (x - mean) / np.sqrt(var + epsilon) * scale + bias


def _attend(params, query, tokens):
    """Returns the pooled tokens [D] of one query [D], with a loop over heads."""

    def layer_norm(x, norm):
        return _normalize(
            x, norm["scale"], norm["bias"], x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        )

    query, key, value = (
        layer_norm(x, params[f"{name}_norm"]) @ params[name]["kernel"] + params[name]["bias"]
        for name, x in (("query", query), ("key", tokens), ("value", tokens))
    )
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = np.exp(key[:, head] @ query[head] / 2)
        heads.append(scores @ value[:, head] / (1 + scores.sum()))  # 1 is the key of zeros
    return np.concatenate(heads) @ params["out"]["kernel"] + params["out"]["bias"]


def _expected(name, params, extra):
    """Returns the vectors of the pairs."""
    mean, relu = BOTTLENECK.mean((1, 2)), lambda x: np.maximum(x, 0)
    if name == "contrastive_global":
        return mean[IMAGES]
    if "linear" in params:
        return (mean @ params["linear"]["kernel"] + params["linear"].get("bias", 0))[IMAGES]
    if name.startswith("GAP_linear2"):
        x = mean @ params["first"]["kernel"] + params["first"].get("bias", 0)
        x = _normalize(x, **params["norm"], **extra["norm"]) if "norm" in params else x
        return (relu(x) @ params["second"]["kernel"] + params["second"]["bias"])[IMAGES]
    if name == "conv2_BN_GAP":
        x = _normalize(
            BOTTLENECK @ params["first"]["kernel"][0, 0], **params["norm"], **extra["norm"]
        )
        x = relu(x) @ params["second"]["kernel"][0, 0] + params["second"]["bias"]
        return x.mean((1, 2))[IMAGES]
    tokens = (BOTTLENECK @ params["tokens"]["kernel"][0, 0]).reshape(3, 20, WIDTH)
    queries = TEXTS if "query" not in params else [params["query"]] * len(IMAGES)
    return np.stack(
        [_attend(params["pooling"], q, tokens[i]) for q, i in zip(queries, IMAGES, strict=True)]
    )


@pytest.mark.parametrize("name", ADAPTERS)
def test_values_are_those_of_the_formula(name):
    model = _model(name)
    params, extra = random_arrays(model)
    module = model.bind(params, extra)
    actual = module(BOTTLENECK, TEXTS, IMAGES)
    assert actual.dtype == jnp.float32 and actual.shape == (5, module.out_features)
    expected = _expected(name, *jax.device_get((params, extra)))
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-5)
    texts = TEXTS @ params["linear"]["kernel"] if name == "contrastive_global" else TEXTS
    np.testing.assert_allclose(module.texts(TEXTS), texts, rtol=1e-4, atol=1e-5)
    assert module.needs_query == (name == "conv_attn_pool_by_text")


@pytest.mark.parametrize("name", ADAPTERS)
def test_one_image_without_pairs_keeps_its_axis(name):
    model = _model(name)
    module = model.bind(*random_arrays(model))
    alone = module(BOTTLENECK[2:], TEXTS[:1])
    assert alone.shape == (1, module.out_features)
    np.testing.assert_allclose(alone, module(BOTTLENECK, TEXTS, IMAGES)[:1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("contrastive_global", 491_520),
        ("contrastive_diff", 491_520),
        ("contrastive_global_bside_1", 491_520),
        ("GAP_linear", 492_032),
        ("conv_attn_pool_by_text", 1_545_216),
        ("conv_attn_pool", 1_545_728),
    ],
)
def test_numbers_of_parameters_on_lraspp(name, parameters):
    model = ModelDef(
        lambda rngs: build_segmentation("lraspp_mobilenet_v3_large", adaptation=name, rngs=rngs)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params["adapter"])) == parameters


@pytest.mark.parametrize("name", ["GAP_linear2_BN", "conv2_BN_GAP"])
def test_batch_norm_updates_its_statistics_in_training(name):
    model = _model(name)
    module = model.bind(*random_arrays(model))
    before = model.extra_of(module)
    module(BOTTLENECK, image_index=IMAGES, train=True)
    changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, model.extra_of(module))
    assert min(jax.tree.leaves(changes)) > 0


def test_batch_norm_after_pooling_needs_two_images_to_train():
    module = _model("GAP_linear2_BN").bind(*random_arrays(_model("GAP_linear2_BN")))
    with raises(InputError, "GAP_linear2_BN", "two images", "GAP_linear2_noBN"):
        module(BOTTLENECK[:1], train=True)


def test_the_dtype_of_the_model_applies_to_feature_maps_only():
    model = ModelDef(
        lambda rngs: build_segmentation(
            "lraspp_demo",
            adaptation=dict(name="conv_attn_pool", width=WIDTH),
            dtype="bfloat16",
            rngs=rngs,
        )
    )
    assert model.module.adapter.tokens.dtype == "bfloat16"
    linear = ModelDef(
        lambda rngs: build_adapter(
            "GAP_linear", bottleneck_width=CHANNELS, dtype="bfloat16", rngs=rngs
        )
    ).module
    bottleneck = jax.ShapeDtypeStruct((2, 4, 4, CHANNELS), jnp.bfloat16)
    assert jax.eval_shape(lambda m, x: m(x), linear, bottleneck).dtype == jnp.float32


def test_initial_values_have_the_bounds_of_ttdl():
    for name, layer, bound in (
        ("GAP_linear", "linear", (6 / (64 + 512)) ** 0.5),  # xavier uniform
        ("GAP_linear2_BN", "first", (6 / 512) ** 0.5),  # kaiming uniform of the fan-out
        ("conv2_BN_GAP", "first", (6 / 512) ** 0.5),
    ):
        adapter = build_adapter(name, bottleneck_width=64, rngs=nnx.Rngs(0))
        largest = float(jnp.abs(getattr(adapter, layer).kernel[...]).max())
        assert 0.99 * bound < largest <= bound, name
    query = build_adapter("conv_attn_pool", bottleneck_width=8, rngs=nnx.Rngs(0)).query[...]
    np.testing.assert_allclose(query.std(), 0.02, rtol=0.1)


class Corner(Adapter):
    """The first pixel."""

    def __init__(self, *, rngs, **options):
        super().__init__(**options)
        del rngs

    def pool(self, bottleneck, *, train):
        return bottleneck[:, 0, 0]


def test_classes_of_other_packages_are_accepted():
    adapter = build_adapter(f"{__name__}:Corner", bottleneck_width=CHANNELS, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(adapter(BOTTLENECK, image_index=IMAGES), BOTTLENECK[IMAGES, 0, 0])
    with raises(UserError, "config.model.adaptation", "Adapter"):
        build_adapter("flax.nnx:Linear", bottleneck_width=CHANNELS, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "spec, facts",
    [
        ("GAP_liner", ("config.model.adaptation", "GAP_linear")),
        (dict(name="GAP_linear", num_heads=2), ("model.adaptation.num_heads", "GAP_linear")),
        (dict(name="conv_attn_pool", num_heads=3), ("config.model.adaptation", "num_heads", 3)),
        (dict(name="GAP_linear", width=0), ("config.model.adaptation", "width", 0)),
    ],
)
def test_errors_mention_the_option(spec, facts):
    with raises(UserError, *facts):
        build_segmentation("lraspp_demo", adaptation=spec, rngs=nnx.Rngs(0))


def test_a_text_query_is_required():
    model = _model("conv_attn_pool_by_text")
    with raises(UserError, "conv_attn_pool_by_text", "queries"):
        model.bind(*random_arrays(model))(BOTTLENECK)
