"""ResNets over single images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models.towers.registry import build_tower
from mmjax.state import ModelDef
from tests.messages import raises
from tests.models import torch_reference, torch_weights
from tests.models.blocks.convolution_fixture import count
from tests.models.vatt_fixture import relative_error
from tests.random_arrays import random_arrays

BASIC = dict(name="resnet18", width_multiplier=0.125, projection=20)
BOTTLENECK = dict(name="resnet50", width_multiplier=0.125, blocks=(1, 2, 1, 1))


def _model(spec):
    return ModelDef(lambda rngs: build_tower(spec, rngs=rngs))


def _images(*sizes, count=2):
    return np.random.default_rng(0).normal(size=(count, *sizes, 3)).astype(np.float32)


def _num_statistics(model):
    return sum(leaf.size for leaf in jax.tree.leaves(model.extra))


def test_parameter_counts_equal_torchvision():
    model = _model("resnet18")
    assert count(model) - _num_statistics(model) == 11_570_496
    model = _model("resnet50")
    assert count(model) - _num_statistics(model) == 25_557_032 - (2048 * 1000 + 1000) == 23_508_032
    assert _num_statistics(model) == 2 * 26_560


@pytest.mark.parametrize("sizes", [(64, 64), (45, 62)])
@pytest.mark.parametrize("spec", [BASIC, BOTTLENECK])
def test_tower_equals_torchvision(spec, sizes):
    bottleneck = spec is BOTTLENECK
    state = torch_reference.torch_resnet_state(
        blocks=spec.get("blocks", (2, 2, 2, 2)),
        bottleneck=bottleneck,
        width=8,
        num_classes=spec.get("projection", 0),
    )
    model = _model(spec)
    params, extra = torch_weights.torch_resnet(state)
    assert tree.flatten(params).keys() == tree.flatten(model.params).keys()
    assert tree.flatten(extra).keys() == tree.flatten(model.extra).keys()
    x = _images(*sizes)
    pooled, tokens = jax.jit(lambda params, x: model.bind(params, extra)(x))(params, x)
    assert tokens.shape == (2, 2, 2, 256 if bottleneck else 64)
    assert pooled.dtype == jnp.float32 and pooled.shape == (2, model.module.out_features)
    assert relative_error(pooled, torch_reference.torch_resnet(state, x)) < 1e-5


def test_training_uses_batch_statistics_and_updates_running_ones():
    model = _model(dict(BASIC, blocks=(1,), drop_rate=0.5))
    params, extra = random_arrays(model)
    x = _images(16, 16, count=3)

    def forward(key):
        module = model.bind(params, extra)
        pooled, _ = module(x, key=key)
        return pooled, model.extra_of(module)

    run = jax.jit(lambda seed: forward(jax.random.key(seed)))

    pooled, changed = run(0)
    kernel = np.asarray(params["stem"]["conv"]["kernel"], np.float64).transpose(3, 2, 0, 1)
    y = torch_reference.convolve(np.float64(x), kernel, stride=2, pad=3)
    statistics = changed["stem"]["norm"]
    before = jax.device_get(extra["stem"]["norm"])
    mean, var = (
        0.9 * before["mean"] + 0.1 * y.mean((0, 1, 2)),
        0.9 * before["var"] + 0.1 * y.var((0, 1, 2)),
    )
    np.testing.assert_allclose(statistics["mean"], mean, atol=1e-5)
    np.testing.assert_allclose(statistics["var"], var, rtol=1e-4)
    assert np.abs(pooled - run(1)[0]).max() > 1e-3  # dropout

    _, evaluated = jax.jit(lambda: forward(None))()
    for a, b in zip(jax.tree.leaves(extra), jax.tree.leaves(evaluated), strict=True):
        np.testing.assert_array_equal(a, b)


def test_initial_values_equal_torchvision():
    model = _model(dict(name="resnet18", width_multiplier=0.5))
    params, _ = jax.jit(model.init)(jax.random.key(0))
    block = params["groups"]["2"]["1"]
    np.testing.assert_allclose(
        np.std(block["first"]["conv"]["kernel"]), np.sqrt(2 / (9 * 128)), rtol=0.02
    )
    np.testing.assert_array_equal(block["first"]["norm"]["scale"], 1)
    np.testing.assert_array_equal(block["second"]["norm"]["scale"], 0)
    for leaf in params["projection"].values():
        assert 0.9 * 256**-0.5 < np.abs(leaf).max() <= 256**-0.5


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("spec", [BASIC, BOTTLENECK])
def test_zero_init_last_sets_the_initial_scale_of_the_last_norm(spec, zero):
    model = _model(dict(spec, zero_init_last=zero))
    params, _ = jax.jit(model.init)(jax.random.key(0))
    last = "third" if spec is BOTTLENECK else "second"
    for path, leaf in tree.flatten(params).items():
        if path.endswith("norm/scale"):
            np.testing.assert_array_equal(leaf, 0 if zero and f"/{last}/" in path else 1)


@pytest.mark.parametrize(
    "name, features, macs", [("resnet18", 512, 1_814_073_344), ("resnet50", 2048, 4_089_184_256)]
)
def test_flops_equal_published_counts(name, features, macs):
    module = _model(dict(name=name, projection=1000)).module
    assert module.flops((224, 224, 3)) == 2 * macs
    bare = _model(dict(name=name, projection=0)).module
    assert bare.flops((224, 224, 3)) == 2 * (macs - features * 1000)


def test_remat_and_bfloat16_are_supported():
    spec = dict(BASIC, blocks=(1, 1))
    model, exact = _model(dict(spec, remat="full", dtype="bfloat16")), _model(spec)
    params, extra = random_arrays(model)
    x = _images(16, 16)
    run = lambda model: jax.jit(lambda x: model.bind(params, extra)(x))(x)  # noqa: E731
    pooled, tokens = run(model)
    assert pooled.dtype == jnp.float32 and tokens.dtype == jnp.bfloat16
    assert 1e-4 < relative_error(pooled, run(exact)[0]) < 0.05

    def convolutions(model):  # those that are not inside jax.checkpoint
        jaxpr = jax.make_jaxpr(lambda x: model.bind(params, extra)(x))(x)
        return sum(e.primitive is jax.lax.conv_general_dilated_p for e in jaxpr.eqns)

    assert convolutions(model) == 0
    assert convolutions(exact) == 1 + 2 + 3  # stem, first block, second block with a shortcut


def test_errors_mention_the_invalid_option_or_input():
    with raises(UserError, "drop_rate", "[0, 1)"):
        _model(dict(BASIC, drop_rate=1))
    with raises(UserError, "resnet18", "'model.touch.projektion'", "'model.touch.projection'"):
        _model(dict(BASIC, projektion=1))
    module = _model(BASIC).module
    with raises(UserError, "ImageResNet", (16, 16, 4), "(H, W, 3 channels)"):
        jax.eval_shape(module, jax.ShapeDtypeStruct((1, 16, 16, 4), "float32"))
