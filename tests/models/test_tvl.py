"""TVL's model: towers of touch, pictures and text in one space."""

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

SIZE = dict(width=32, num_heads=2, head_dim=16, mlp_dim=64, num_layers=1, scan_unroll=1)
TOUCH = dict(name="touch_tiny", image_size=16, projection=20, **SIZE)
IMAGE = dict(name="clip_vit_tiny", image_size=16, projection=20, **SIZE)
TEXT = dict(name="clip_text_tiny", vocab_size=30, context_length=8, projection=20, **SIZE)
ALL = dict(touch=TOUCH, image=IMAGE, text=TEXT)
SHAPES = dict(touch=(16, 16, 3), image=(16, 16, 3), text=(1, 8))


def _batch():
    rng = np.random.default_rng(0)
    pictures = {m: rng.normal(size=(3, 16, 16, 3)).astype(np.float32) for m in ("touch", "image")}
    return {**pictures, "text": rng.integers(1, 30, (6, 8))}


def _started(**options):
    model = ModelDef(make_model(**{**ALL, **options}))
    return model, *jax.jit(model.init)(jax.random.key(0))


def test_embeddings_are_the_towers_features_on_the_unit_sphere():
    model, params, extra = _started()
    assert set(params) == {"touch", "image", "text", "logit_scale"}
    np.testing.assert_allclose(params["logit_scale"], math.log(1 / 0.07), rtol=1e-6)

    @jax.jit
    def run(params, batch):
        module = model.bind(params, extra)
        alone = {m: getattr(module, m)(x)[0] for m, x in batch.items()}
        pooled = module.encode(batch)
        return alone, pooled, module.project(pooled)

    alone, pooled, embedded = run(params, _batch())
    for modality, number in dict(touch=3, image=3, text=6).items():
        np.testing.assert_allclose(pooled[modality], alone[modality], rtol=1e-4, atol=1e-6)
        assert embedded[modality].shape == (number, 20)
        length = np.linalg.norm(np.float64(pooled[modality]), axis=1, keepdims=True)
        np.testing.assert_allclose(embedded[modality], pooled[modality] / length, atol=1e-6)


def test_a_common_space_has_a_linear_map_for_each_modality():
    options = dict(image={**IMAGE, "projection": 24}, common_dim=12, logit_bias=-10.0)
    model, params, extra = _started(**options)
    shapes = {m: head["kernel"].shape for m, head in params["heads"].items()}
    assert shapes == {"touch": (32, 12), "image": (24, 12), "text": (20, 12)}
    assert "projection" not in params["touch"] and set(params["heads"]["touch"]) == {"kernel"}
    assert params["logit_bias"] == -10 and params["logit_scale"].dtype == jnp.float32
    module = model.bind(params, extra)
    features = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    mapped = np.float64(features) @ np.float64(params["heads"]["touch"]["kernel"])
    expected = mapped / np.linalg.norm(mapped, axis=1, keepdims=True)
    np.testing.assert_allclose(module.project({"touch": features})["touch"], expected, atol=1e-5)


def test_nothing_but_zeros_stays_finite_with_its_gradient():
    model, params, extra = _started()
    project = model.bind(params, extra).project
    zero = jnp.zeros((1, 20), jnp.bfloat16)
    value, gradient = jax.value_and_grad(lambda x: project({"text": x})["text"].sum())(zero)
    assert value == 0 and np.isfinite(np.float32(gradient)).all()


def test_frozen_towers_run_as_in_evaluation_and_get_no_gradient():
    noisy = dict(dropout_rate=0.5)
    model, params, extra = _started(**{m: {**spec, **noisy} for m, spec in ALL.items()})
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


def test_a_frozen_resnet_keeps_its_statistics():
    touch = dict(name="resnet18", width_multiplier=0.125, blocks=(1,), projection=20)
    model, params, extra = _started(touch=touch, image=None)
    batch = {"touch": _batch()["touch"]}

    def statistics(frozen):
        module = model.bind(params, extra)
        module.encode(batch, key=jax.random.key(0), frozen=frozen)
        return np.asarray(model.extra_of(module)["touch"]["stem"]["norm"]["mean"])

    assert np.any(statistics(()))
    assert not np.any(statistics(("touch",)))


def test_operations_count_backward_passes_of_trained_towers_alone():
    module = ModelDef(make_model(**ALL)).module
    each = {
        m: getattr(module, m).flops(shape[-module_ndim:])
        for m, shape, module_ndim in ((m, SHAPES[m], getattr(module, m).input_ndim) for m in SHAPES)
    }
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
    "options, message",
    [
        (dict(touch={**TOUCH, "projection": 32}), "touch 32, image 20, text 20.*common_dim"),
        (dict(touch="vit_base"), "vit_base_patch16_224"),
        (dict(text="touch_tiny"), "clip_text_tiny"),
        (dict(image="clip_vit_l15"), "clip_vit_l14"),
        (dict(remt="full"), "remat"),
        (dict(common_dim=-1), "common_dim"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        ModelDef(make_model(**{**ALL, **options}))


def test_modalities_that_the_model_lacks_are_named():
    model = ModelDef(make_model(touch=TOUCH, text=TEXT))
    assert set(model.params) == {"touch", "text", "logit_scale"}
    with pytest.raises(UserError, match="image"):
        model.module.encode({}, frozen=("image",))
    with pytest.raises(UserError, match="image"):
        model.module.encode({"image": np.zeros((1, 16, 16, 3), np.float32)})


def test_towers_of_pictures_and_touch_can_stand_in_for_each_other():
    model = ModelDef(make_model(touch=IMAGE, image=TOUCH, text=TEXT))
    assert "pre_norm" in model.params["touch"] and "pool_norm" in model.params["image"]


@pytest.mark.parametrize("name", ["tx_fac", "mmv_fac"])
def test_vatts_models_take_touch_and_pictures_beside_or_in_place_of_theirs(name):
    text = dict(vocab_size=30, embedding_dim=8)
    options = dict(size="tiny", text=text, head=dict(name="joint", joint=12), touch=TOUCH)
    model = ModelDef(vatt_model(name, image=IMAGE, video=None, audio=None, **options))
    assert set(model.params) == {"touch", "image", "text", "head"}
    assert {"touch", "touch_norm"} < set(model.params["head"])
    params, extra = jax.jit(model.init)(jax.random.key(0))
    batch = {m: x for m, x in _batch().items() if m != "text"}

    @jax.jit
    def run(params):
        module = model.bind(params, extra)
        return module.project(module.encode(batch))

    out = run(params)
    assert set(out) == {f"{a}/{b}" for a in batch for b in ("touch", "image", "text") if a != b}
    assert out["touch/text"].shape == (3, 12)
    with_video = ModelDef(vatt_model(name, **options))
    assert set(with_video.params) == {"video", "audio", "text", "touch", "head"}


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("tx_fac", dict(touch=TOUCH), "joint"),
        ("tx_fac", dict(touch=dict(num_layers=2), head="joint"), "config.model.touch.name"),
        ("tx_fac", dict(touch="wat_tiny", head="joint"), "touch_tiny"),
        ("tx_fac", dict(touc="touch_tiny", head="joint"), "'touch'"),
        ("ut_fac", dict(touch=TOUCH, head="joint"), "not touch.*tx_fac"),
        ("ut_fac", dict(image="clip_vit_tiny", head="joint"), "not image"),
    ],
)
def test_what_vatts_models_cannot_take_is_named(name, options, message):
    with pytest.raises(UserError, match=message):
        ModelDef(vatt_model(name, size="tiny", **options))


def test_a_touch_tower_can_be_a_classifiers_backbone():
    tvl = tree.flatten(ModelDef(make_model(**ALL)).params)
    options = dict(backbone=TOUCH, num_classes=3)
    params = tree.flatten(ModelDef(vatt_model("classifier", **options)).params)
    assert set(params) - set(tvl) == {"classifier/kernel", "classifier/bias"}
