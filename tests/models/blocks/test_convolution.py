"""Units, options and rematerialization shared by the convolutional towers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.convolution import ConvolutionConfig, Unit, convolution_flops, draw_kernels
from mmjax.models.towers.i3d import Mixed
from mmjax.models.towers.resnet import Bottleneck
from mmjax.state import ModelDef
from tests.messages import raises
from tests.random_arrays import random_arrays


def _unit(size=(1, 1), **options):
    cfg = ConvolutionConfig(**options)
    return Unit(cfg=cfg, in_features=1, out_features=1, kernel_size=size, rngs=nnx.Rngs(0))


def test_bfloat16_keeps_statistics_and_normalization_in_float32():
    unit = _unit(dtype="bfloat16", param_dtype="bfloat16")
    unit.conv.kernel[...] = jnp.ones((1, 1, 1, 1), "bfloat16")
    unit.norm.mean[...] = jnp.float32([0.999])  # rounds to 1 in bfloat16
    y = unit(jnp.ones((1, 2, 2, 1)), train=False)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype("float32"), 0.001, rtol=1e-2)

    x = jnp.asarray([1.0, 1.0078125], "bfloat16").reshape(2, 1, 1, 1)
    unit(x, train=True)
    assert unit.norm.mean.dtype == unit.norm.var.dtype == jnp.float32
    np.testing.assert_allclose(unit.norm.mean[...], 0.9 * 0.999 + 0.1 * 1.00390625, rtol=1e-6)
    np.testing.assert_allclose(unit.norm.var[...], 0.9 + 0.1 * 0.00390625**2, rtol=1e-6)


def _mixed(cfg, rngs):
    return Mixed(cfg=cfg, in_features=6, channels=(4, 3, 5, 2, 3, 4), rngs=rngs)


def _bottleneck(cfg, rngs):
    options = dict(in_features=8, features=4, stride=2, project=True, shift=True)
    return Bottleneck(cfg=cfg, rngs=rngs, **options)


@pytest.mark.parametrize("build, channels", [(_mixed, 6), (_bottleneck, 8)])
def test_remat_does_not_change_loss_gradients_or_statistics(build, channels):
    x = np.random.default_rng(0).normal(size=(3, 4, 5, 6, channels)).astype(np.float32)
    results, convolutions = {}, {}
    for remat in ("none", "full", "dots"):
        cfg = ConvolutionConfig(remat=remat)
        model = ModelDef(lambda rngs, cfg=cfg: build(cfg, rngs))
        params, extra = random_arrays(model)

        def loss(params, extra, x, model=model, cfg=cfg):
            module = model.bind(params, extra)
            y = cfg.run(lambda module, x: module(x, train=True), module, x)
            return (y**2).mean(), model.extra_of(module)

        gradient = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
        convolutions[remat] = convolution_flops(gradient, params, extra, x)
        if remat != "dots" or build is _bottleneck:  # _mixed compiles slowly
            results[remat] = jax.jit(gradient)(params, extra, x)
    (_, new), _ = results["none"]
    jax.tree.map(lambda a, b: np.testing.assert_array_less(1e-4, np.abs(a - b).max()), extra, new)
    for result in results.values():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            results["none"],
            result,
        )
    assert convolutions["full"] > convolutions["none"] == convolutions["dots"]


def test_flops_include_products_with_padding():
    unit = _unit(size=(3, 3))
    x = jax.ShapeDtypeStruct((2, 7, 5, 1), "float32")
    assert convolution_flops(lambda unit, x: unit(x, train=False), unit, x) == 2 * 2 * 7 * 5 * 9


def test_kernels_are_glorot_uniform_and_differ_between_units():
    cfg = ConvolutionConfig(param_dtype="bfloat16")
    block = _mixed(cfg, nnx.Rngs(0))
    draw_kernels(block, jax.random.key(1))
    kernels = {name: getattr(block, name).conv.kernel[...] for name in ("b1a", "b1b", "b3")}
    for kernel in kernels.values():
        assert kernel.dtype == jnp.bfloat16
        limit = np.sqrt(6 / (np.prod(kernel.shape[:3]) * (kernel.shape[3] + kernel.shape[4])))
        largest = np.abs(kernel.astype("float32")).max()
        assert 0.8 * limit < largest < 1.01 * limit
    kernel = kernels["b1b"].astype("float32")  # 405 samples
    np.testing.assert_allclose(kernel.std(), np.sqrt(6 / (27 * 8)) / np.sqrt(3), rtol=0.1)
    assert (kernels["b1a"].ravel() != kernels["b3"].ravel()[:18]).any()


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(remat="some"), ("remat", "'some'", "'none'", "dots", "full")),
        (dict(dtype="bfloat"), ("dtype", "'bfloat'", "'bfloat16'")),
        (dict(width_multiplier=0), ("width_multiplier", 0)),
    ],
)
def test_errors_mention_the_invalid_option(options, facts):
    with raises(UserError, *facts):
        ConvolutionConfig(**options)
