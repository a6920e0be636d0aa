"""Options, sizes and training of segmentation models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.inputs import InputError
from mmjax.models.segmentation.registry import (
    SegmentationModel,
    SegmentationOutput,
    build_segmentation,
)
from mmjax.state import ModelDef
from tests.messages import raises
from tests.random_arrays import random_arrays

_RESNET = dict(blocks=(1, 1, 1, 1), width_multiplier=1 / 16, width=8)
SMALL = {
    "lraspp": dict(name="lraspp_demo"),
    "deeplab_resnet": dict(name="deeplabv3_resnet18", **_RESNET),
}
KEY = jax.random.key(3)


def _model(name, **options):
    options = {**SMALL[name], "num_classes": 4, **options}
    return ModelDef(lambda rngs: build_segmentation(rngs=rngs, **options))


def _images(count, height=33, width=41):
    return np.random.default_rng(0).normal(size=(count, height, width, 3)).astype(np.float32)


def _run(model, params, extra, x, *, train=False, key=None):
    """Returns the output and the new statistics."""

    def run(params, extra, x):
        module = model.bind(params, extra)
        return module(x, train=train, key=key), model.extra_of(module)

    return jax.jit(run)(params, extra, x)


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    """A small model of each class, its arrays, and its output for two images."""
    model = _model(request.param)
    arrays = random_arrays(model)
    return request.param, model, arrays, _run(model, *arrays, _images(2))[0]


def test_outputs_do_not_depend_on_the_other_images_of_a_batch(small):
    name, model, arrays, output = small
    assert output.logits.shape == (2, 33, 41, 4) and output.logits.dtype == jnp.float32
    assert output.bottleneck.shape[-1] == model.module.bottleneck_width
    single, extra = _run(model, *arrays, _images(2)[1:])
    np.testing.assert_allclose(single.logits[0], output.logits[1], rtol=2e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, extra, arrays[1])


def test_bfloat16_computes_logits_in_float32(small):
    name, _, arrays, expected = small
    output, _ = _run(_model(name, dtype="bfloat16"), *arrays, _images(2))
    assert output.logits.dtype == jnp.float32 and output.bottleneck.dtype == jnp.bfloat16
    scale = float(jnp.abs(expected.logits).max())
    np.testing.assert_allclose(output.logits / scale, expected.logits / scale, atol=0.05)


def test_training_updates_statistics_unless_they_are_frozen(small):
    name, model, (params, extra), expected = small
    _, updated = _run(model, params, extra, _images(2), train=True)
    changes = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), extra, updated)
    assert min(jax.tree.leaves(changes)) > 0
    frozen = _model(name, batch_norm="frozen", dropout=False)
    output, kept = _run(frozen, params, extra, _images(2), train=True, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, extra, kept)
    np.testing.assert_allclose(output.logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_dropout_can_be_disabled():
    frozen = dict(batch_norm="frozen")
    arrays = random_arrays(_model("deeplab_resnet"))
    x, results = _images(1, 16, 16), {}
    for dropout in (True, False):
        model = _model("deeplab_resnet", dropout=dropout, **frozen)
        results[dropout] = [
            _run(model, *arrays, x, train=train, key=KEY)[0].logits for train in (True, False)
        ]
    assert np.abs(results[True][0] - results[True][1]).max() > 1e-3
    np.testing.assert_allclose(results[False][0], results[False][1], rtol=1e-5)


def test_all_parameters_get_gradients(small):
    _, model, (params, extra), _ = small
    x = _images(2)

    def loss(params):
        return (model.bind(params, extra)(x, train=True, key=KEY).logits ** 2).mean()

    gradients = jax.jit(jax.grad(loss))(params)
    norms = jax.tree.map(lambda g: float(jnp.abs(g).max()), gradients)
    assert 0 < min(jax.tree.leaves(norms)) <= max(jax.tree.leaves(norms)) < np.inf


@pytest.mark.parametrize(
    "name, size, bottleneck",
    [
        ("lraspp_mobilenet_v3_large", 520, (33, 33, 960)),
        ("deeplabv3_mobilenet_v3_large", 520, (33, 33, 960)),
        ("deeplabv3_resnet18", 520, (65, 65, 512)),
        ("deeplabv3_resnet34", 520, (65, 65, 512)),
        ("deeplabv3_resnet50", 384, (48, 48, 2048)),
        ("lraspp_demo", 64, (8, 8, 96)),
    ],
)
def test_bottleneck_at_the_size_of_the_model(name, size, bottleneck):
    module = ModelDef(lambda rngs: build_segmentation(name, rngs=rngs)).module
    assert module.image_size == size and module.bottleneck_width == bottleneck[-1]
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    output = jax.eval_shape(lambda module, x: module(x), module, x)
    assert output.logits.shape == (2, size, size, 21)
    assert output.bottleneck.shape == (2, *bottleneck)
    aux = module.num_classes if name == "deeplabv3_mobilenet_v3_large" else None
    assert (output.aux.shape[-1] if aux else output.aux) == aux


def test_lraspp_has_both_maps_at_the_sizes_of_torchvision():
    backbone = ModelDef(lambda r: build_segmentation("lraspp_mobilenet_v3_large", rngs=r)).module
    x = jax.ShapeDtypeStruct((1, 520, 520, 3), jnp.float32)
    low, high = jax.eval_shape(lambda module, x: module.backbone(x, train=False), backbone, x)
    assert low.shape == (1, 65, 65, 40) and high.shape == (1, 33, 33, 960)


def test_auxiliary_head_is_optional():
    model = ModelDef(
        lambda rngs: build_segmentation("deeplabv3_mobilenet_v3_large", aux_head=False, rngs=rngs)
    )
    assert "aux_head" not in model.params
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    assert jax.eval_shape(lambda module, x: module(x), model.module, x).aux is None


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 0, 32, 3), (1, 32, 32, 4)])
def test_error_for_images_with_other_axes(shape):
    model = _model("lraspp")
    with raises(InputError, "(B, H, W, 3)", shape):
        jax.eval_shape(lambda m, x: m(x), model.module, jax.ShapeDtypeStruct(shape, "float32"))


def test_deeplab_needs_two_images_to_train():
    for options in (dict(), dict(batch_norm="frozen")):
        module = _model("deeplab_resnet", **options).module
        x = jax.ShapeDtypeStruct((1, 16, 16, 3), "float32")

        def train(module, x):
            return module(x, train=True).logits

        if options:
            assert jax.eval_shape(train, module, x).shape == (1, 16, 16, 4)
        else:
            with raises(InputError, "two images", "batch_norm='frozen'"):
                jax.eval_shape(train, module, x)


def test_flops_grow_with_the_area():
    module = _model("lraspp").module
    small, large = (module.flops((size, size, 3)) for size in (32, 64))
    assert 3.9 < large / small < 4.1


class MeanColor(SegmentationModel):
    """A model that predicts from the color of a pixel."""

    bottleneck_width = 3

    def __init__(self, *, rngs, **options):
        super().__init__(**options)
        self.head = nnx.Linear(3, self.num_classes, rngs=rngs)

    def forward(self, x, *, train, key):
        return self.head(x), x[:, ::2, ::2], None


def test_classes_of_other_packages_are_accepted():
    name = f"{__name__}:MeanColor"
    model = build_segmentation(name, num_classes=7, rngs=nnx.Rngs(0))
    output = model(_images(1))
    assert isinstance(output, SegmentationOutput) and output.logits.shape == (1, 33, 41, 7)
    with raises(UserError, "config.model.name", "SegmentationModel"):
        build_segmentation("flax.nnx:Linear", rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(name="lrasp_demo"), ("config.model.name", "lraspp_demo")),
        (dict(name="lraspp_demo", aux_head=True), ("model.aux_head", "lraspp_demo")),
        (dict(name="lraspp_demo", num_classes=0), ("config.model", "num_classes", 0)),
        (dict(name="lraspp_demo", batch_norm="off"), ("config.model.batch_norm", "off", "frozen")),
        (dict(name="lraspp_demo", low=3), ("config.model", "low", 3)),
        (dict(name="lraspp_demo", dtype="float33"), ("dtype", "float33")),
    ],
)
def test_errors_mention_the_option(options, facts):
    with raises(UserError, *facts):
        build_segmentation(rngs=nnx.Rngs(0), **options)
