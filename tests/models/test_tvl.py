"""TVL's model: touch, image and text towers with a shared embedding space."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models.tvl import make_model
from mmjax.models.vatt import make_model as vatt_model
from mmjax.state import ModelDef
from tests.messages import raises
from tests.random_arrays import random_arrays

SIZE = dict(width=32, num_heads=2, head_dim=16, mlp_dim=64, num_layers=1, scan_unroll=1)
TOUCH = dict(name="touch_tiny", image_size=16, projection=20, **SIZE)
IMAGE = dict(name="clip_vit_tiny", image_size=16, projection=20, **SIZE)
TEXT = dict(name="clip_text_tiny", vocab_size=30, context_length=8, projection=20, **SIZE)
ALL = dict(touch=TOUCH, image=IMAGE, text=TEXT)
SHAPES = dict(touch=(16, 16, 3), image=(16, 16, 3), text=(1, 8))


def _batch():
    rng = np.random.default_rng(0)
    images = {m: rng.normal(size=(3, 16, 16, 3)).astype(np.float32) for m in ("touch", "image")}
    return {**images, "text": rng.integers(1, 30, (6, 8))}


def _model(**options):
    model = ModelDef(make_model(**{**ALL, **options}))
    return model, *random_arrays(model)


def _initial_value(model, name):
    return jax.jit(lambda key: model.init(key)[0][name])(jax.random.key(0))


def test_embeddings_are_normalized_tower_features():
    model, params, extra = _model()
    assert set(params) == {"touch", "image", "text", "logit_scale"}
    scale = _initial_value(model, "logit_scale")
    np.testing.assert_allclose(scale, math.log(1 / 0.07), rtol=1e-6)

    @jax.jit
    def run(params, batch):
        module = model.bind(params, extra)
        separate = {m: getattr(module, m)(x)[0] for m, x in batch.items()}
        pooled = module.encode(batch)
        return separate, pooled, module.project(pooled)

    separate, pooled, embedded = run(params, _batch())
    for modality, count in dict(touch=3, image=3, text=6).items():
        np.testing.assert_allclose(pooled[modality], separate[modality], rtol=1e-4, atol=1e-6)
        assert embedded[modality].shape == (count, 20)
        length = np.linalg.norm(np.float64(pooled[modality]), axis=1, keepdims=True)
        np.testing.assert_allclose(embedded[modality], pooled[modality] / length, atol=1e-6)


def test_common_dim_adds_a_linear_head_per_modality():
    options = dict(image={**IMAGE, "projection": 24}, common_dim=12, logit_bias=-10.0)
    model, params, extra = _model(**options)
    shapes = {m: head["kernel"].shape for m, head in params["heads"].items()}
    assert shapes == {"touch": (32, 12), "image": (24, 12), "text": (20, 12)}
    assert "projection" not in params["touch"] and set(params["heads"]["touch"]) == {"kernel"}
    assert _initial_value(model, "logit_bias") == -10
    assert params["logit_scale"].dtype == jnp.float32
    project = jax.jit(lambda features: model.bind(params, extra).project(features))
    features = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    projected = np.float64(features) @ np.float64(params["heads"]["touch"]["kernel"])
    expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(project({"touch": features})["touch"], expected, atol=1e-5)


def test_zero_features_have_a_zero_embedding_and_a_finite_gradient():
    model, params, extra = _model()
    project = model.bind(params, extra).project
    zero = jnp.zeros((1, 20), jnp.bfloat16)
    loss = jax.jit(jax.value_and_grad(lambda x: project({"text": x})["text"].sum()))
    value, gradient = loss(zero)
    assert value == 0
    # Lengths below 1e-12 are replaced by 1e-12, so the gradient is 1e12 and not NaN.
    np.testing.assert_allclose(np.float32(gradient), 1e12, rtol=0.01)


def test_frozen_towers_run_in_evaluation_mode_without_gradients():
    dropout = dict(dropout_rate=0.5)
    model, params, extra = _model(**{m: {**spec, **dropout} for m, spec in ALL.items()})
    batch = _batch()

    @jax.jit
    def run(params, seed):
        module = model.bind(params, extra)
        pooled = module.encode(batch, key=jax.random.key(seed), frozen=("image", "text"))
        return sum((x**2).sum() for x in pooled.values()), pooled

    gradients, first = jax.jit(jax.grad(run, has_aux=True))(params, 1)
    _, second = run(params, 2)
    evaluated = jax.jit(lambda params: model.bind(params, extra).encode(batch))(params)
    for modality in ("image", "text"):
        np.testing.assert_allclose(first[modality], evaluated[modality], rtol=1e-4, atol=1e-5)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients[modality]))
    assert np.abs(first["touch"] - second["touch"]).max() > 1e-2
    assert np.any(gradients["touch"]["patch"]["kernel"])


def test_frozen_resnet_keeps_its_statistics():
    touch = dict(name="resnet18", width_multiplier=0.125, blocks=(1,), projection=20)
    model, params, extra = _model(touch=touch, image=None)
    batch = {"touch": _batch()["touch"]}

    @functools.partial(jax.jit, static_argnums=0)
    def statistics(frozen):
        module = model.bind(params, extra)
        module.encode(batch, key=jax.random.key(0), frozen=frozen)
        return model.extra_of(module)["touch"]["stem"]["norm"]["mean"]

    initial = extra["touch"]["stem"]["norm"]["mean"]
    assert np.all(statistics(()) != initial)
    np.testing.assert_array_equal(statistics(("touch",)), initial)


def test_flops_count_the_backward_pass_only_of_trained_towers():
    module = ModelDef(make_model(**ALL)).module
    towers = {m: getattr(module, m) for m in SHAPES}
    each = {m: tower.flops(SHAPES[m][-tower.input_ndim :]) for m, tower in towers.items()}
    assert module.flops(SHAPES) == sum(each.values())
    assert module.flops(SHAPES, train=True) == 3 * sum(each.values())
    frozen = module.flops(SHAPES, train=True, frozen=("image", "text"))
    assert frozen == 3 * each["touch"] + each["image"] + each["text"]
    captions = {"text": (5, 8)}
    assert module.flops(captions) == 5 * each["text"]
    common = ModelDef(make_model(**ALL, common_dim=12)).module
    text = 3 * 2 * 20 * 12 + each["text"]
    assert common.flops({"text": (1, 8)}, train=True, frozen=("text",)) == text


@pytest.mark.parametrize(
    "options, facts",
    [
        (
            dict(touch={**TOUCH, "projection": 32}),
            (32, "image", 20, "text", "config.model.touch.projection", "common_dim"),
        ),
        (dict(touch="vit_base"), ("config.model.touch", "'vit_base'", "'vit_base_patch16_224'")),
        (dict(text="touch_tiny"), ("config.model.text", "'touch_tiny'", "clip_text_tiny")),
        (dict(image="clip_vit_l15"), ("config.model.image", "'clip_vit_l15'", "'clip_vit_l14'")),
        (dict(remt="full"), ("'model.remt'", "'model.remat'")),
        (dict(common_dim=-1), ("config.model.common_dim", -1)),
    ],
)
def test_errors_mention_the_invalid_option(options, facts):
    with raises(UserError, *facts):
        ModelDef(make_model(**{**ALL, **options}))


def test_errors_mention_a_modality_without_tower():
    model = ModelDef(make_model(touch=TOUCH, text=TEXT))
    assert set(model.params) == {"touch", "text", "logit_scale"}
    with raises(UserError, "frozen", "'image'", "text", "touch"):
        model.module.encode({}, frozen=("image",))
    with raises(UserError, "'image'", "text", "touch"):
        model.module.encode({"image": np.zeros((1, 16, 16, 3), np.float32)})


def test_image_and_touch_towers_are_interchangeable():
    model = ModelDef(make_model(touch=IMAGE, image=TOUCH, text=TEXT))
    assert "pre_norm" in model.params["touch"] and "pool_norm" in model.params["image"]


@pytest.mark.parametrize("name", ["tx_fac", "mmv_fac"])
def test_vatt_models_accept_touch_and_image_towers(name):
    text = dict(vocab_size=30, embedding_dim=8)
    options = dict(size="tiny", text=text, head=dict(name="joint", joint=12), touch=TOUCH)
    model = ModelDef(vatt_model(name, image=IMAGE, video=None, audio=None, **options))
    assert set(model.params) == {"touch", "image", "text", "head"}
    assert {"touch", "touch_norm"} < set(model.params["head"])
    batch = {m: x for m, x in _batch().items() if m != "text"}

    def run(params, extra):
        module = model.bind(params, extra)
        return module.project(module.encode(batch))

    out = jax.eval_shape(run, model.params, model.extra)
    assert set(out) == {f"{a}/{b}" for a in batch for b in ("touch", "image", "text") if a != b}
    assert out["touch/text"].shape == (3, 12)
    with_video = ModelDef(vatt_model(name, **options))
    assert set(with_video.params) == {"video", "audio", "text", "touch", "head"}


@pytest.mark.parametrize(
    "name, options, facts",
    [
        ("tx_fac", dict(touch=TOUCH), ("'fac'", "'touch'", "'joint'")),
        ("tx_fac", dict(touch=dict(num_layers=2), head="joint"), ("config.model.touch.name",)),
        (
            "tx_fac",
            dict(touch="wat_tiny", head="joint"),
            ("config.model.touch", "'wat_tiny'", "'touch_tiny'"),
        ),
        ("tx_fac", dict(touc="touch_tiny", head="joint"), ("'model.touc'", "'model.touch'")),
        ("ut_fac", dict(touch=TOUCH, head="joint"), ("config.model.touch", "tx_fac")),
        ("ut_fac", dict(image="clip_vit_tiny", head="joint"), ("config.model.image", "tx_fac")),
    ],
)
def test_errors_mention_the_option_that_a_vatt_model_rejects(name, options, facts):
    with raises(UserError, *facts):
        ModelDef(vatt_model(name, size="tiny", **options))


def test_touch_tower_can_be_the_backbone_of_a_classifier():
    tvl = tree.flatten(ModelDef(make_model(**ALL)).params)
    options = dict(backbone=TOUCH, num_classes=3)
    params = tree.flatten(ModelDef(vatt_model("classifier", **options)).params)
    assert set(params) - set(tvl) == {"classifier/kernel", "classifier/bias"}
