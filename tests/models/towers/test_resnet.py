"""ResNets over spectrograms and frames against a TensorFlow forward pass."""

import jax
import numpy as np
import pytest
import tensorflow as tf

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models.blocks.convolution import ConvolutionConfig
from mmjax.models.towers.resnet import (
    RESNET_CONFIGS,
    TSM_CONFIGS,
    Bottleneck,
    ResNet2D,
    TemporalShiftResNet,
    temporal_shift,
)
from mmjax.state import ModelDef
from tests.messages import raises
from tests.models.blocks.convolution_fixture import (
    TensorFlowUnits,
    check_training,
    count,
    xla_flops,
)
from tests.random_arrays import random_arrays


def _model(name, **options):
    tower, configs = (
        (ResNet2D, RESNET_CONFIGS) if name in RESNET_CONFIGS else (TemporalShiftResNet, TSM_CONFIGS)
    )
    return ModelDef(lambda rngs: tower(rngs=rngs, **{**configs[name], **options}))


def _expected_count(blocks, channels, factor=1):
    """Returns the number of parameters and statistics of a ResNet, summed over groups."""
    width = lambda n: round(n * factor)  # noqa: E731
    total, fan_in = 49 * channels * width(64) + 4 * width(64), width(64)
    for g, num_blocks in enumerate(blocks):
        inner, outer = width(64 * 2**g), 4 * width(64 * 2**g)
        first = fan_in * inner + fan_in * outer + 4 * outer
        others = (num_blocks - 1) * outer * inner
        every = num_blocks * (9 * inner**2 + inner * outer + 4 * (2 * inner + outer))
        total, fan_in = total + first + others + every, outer
    return total


@pytest.mark.parametrize(
    "name, expected, width",
    [
        ("resnet2d_50", 23_554_880, 2048),  # VATT's
        ("resnet2d_101", _expected_count((3, 4, 23, 3), 1), 2048),
        ("tsm_50", _expected_count((3, 4, 6, 3), 3), 2048),
        ("tsm_50x2", _expected_count((3, 4, 6, 3), 3, 2), 4096),
    ],
)
def test_number_of_parameters(name, expected, width):
    model = _model(name)
    assert count(model) == expected and model.module.out_features == width


def test_parameter_paths_equal_those_of_the_converter():
    paths = set(tree.flatten(_model("resnet2d_50").params))
    assert {p.split("/")[0] for p in paths} == {"stem", "groups"}
    units = {p.removesuffix("/conv/kernel") for p in paths if p.endswith("conv/kernel")}
    expected = {"stem"} | {
        f"groups/{g}/{j}/{unit}"
        for g, num_blocks in enumerate((3, 4, 6, 3))
        for j in range(num_blocks)
        for unit in ("shortcut", "reduce", "spatial", "expand")
        if unit != "shortcut" or j == 0
    }
    assert units == expected


def test_blocks_are_initialized_as_the_identity():
    params, _ = jax.jit(_model("resnet2d_tiny", blocks=(2,)).init)(jax.random.key(0))
    block = params["groups"]["0"]["1"]
    assert not block["expand"]["norm"]["scale"].any() and block["spatial"]["norm"]["scale"].all()
    first, second = block["reduce"]["conv"]["kernel"], block["expand"]["conv"]["kernel"]
    assert first.std() > 0.1 and second.std() > 0.1
    assert params["groups"]["0"]["0"]["shortcut"]["norm"]["scale"].all()


def _shift(x, num_frames):
    """Reference temporal shift over [N · T, H, W, C], one frame and one channel at a time."""
    x = np.asarray(x).reshape(-1, num_frames, *x.shape[1:])
    y = x.copy()
    for c in range(x.shape[-1] // 8 * 2):
        source = -1 if c < x.shape[-1] // 8 else 1
        for t in range(num_frames):
            inside = 0 <= t + source < num_frames
            y[:, t, ..., c] = x[:, t + source, ..., c] if inside else 0
    return y.reshape(-1, *x.shape[2:])


@pytest.mark.parametrize("num_frames, channels", [(5, 16), (1, 8), (2, 27)])
def test_temporal_shift_equals_reference(num_frames, channels):
    x = np.random.default_rng(0).normal(size=(2, num_frames, 3, 2, channels)).astype(np.float32)
    expected = _shift(x.reshape(-1, *x.shape[2:]), num_frames).reshape(x.shape)
    np.testing.assert_array_equal(temporal_shift(x), expected)


def _bottleneck(unit, path, x, *, stride=1, project=False, num_frames=0):
    """A block in TensorFlow: strided convolutions are padded explicitly, others are SAME."""
    y = unit(f"{path}reduce", _shift(x, num_frames) if num_frames else x)
    if stride > 1:
        y = unit(f"{path}spatial", tf.pad(y, [[0, 0], [1, 1], [1, 1], [0, 0]]), stride=stride,
                 padding="VALID")  # fmt: skip
    else:
        y = unit(f"{path}spatial", y)
    y = unit(f"{path}expand", y, relu=False)
    if project:
        x = unit(f"{path}shortcut", x, stride=stride, padding="VALID", relu=False)
    return tf.nn.relu(x + y)


@pytest.mark.parametrize("stride, project", [(2, True), (1, True), (1, False)])
@pytest.mark.parametrize("num_frames", [0, 3])
def test_bottleneck_equals_tensorflow(stride, project, num_frames):
    options = dict(stride=stride, project=project, shift=num_frames > 0)
    model = ModelDef(
        lambda rngs: Bottleneck(
            cfg=ConvolutionConfig(), in_features=16, features=4, rngs=rngs, **options
        )
    )
    params, extra = random_arrays(model)
    leading = (2, num_frames) if num_frames else (2,)
    x = np.random.default_rng(1).normal(size=(*leading, 7, 6, 16)).astype(np.float32)
    unit, frames = TensorFlowUnits(params, extra), x.reshape(-1, 7, 6, 16)
    options = dict(stride=stride, project=project, num_frames=num_frames)
    expected = _bottleneck(unit, "", frames, **options)
    actual = jax.jit(lambda x: model.bind(params, extra)(x, train=False))(x)
    np.testing.assert_allclose(actual.reshape(expected.shape), expected, atol=2e-5)


@pytest.mark.parametrize(
    "name, shape, grid", [("resnet2d_tiny", (45, 66), (2, 3)), ("tsm_tiny", (3, 37, 40, 3), (2, 2))]
)
def test_tower_in_evaluation_equals_tensorflow(name, shape, grid):
    model = _model(name)
    params, extra = random_arrays(model)
    x = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    unit, num_frames = TensorFlowUnits(params, extra), 3 if name == "tsm_tiny" else 0
    y = x.reshape(-1, *shape[1:]) if num_frames else x[..., None]
    y = tf.pad(y, [[0, 0], [3, 3], [3, 3], [0, 0]])
    y = tf.nn.max_pool2d(unit("stem", y, stride=2, padding="VALID"), 3, 2, "SAME")
    for g, num_blocks in enumerate((2, 1, 1, 1)):
        for j in range(num_blocks):
            options = dict(stride=2 if g and not j else 1, project=j == 0, num_frames=num_frames)
            y = _bottleneck(unit, f"groups/{g}/{j}/", y, **options)

    pooled, tokens = jax.jit(lambda p, e, x: model.bind(p, e)(x))(params, extra, x)
    assert tokens.shape == (2, *([3] if num_frames else []), *grid, 256)
    y = y.numpy().reshape(tokens.shape)
    np.testing.assert_allclose(tokens, y, rtol=1e-3, atol=1e-4 * np.abs(y).max())
    expected = y.mean(tuple(range(1, y.ndim - 1)))
    np.testing.assert_allclose(pooled, expected, rtol=1e-3, atol=1e-4 * np.abs(y).max())


def test_training_gradients_and_statistics_do_not_depend_on_remat():
    x = np.random.default_rng(2).normal(size=(3, 20, 64)).astype(np.float32)
    build = lambda remat: _model("resnet2d_tiny", blocks=(1, 1), remat=remat)  # noqa: E731
    check_training(build, x, atol=1e-5)


@pytest.mark.parametrize(
    "name, shape", [("resnet2d_50", (1000, 1000)), ("tsm_50", (4, 512, 512, 3))]
)
def test_flops_equal_xla_count(name, shape):
    # XLA excludes products with padding and includes normalization; both are small here.
    model = _model(name)
    np.testing.assert_allclose(model.module.flops(shape), xla_flops(model, shape), rtol=0.03)


def test_flops_of_one_image_equal_published_count():
    # He et al. report 3.8e9 multiply-adds with the stride in the 1×1; in the 3×3 it is 4.09e9.
    assert round(_model("tsm_50").module.flops((1, 224, 224, 3)) / 2e9, 2) == 4.09


def test_errors_mention_the_invalid_option_or_input():
    with raises(UserError, "width_multiplier", 0.11, 0.125):
        _model("tsm_50", width_multiplier=0.11)
    with raises(UserError, "blocks", (), 1):
        _model("resnet2d_50", blocks=())
    model = _model("resnet2d_tiny", blocks=(1,))
    with raises(UserError, "ResNet2D", (640,), "(frames, bins)"):
        model.bind(*random_arrays(model))(np.zeros((2, 640), np.float32))
