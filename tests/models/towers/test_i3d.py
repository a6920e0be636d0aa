"""The I3D video tower against Keras layers and a TensorFlow forward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from flax import nnx

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models.blocks.convolution import ConvolutionConfig, Unit
from mmjax.models.towers import i3d
from mmjax.models.towers.i3d import CONFIGS, I3D, Mixed
from mmjax.state import ModelDef
from tests.messages import raises
from tests.models.blocks.convolution_fixture import (
    TensorFlowUnits,
    check_descent,
    count,
    xla_flops,
)
from tests.random_arrays import random_arrays


def _model(**options):
    return ModelDef(lambda rngs: I3D(rngs=rngs, **options))


def test_number_of_parameters_equals_the_published_one():
    model = _model(**CONFIGS["i3d"])
    assert count(model) == 12_301_824 and model.module.out_features == 1024
    assert count(_model(channels=24)) == 12_301_824 + 7**3 * 21 * 64
    assert {p.split("/")[0] for p in tree.flatten(model.params)} == {
        *("conv_1a", "conv_2b", "conv_2c", "mixed_3b", "mixed_3c", "mixed_4b", "mixed_4c"),
        *("mixed_4d", "mixed_4e", "mixed_4f", "mixed_5b", "mixed_5c"),
    }


@pytest.mark.parametrize("factor", [2, 0.5])
def test_width_multiplier_scales_every_width(factor):
    scaled, plain = (tree.flatten(_model(width_multiplier=f).params) for f in (factor, 1))
    for path, leaf in plain.items():
        shape = tuple(int(n * factor) for n in leaf.shape[-2:])
        if path == "conv_1a/conv/kernel":
            shape = (3, shape[-1])
        assert scaled[path].shape == (*leaf.shape[:-2], *shape), path
    assert _model(width_multiplier=factor).module.out_features == 1024 * factor


def test_width_multiplier_keeps_at_least_one_channel_per_branch():
    model = _model(width_multiplier=0.01)
    assert model.params["mixed_3b"]["b2a"]["conv"]["kernel"].shape == (1, 1, 1, 2, 1)


@pytest.mark.parametrize("size, stride", [(3, 1), (7, 2), (3, 2)])
def test_unit_equals_keras_convolution_batch_norm_and_relu(size, stride):
    x = np.random.default_rng(0).normal(size=(2, 5, 8, 7, 3)).astype(np.float32)
    unit = Unit(
        cfg=ConvolutionConfig(),
        in_features=3,
        out_features=4,
        kernel_size=(size,) * 3,
        strides=(stride,) * 3,
        rngs=nnx.Rngs(0),
    )
    convolution = tf.keras.layers.Conv3D(4, size, stride, "same", use_bias=False)
    norm = tf.keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    norm.build((None, 1, 1, 1, 4))
    rng = np.random.default_rng(1)
    norm.set_weights([rng.uniform(0.5, 1.5, 4) for _ in range(4)])  # gamma, beta, mean, variance
    convolution.build(x.shape)
    unit.conv.kernel[...] = jnp.asarray(convolution.get_weights()[0])
    values = zip(("scale", "bias", "mean", "var"), norm.get_weights(), strict=True)
    for name, value in values:
        getattr(unit.norm, name)[...] = jnp.asarray(value)

    @functools.partial(jax.jit, static_argnames="train")
    def run(unit, train):
        return unit(x, train=train), unit

    for train in (False, True):
        expected = tf.nn.relu(norm(convolution(x), training=train))
        actual, unit = run(unit, train=train)
        np.testing.assert_allclose(actual, expected, atol=2e-5)
    np.testing.assert_allclose(unit.norm.mean[...], norm.moving_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(unit.norm.var[...], norm.moving_variance, rtol=1e-5)


def _mixed(unit, path, x):
    return tf.concat(
        [
            unit(f"{path}b0", x),
            unit(f"{path}b1b", unit(f"{path}b1a", x)),
            unit(f"{path}b2b", unit(f"{path}b2a", x)),
            unit(f"{path}b3", tf.nn.max_pool3d(x, 3, 1, "SAME")),
        ],
        axis=-1,
    )


def test_inception_block_equals_tensorflow():
    cfg, channels = ConvolutionConfig(), (4, 3, 5, 2, 3, 6)
    model = ModelDef(lambda rngs: Mixed(cfg=cfg, in_features=5, channels=channels, rngs=rngs))
    params, extra = random_arrays(model)
    x = np.random.default_rng(1).normal(size=(2, 3, 5, 4, 5)).astype(np.float32)
    actual = jax.jit(lambda x: model.bind(params, extra)(x, train=False))(x)
    expected = _mixed(TensorFlowUnits(params, extra), "", x)
    assert expected.shape[-1] == model.module.out_features == 18
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.fixture(scope="module")
def tiny():
    model = _model(**CONFIGS["i3d_tiny"])
    return model, *random_arrays(model)


def test_tower_in_evaluation_equals_tensorflow(tiny):
    model, params, extra = tiny
    x = np.random.default_rng(1).normal(size=(2, 9, 38, 45, 3)).astype(np.float32)
    unit = TensorFlowUnits(params, extra)
    y = tf.nn.max_pool3d(unit("conv_1a", x, stride=2), (1, 3, 3), (1, 2, 2), "SAME")
    y = unit("conv_2c", unit("conv_2b", y))
    y = tf.nn.max_pool3d(y, (1, 3, 3), (1, 2, 2), "SAME")
    y = _mixed(unit, "mixed_3c/", _mixed(unit, "mixed_3b/", y))
    y = tf.nn.max_pool3d(y, 3, 2, "SAME")
    for letter in "bcdef":
        y = _mixed(unit, f"mixed_4{letter}/", y)
    y = tf.nn.max_pool3d(y, 2, 2, "SAME")
    y = _mixed(unit, "mixed_5c/", _mixed(unit, "mixed_5b/", y))

    pooled, tokens = jax.jit(lambda p, e, x: model.bind(p, e)(x))(params, extra, x)
    assert tokens.shape == (2, 2, 2, 2, 128)
    np.testing.assert_allclose(tokens, y, rtol=1e-3, atol=1e-3 * np.abs(y).max())
    np.testing.assert_allclose(pooled, np.mean(y, (1, 2, 3)), rtol=1e-3, atol=1e-4)


def test_training_computes_gradients_and_updates_statistics(monkeypatch):
    # Compiling all nine blocks would take most of a minute.
    two_blocks = {name: i3d._MIXED[name] for name in ("mixed_3b", "mixed_5c")}
    monkeypatch.setattr(i3d, "_MIXED", two_blocks)
    model = _model(**CONFIGS["i3d_tiny"])
    params, extra = random_arrays(model)
    x = np.random.default_rng(2).normal(size=(3, 8, 32, 32, 3)).astype(np.float32)

    def loss(params):
        module = model.bind(params, extra)
        pooled, _ = module(x, key=jax.random.key(0))
        return (pooled**2).mean(), model.extra_of(module)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, new), gradients = jax.device_get(step(params))
    check_descent(step, params)
    assert jax.tree.structure(new) == jax.tree.structure(extra)
    for path, leaf in tree.flatten(gradients).items():
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
    extra = tree.flatten(jax.device_get(extra))
    for path, leaf in tree.flatten(new).items():
        assert np.abs(leaf - extra[path]).max() > 1e-4, path
    kernel = params["conv_1a"]["conv"]["kernel"]
    mean = tf.nn.conv3d(x, kernel, [1, 2, 2, 2, 1], "SAME").numpy().mean((0, 1, 2, 3))
    expected = 0.9 * extra["conv_1a/norm/mean"] + 0.1 * mean
    np.testing.assert_allclose(new["conv_1a"]["norm"]["mean"], expected, rtol=1e-4, atol=1e-5)


def test_full_remat_covers_the_whole_tower():
    key = jax.random.key(0)
    x = jax.ShapeDtypeStruct((2, 8, 32, 32, 3), "float32")
    for remat in ("none", "full"):
        model = _model(**CONFIGS["i3d_tiny"], remat=remat)

        def run(params, extra, x, model=model):
            module = model.bind(params, extra)
            return module(x, key=key)[0], model.extra_of(module)

        outside = [  # convolutions that are not inside jax.checkpoint
            equation.primitive
            for equation in jax.make_jaxpr(run)(model.params, model.extra, x).eqns
            if equation.primitive is jax.lax.conv_general_dilated_p
        ]
        assert len(outside) == (0 if remat == "full" else 57)


def test_flops_equal_xla_count():
    # XLA excludes products with padding and includes normalization; both are small here.
    model, shape = _model(), (128, 512, 512, 3)
    flops = model.module.flops(shape)
    np.testing.assert_allclose(flops, xla_flops(model, shape), rtol=0.03)
    assert flops == model.module.flops(shape, train=True)
    assert flops == _model(remat="full").module.flops(shape)


def test_error_mentions_the_shape_of_an_invalid_input(tiny):
    model, params, extra = tiny
    for shape in ((1, 4, 32, 32, 24), (4, 32, 32, 3)):
        with raises(UserError, "I3D", shape[1:], "(T, H, W, 3 channels)"):
            model.bind(params, extra)(np.zeros(shape, np.float32))
