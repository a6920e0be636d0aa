"""MobileNetV2 over single images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models.blocks.inverted_residual import round_channels
from mmjax.models.towers.mobilenet import GROUPS
from mmjax.models.towers.registry import TOWERS, build_tower
from mmjax.state import ModelDef
from tests.messages import raises
from tests.models import torch_reference
from tests.models.blocks.convolution_fixture import (
    TensorFlowUnits,
    check_training,
    count,
)
from tests.models.vatt_fixture import relative_error
from tests.random_arrays import random_arrays

SMALL_GROUPS = ((1, 8, 1, 1), (6, 16, 2, 2), (3, 16, 1, 1), (2, 24, 1, 2))
SMALL = dict(name="mobilenet_v2", groups=SMALL_GROUPS, stem=16, head=40)
STRIDES = (1, 2, 1, 1, 2)


def _model(spec):
    return ModelDef(lambda rngs: build_tower(spec, rngs=rngs))


def _images(*sizes):
    return np.random.default_rng(0).normal(size=(2, *sizes, 3)).astype(np.float32)


def test_parameter_count_and_flops_equal_torchvision():
    model = _model("mobilenet_v2")
    assert TOWERS["mobilenet_v2"][0] == "image" and model.module.out_features == 1280
    statistics = sum(leaf.size for leaf in jax.tree.leaves(model.extra))
    assert count(model) - statistics == 3_504_872 - 1000 * 1281 == 2_223_872
    assert statistics == 2 * 17_056
    # The published 300.774e6 multiply-adds include the classifier.
    assert model.module.flops((224, 224, 3)) == 2 * (300_774_272 - 1000 * 1280)


@pytest.mark.parametrize(
    "channels, rounded", [(32 * 0.35, 16), (96 * 0.75, 72), (24 * 1.4, 32), (3, 8), (160 * 0.5, 80)]
)
def test_channels_are_rounded_to_multiples_of_eight(channels, rounded):
    assert round_channels(channels) == rounded


@pytest.mark.parametrize("width, widths", [(0.5, (8, 16, 16, 32, 48, 80, 160)), (1.0, None)])
def test_width_multiplier_scales_the_groups_but_not_the_head(width, widths):
    module = _model(dict(name="mobilenet_v2", width_multiplier=width)).module
    actual = tuple(module.groups[str(g)]["0"].project.conv.out_features for g in range(len(GROUPS)))
    assert actual == (widths or tuple(channels for _, channels, *_ in GROUPS))
    assert module.out_features == 1280


@pytest.mark.parametrize("sizes", [(32, 32), (27, 46)])
def test_tower_equals_torchvision(sizes):
    state = torch_reference.torch_mobilenet_state(groups=SMALL_GROUPS, stem=16, head=40)
    model = _model(SMALL)
    names = iter(n.removesuffix(".weight") for n, x in state.items() if x.ndim == 4)
    leaves, groups = {}, [(g, j) for g, (_, _, n, _) in enumerate(SMALL_GROUPS) for j in range(n)]

    def put(path):
        name = next(names)
        index = int(name.rsplit(".", 1)[1]) + 1  # the norm follows its convolution
        norm = f"{name.rsplit('.', 1)[0]}.{index}"
        leaves[f"{path}/conv/kernel"] = state[f"{name}.weight"].transpose(2, 3, 1, 0)
        norms = dict(scale="weight", bias="bias", mean="running_mean", var="running_var")
        for ours, theirs in norms.items():
            leaves[f"{path}/norm/{ours}"] = state[f"{norm}.{theirs}"]

    put("stem")
    for g, j in groups:
        for part in ("expand", "depthwise", "project"):
            if part != "expand" or SMALL_GROUPS[g][0] > 1:
                put(f"groups/{g}/{j}/{part}")
    put("head")
    assert next(names, None) is None
    assert leaves.keys() == (tree.flatten(model.params) | tree.flatten(model.extra)).keys()
    params, extra = (
        tree.map_named(lambda path, leaf: jnp.asarray(leaves[path]), part)
        for part in (model.params, model.extra)
    )
    x = _images(*sizes)
    pooled, tokens = jax.jit(lambda x: model.bind(params, extra)(x))(x)
    assert pooled.dtype == jnp.float32 and tokens.shape[0] == 2 and tokens.shape[-1] == 40
    assert relative_error(pooled, torch_reference.torch_mobilenet(state, x, STRIDES)) < 1e-5


def test_activations_are_clipped_at_six():
    model = _model(SMALL)
    params, extra = random_arrays(model)
    unit = TensorFlowUnits(params, extra)
    x = 40 * _images(16, 16)
    plain = unit("stem", np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), stride=2, padding="VALID")
    assert plain.numpy().max() > 6
    tokens = jax.jit(lambda p, x: model.bind(p, extra)(x)[1])(params, x)
    assert tokens.max() <= 6


def test_initial_values_equal_torchvision():
    params, _ = jax.jit(_model(dict(SMALL, head=640)).init)(jax.random.key(0))
    block = params["groups"]["1"]["0"]
    for part, fan_out in (("expand", 48), ("depthwise", 9 * 48), ("project", 16)):
        kernel = np.asarray(block[part]["conv"]["kernel"])
        assert abs(kernel.std() / np.sqrt(2 / fan_out) - 1) < 0.15, part
        np.testing.assert_array_equal(block[part]["norm"]["scale"], 1)


def test_training_gradients_and_statistics_do_not_depend_on_remat():
    build = lambda remat: _model(dict(SMALL, remat=remat))  # noqa: E731
    check_training(build, _images(16, 16), atol=1e-4)


@pytest.mark.parametrize("groups", [(), ((1, 8, 1),), ((1, 8, 0, 1),)])
def test_error_mentions_invalid_groups(groups):
    with raises(UserError, "groups", groups):
        _model(dict(SMALL, groups=groups))


def test_feature_maps_are_the_last_of_each_resolution():
    model = ModelDef(lambda rngs: build_tower("mobilenet_v2", rngs=rngs))
    x = jax.ShapeDtypeStruct((2, 65, 96, 3), "float32")
    maps = jax.eval_shape(lambda module, x: module.feature_maps(x), model.module, x)
    assert {name: y.shape for name, y in maps.items()} == {
        "conv": (2, 33, 48, 16),
        "block1": (2, 17, 24, 24),
        "block2": (2, 9, 12, 32),
        "block3": (2, 5, 6, 96),
        "block4": (2, 3, 3, 320),
    }
