"""Vision Transformers over single images: touch and CLIP towers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models.towers.registry import build_tower
from mmjax.state import ModelDef
from tests.messages import raises
from tests.models import torch_reference, torch_weights
from tests.models.blocks.convolution_fixture import count
from tests.models.vatt_fixture import relative_error

SIZE = dict(width=32, num_heads=2, head_dim=16, mlp_dim=128, num_layers=2, scan_unroll=1)
TOUCH = dict(name="touch_tiny", image_size=24, patch_size=8, projection=20, **SIZE)
STATE = dict(width=32, num_layers=2, image_size=24, patch_size=8)


def _model(spec):
    return ModelDef(lambda rngs: build_tower(spec, rngs=rngs))


def _images(size=24, count=2):
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)


def _run(model, params, x, key=None):
    run = jax.jit(lambda params, x: model.bind(params, model.extra)(x, key=key))
    return run(params, x)


@pytest.fixture(scope="module")
def touch():
    state = torch_reference.timm_vit_state(num_classes=20, **STATE)
    x = _images()
    return torch_weights.timm_vit(state), x, torch_reference.timm_vit(state, x, 2)


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("vit_tiny_patch16_224", 5_672_640),
        ("vit_small_patch16_224", 21_961_344),
        ("vit_base_patch16_224", 86_389_248),
        ("clip_vit_l14", 303_966_208),
        ("clip_vit_b16", 86_192_640),
        ("clip_vit_b32", 87_849_216),
    ],
)
def test_parameter_counts_equal_published_ones(spec, expected):
    assert count(_model(spec)) == expected


def test_touch_tower_equals_timm(touch):
    params, x, expected = touch
    model = _model(TOUCH)
    assert tree.flatten(params).keys() == tree.flatten(model.params).keys()
    pooled, tokens = _run(model, params, x)
    assert pooled.shape == (2, 20) and tokens.shape == (2, 9, 32)
    assert relative_error(pooled, expected) < 1e-5


def test_tower_without_projection_returns_pooled_features(touch):
    params, x, _ = touch
    state = torch_reference.timm_vit_state(num_classes=0, **STATE)
    model = _model(dict(TOUCH, projection=0))
    pooled, _ = _run(model, {k: v for k, v in params.items() if k != "projection"}, x)
    assert model.module.out_features == 32
    expected = torch_reference.timm_vit(state, x, 2)
    assert relative_error(pooled, expected) < 1e-5


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_image_tower_equals_open_clip(quick_gelu):
    state = torch_reference.open_clip_state(
        width=32,
        text_width=16,
        num_layers=2,
        text_layers=1,
        image_size=24,
        patch_size=8,
        embed_dim=12,
        vocab_size=9,
    )
    options = {"activation": "quick_gelu"} if quick_gelu else {}
    spec = dict(name="clip_vit_tiny", image_size=24, patch_size=8, projection=12, **SIZE, **options)
    model = _model(spec)
    params, _ = torch_weights.open_clip(state)
    assert tree.flatten(params).keys() == tree.flatten(model.params).keys()
    x = _images()
    pooled, tokens = _run(model, params, x)
    expected = torch_reference.open_clip_image(state, x, num_heads=2, quick_gelu=quick_gelu)
    assert relative_error(pooled, expected) < 1e-5
    other = torch_reference.open_clip_image(state, x, num_heads=2, quick_gelu=not quick_gelu)
    assert relative_error(pooled, other) > 1e-4
    assert tokens.shape == (2, 9, 32)


def test_initial_values_of_touch_towers_equal_timm():
    model = _model(dict(TOUCH, width=96, num_heads=6, mlp_dim=384, patch_size=12))
    params, _ = jax.jit(model.init)(jax.random.key(0))
    flat = {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}
    for path in ("encoder/layers/attention/query", "encoder/layers/mlp/down", "projection"):
        np.testing.assert_allclose(flat[f"{path}/kernel"].std(), 0.02, rtol=0.05)
        np.testing.assert_array_equal(flat[f"{path}/bias"], 0)
    np.testing.assert_allclose(flat["positions"].std(), 0.02, rtol=0.1)
    np.testing.assert_allclose(flat["class_token"].std(), 1e-6, rtol=0.3)
    limit = (12 * 12 * 3) ** -0.5
    for name in ("kernel", "bias"):
        assert 0.9 * limit < np.abs(flat[f"patch/{name}"]).max() <= limit


def test_initial_values_of_clip_towers():
    model = _model(dict(name="clip_vit_tiny", width=64, head_dim=16, num_layers=4, mlp_dim=256))
    params, _ = jax.jit(model.init)(jax.random.key(0))
    layers = params["encoder"]["layers"]
    for leaf, std in (
        (layers["attention"]["key"], 64**-0.5),
        (layers["mlp"]["up"], 128**-0.5),
        (layers["attention"]["out"], 64**-0.5 * 8**-0.5),
        (layers["mlp"]["down"], 64**-0.5 * 8**-0.5),
        (params["projection"], 64**-0.5),
    ):
        np.testing.assert_allclose(np.std(leaf["kernel"]), std, rtol=0.05)


def test_bfloat16_is_close_to_float32_and_returns_float32_features(touch):
    params, x, expected = touch
    model = _model(dict(TOUCH, dtype="bfloat16"))
    pooled, tokens = _run(model, params, x)
    assert pooled.dtype == jnp.float32 and tokens.dtype == jnp.bfloat16
    assert 1e-4 < relative_error(pooled, expected) < 0.05
    half = _model(dict(TOUCH, dtype="bfloat16", param_dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    half_params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    pooled, _ = _run(half, half_params, x)
    assert pooled.dtype == jnp.float32 and relative_error(pooled, expected) < 0.05


def test_remat_does_not_change_gradients(touch):
    params, x, _ = touch

    def gradient(remat):
        model = _model(dict(TOUCH, remat=remat, drop_path_rate=0.3))

        def loss(params):
            pooled, _ = model.bind(params, model.extra)(x, key=jax.random.key(3))
            return (pooled**2).mean()

        return jax.jit(jax.grad(loss))(params)

    both = (jax.tree.leaves(gradient(remat)) for remat in ("none", "full"))
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [dict(drop_path_rate=0.5), dict(drop_rate=0.5)])
def test_dropout_is_deterministic_given_the_key_and_off_without_one(options, touch):
    params, x, expected = touch
    model = _model({**TOUCH, **options})
    assert relative_error(_run(model, params, x)[0], expected) < 1e-5
    first, repeated, other = (
        np.asarray(_run(model, params, x, key=jax.random.key(seed))[0]) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, repeated)
    assert np.abs(first - other).max() > 1e-3


def test_drop_rate_applies_to_the_features_before_the_projection(touch):
    params, x, _ = touch
    width = 4000
    ones = {"kernel": jnp.ones((32, width)) / 32, "bias": jnp.zeros(width)}
    norm = {"scale": jnp.zeros(32), "bias": jnp.ones(32)}
    model = _model(dict(TOUCH, drop_rate=0.25, projection=width))
    images = np.repeat(x, 200, axis=0)
    params = {**params, "projection": ones, "pool_norm": norm}
    pooled, _ = _run(model, params, images, key=jax.random.key(0))
    pooled = np.asarray(pooled)
    np.testing.assert_allclose(pooled, pooled[:, :1] * np.ones((1, width)), rtol=1e-5)
    kept = pooled[:, 0] * 32 * 0.75  # number of features kept
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-3)
    assert abs(kept.mean() / 32 - 0.75) < 0.02


def test_flops_equal_the_sum_over_matrix_products():
    model = _model(TOUCH)
    tokens = 10
    encoder = 2 * (tokens * (4 * 32 * 32 + 2 * 32 * 128) + 2 * tokens * tokens * 32)
    expected = 2 * (9 * 8 * 8 * 3 * 32 + encoder + 32 * 20)
    assert model.module.flops((24, 24, 3)) == model.module.flops((24, 24, 3), train=True)
    assert model.module.flops((24, 24, 3)) == expected


def test_error_mentions_the_shape_of_an_image_of_another_size():
    module = _model(TOUCH).module
    for shape in ((32, 32, 3), (24, 24, 1), (24, 24)):
        with raises(UserError, "image_size", shape, (24, 24, 3)):
            jax.eval_shape(module, jax.ShapeDtypeStruct((1, *shape), "float32"))
    with raises(UserError, "image_size", (32, 32, 3), (24, 24, 3)):
        module.flops((32, 32, 3))


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(patch_size=7), ("image_size", 24, "patch_size", 7)),
        (dict(pool="max"), ("pool", "'max'", "'mean'")),
        (dict(drop_rate=1.0), ("drop_rate", "[0, 1)", "1.0")),
        (dict(drop_path_rate=-0.1), ("drop_path_rate", "[0, 1)", -0.1)),
        (dict(final_norm="non"), ("final_norm", "'non'", "'none'")),
        (dict(attention_norm="none"), ("attention_norm", "'none'", "layer", "rms")),
        (dict(kernel_init="tim"), ("kernel_init", "'tim'", "'timm'")),
        (dict(patch=8), ("touch_tiny", "'model.touch.patch'", "'model.touch.patch_size'")),
    ],
)
def test_errors_mention_the_invalid_option(options, facts):
    with raises(UserError, *facts):
        _model({**TOUCH, **options})


def _transformer_macs(tokens, layers, width):
    """Multiply-adds of a Transformer with an MLP of four times the width."""
    return layers * (tokens * 12 * width**2 + 2 * tokens**2 * width)


def test_named_towers_have_the_expected_output_width_and_flops():
    for name, shape, dtype, macs in (
        ("touch_tiny", (32, 32, 3), "float32", 16 * 192 * 128 + _transformer_macs(17, 4, 128)),
        ("clip_vit_tiny", (32, 32, 3), "float32", 16 * 192 * 128 + _transformer_macs(17, 4, 128)),
        (
            "vit_tiny_patch16_224",
            (224, 224, 3),
            "float32",
            196 * 768 * 192 + _transformer_macs(197, 12, 192),
        ),
        (
            "clip_vit_l14",
            (224, 224, 3),
            "float32",
            256 * 588 * 1024 + _transformer_macs(257, 24, 1024),
        ),
        ("clip_text_l14", (77,), "int32", _transformer_macs(77, 12, 768)),
        ("clip_text_b", (77,), "int32", _transformer_macs(77, 12, 512)),
    ):
        module = nnx.eval_shape(lambda name=name: build_tower(name, rngs=nnx.Rngs(0)))
        x = jax.ShapeDtypeStruct((2, *shape), dtype)
        pooled, _ = jax.eval_shape(lambda module, x: module(x), module, x)
        assert pooled.shape == (2, module.out_features)
        assert module.flops(shape) == 2 * (macs + module.cfg.width * module.out_features)
        assert module.input_ndim == len(shape)


@pytest.mark.parametrize("size", [(24, 24), (40, 16)])
def test_the_grid_of_any_size_equals_timm_with_resized_positions(touch, size):
    params, _, _ = touch
    model = _model(TOUCH)
    x = np.random.default_rng(1).normal(size=(2, *size, 3)).astype(np.float32)
    grid = jax.jit(lambda params, x: model.bind(params, {}).feature_maps(x)["grid"])(params, x)
    state = torch_reference.timm_vit_state(num_classes=20, **STATE)
    height, width = size[0] // 8, size[1] // 8
    table = state["pos_embed"][0]
    resized = jax.image.resize(table[1:].reshape(3, 3, 32), (height, width, 32), "cubic")
    positions = np.concatenate([table[:1], np.reshape(resized, (-1, 32))])
    expected = torch_reference.timm_tokens(state | {"pos_embed": positions[None]}, x, 2)[:, 1:]
    assert grid.shape == (2, height, width, 32)
    assert relative_error(grid, expected.reshape(grid.shape)) < 1e-5


def test_parameter_counts_of_image_towers_equal_timm_without_the_classifier():
    for name, expected in (("image_vit_s16", 22_050_664), ("image_vit_b16", 86_567_656)):
        model = _model(name)
        classifier = 1000 * (model.module.out_features + 1)
        assert count(model) == expected - classifier
