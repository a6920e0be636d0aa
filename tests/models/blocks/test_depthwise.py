"""Depthwise convolutions by shifted products, and their own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax.models.blocks.depthwise import Depthwise

CHANNELS = 3


def _options(window, **options):
    return dict(
        in_features=CHANNELS,
        out_features=CHANNELS,
        kernel_size=window,
        feature_group_count=CHANNELS,
        bias_init=nnx.initializers.normal(),
        **options,
    )


@pytest.mark.parametrize(
    "sizes, options",
    [
        ((7, 6), dict(window=(3, 3), strides=2, padding=((1, 1), (1, 1)))),
        ((6, 9), dict(window=(5, 5), kernel_dilation=2, padding=((4, 4), (4, 4)), use_bias=False)),
        ((8, 5), dict(window=(2, 3), strides=(3, 1), kernel_dilation=(1, 2), padding="SAME")),
        ((5, 4), dict(window=(3, 3), padding="VALID")),
        ((9,), dict(window=(4,), strides=2, padding=((2, 0),))),
    ],
    ids=["strided", "dilated", "uneven", "valid", "one axis"],
)
def test_values_and_gradients_are_those_of_a_grouped_convolution(sizes, options):
    x = np.random.default_rng(0).normal(size=(2, *sizes, CHANNELS)).astype(np.float32)
    layers = [cls(**_options(**options), rngs=nnx.Rngs(0)) for cls in (Depthwise, nnx.Conv)]
    weights = np.random.default_rng(1).normal(size=layers[1](x).shape).astype(np.float32)

    def loss(layer, x):
        y = layer(x)
        return (weights * y + y**2).sum(), y

    (own, y), (plain, expected) = (
        jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(layer, x) for layer in layers
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for actual, wanted in zip(jax.tree.leaves(own), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


def test_bfloat16_adds_up_products_in_float32():
    layer = Depthwise(**_options((5, 5), dtype="bfloat16", use_bias=False), rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.ones_like(layer.kernel[...])
    x = jnp.ones((1, 40, 40, CHANNELS))

    def loss(layer, x):
        y = layer(x)
        return y.astype(jnp.float32).sum(), y

    (gradient, of_x), y = jax.grad(loss, argnums=(0, 1), has_aux=True)(layer, x)
    assert y.dtype == jnp.bfloat16 and y[0, 20, 20, 0] == 25
    # A sum in bfloat16 would stop at 256.
    np.testing.assert_allclose(gradient.kernel[...][2, 2, 0], 1600, rtol=1e-2)
    assert of_x[0, 20, 20, 0] == 25
