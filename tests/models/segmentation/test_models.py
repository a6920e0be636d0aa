"""Options, sizes and training of segmentation models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax import tree
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
    "fpn": dict(name="fpn_resnet18", pyramid_width=8, **(_RESNET | dict(width=32))),
    "segformer": dict(
        name="segformer_mit_b0",
        widths=(8, 8, 16, 16),
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 2, 4),
        reductions=(2, 2, 1, 1),
        mlp_ratio=2,
        width=8,
    ),
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


def test_training_updates_statistics_and_all_parameters(small):
    _, model, (params, extra), _ = small

    def loss(params):
        module = model.bind(params, extra)
        output = module(_images(2), train=True, key=KEY)
        return (output.logits**2).mean(), model.extra_of(module)

    gradients, updated = jax.jit(jax.grad(loss, has_aux=True))(params)
    for path, gradient in tree.flatten(gradients).items():
        largest = float(jnp.abs(gradient).max())
        # Softmax does not depend on the bias of keys.
        assert np.isfinite(largest) and (largest > 0 or path.endswith("key/bias")), path
    changes = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), extra, updated)
    assert min(jax.tree.leaves(changes)) > 0


def test_frozen_statistics_are_used_and_kept_in_training(small):
    name, _, arrays, expected = small
    model = _model(name, batch_norm="frozen", dropout=False)
    output, kept = _run(model, *arrays, _images(2), train=True, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, arrays[1], kept)
    np.testing.assert_allclose(output.logits, expected.logits, rtol=1e-4, atol=1e-5)


def test_batch_norm_has_the_momentum_of_pytorch():
    module = ModelDef(lambda r: build_segmentation("deeplabv3_mobilenet_v3_large", rngs=r)).module
    norms = (module.backbone.stem.norm, module.head.hidden.norm)
    assert [(norm.momentum, norm.epsilon) for norm in norms] == [(0.99, 1e-3), (0.9, 1e-5)]
    demo = _model("lraspp").module  # learns in few steps
    assert demo.backbone.blocks["0"].project.norm.momentum == 0.9


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


@pytest.mark.parametrize(
    "name, size, bottleneck",
    [
        ("lraspp_mobilenet_v3_large", 520, (33, 33, 960)),
        ("deeplabv3_mobilenet_v3_large", 520, (33, 33, 960)),
        ("deeplabv3_resnet18", 520, (65, 65, 512)),
        ("deeplabv3_resnet34", 520, (65, 65, 512)),
        ("deeplabv3_resnet50", 384, (48, 48, 2048)),
        ("fpn_resnet18", 512, (16, 16, 512)),
        ("fpn_resnet34", 512, (16, 16, 512)),
        ("segformer_mit_b0", 512, (16, 16, 256)),
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


def test_segformer_has_a_smallest_size():
    module = ModelDef(lambda rngs: build_segmentation("segformer_mit_b0", rngs=rngs)).module
    for size, fits in ((29, True), (28, False)):
        x = jax.ShapeDtypeStruct((1, size, 64, 3), "float32")
        if fits:
            output = jax.eval_shape(lambda m, x: m(x), module, x)
            assert output.logits.shape == (1, size, 64, 21)
        else:
            with raises(InputError, "SegFormer", "29 × 29", (1, 28, 64, 3)):
                jax.eval_shape(lambda m, x: m(x), module, x)


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


@pytest.mark.parametrize(
    "name, size, num_classes, multiply_adds",
    [
        ("lraspp_mobilenet_v3_large", 520, 21, 2.09),  # of torchvision
        ("deeplabv3_mobilenet_v3_large", 520, 21, 10.45),
        ("segformer_mit_b0", 512, 150, 8.4),  # of the paper
    ],
)
def test_flops_are_twice_the_published_multiply_adds(name, size, num_classes, multiply_adds):
    build = lambda rngs: build_segmentation(name, num_classes=num_classes, rngs=rngs)  # noqa: E731
    flops = ModelDef(build).module.flops((size, size, 3))
    assert flops / 2e9 == pytest.approx(multiply_adds, rel=0.005)


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
        (dict(name="fpn_resnet18", width=48), ("config.model", "width", 48, 32)),
        (dict(name="segformer_mit_b0", depths=(2, 2)), ("config.model", "depths", (2, 2))),
        (dict(name="segformer_mit_b0", num_heads=(1, 3, 5, 8)), ("num_heads", 64, 3)),
    ],
)
def test_errors_mention_the_option(options, facts):
    with raises(UserError, *facts):
        build_segmentation(rngs=nnx.Rngs(0), **options)
