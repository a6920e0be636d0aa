"""Feature maps from the patch grid of a vision transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import tree
from mmjax.models.decoders.pyramid import Level
from mmjax.models.decoders.registry import build_head
from mmjax.state import ModelDef
from tests.random_arrays import random_arrays

WIDTH = 8


def head_of(name, num_images=1, **options):
    return ModelDef(
        lambda rngs: build_head(
            name,
            num_outputs=3,
            embedding_dim=16,
            num_images=num_images,
            channels=dict(grid=16),
            pyramid_width=WIDTH,
            rngs=rngs,
            **options,
        )
    )


@pytest.mark.parametrize(
    "name, num_images, levels",
    [("unet", 1, 5), ("siamese_unet", 2, 5), ("deeplab_plain", 1, 2)],
)
def test_heads_predict_maps_from_a_grid(name, num_images, levels):
    model = head_of(name, num_images)
    assert model.module.needs == ("grid",)
    assert len(model.params["pyramid"]) == levels  # only the maps that the head reads
    params, extra = random_arrays(model)
    grid = np.random.default_rng(0).normal(size=(2, num_images, 3, 5, 16)).astype(np.float32)

    def loss(params):
        out = model.bind(params, extra)({"grid": grid}, size=(42, 70))  # patches of 14 pixels
        return (out**2).mean(), out

    gradient, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert out.shape == (2, 42, 70, 3) and out.dtype == jnp.float32
    for path, leaf in tree.flatten(gradient).items():
        assert np.abs(leaf).max() > 0, path
    flops = model.module.flops({"grid": (num_images, 3, 5, 16)}, size=(42, 70))
    larger = model.module.flops({"grid": (num_images, 6, 5, 16)}, size=(84, 70))
    assert larger > 1.6 * flops > 0


@pytest.mark.parametrize(
    "doublings, size", [(3, (24, 40)), (2, (12, 20)), (0, (3, 5)), (-1, (2, 3))]
)
def test_levels_have_their_resolution(doublings, size):
    model = ModelDef(
        lambda rngs: Level(
            in_features=16, out_features=6, doublings=doublings, dtype="float32", rngs=rngs
        )
    )
    x = jax.ShapeDtypeStruct((2, 3, 5, 16), "float32")
    assert jax.eval_shape(lambda m, x: m(x), model.module, x).shape == (2, *size, 6)


def test_a_level_doubles_by_a_transposed_convolution():
    """Each output pixel of a 2×2 window is a linear map of one input pixel."""
    model = ModelDef(
        lambda rngs: Level(in_features=2, out_features=4, doublings=1, dtype="float32", rngs=rngs)
    )
    params, _ = random_arrays(model)
    x = np.random.default_rng(1).normal(size=(1, 2, 3, 2)).astype(np.float32)
    kernel, bias = params["up1"]["kernel"][0, 0], params["up1"]["bias"]
    expected = np.empty((1, 4, 6, 1))
    for i in range(2):
        for j in range(2):
            expected[:, i::2, j::2, 0] = x @ kernel[:, 2 * i + j] + bias[2 * i + j]
    module = model.bind(params, {})
    module.project = module.smooth = lambda y: y
    module.project_norm = module.smooth_norm = lambda y: y
    np.testing.assert_allclose(module(x), expected, rtol=1e-5)
