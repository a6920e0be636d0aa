"""Projection heads, beyond what the tests of the task models cover."""

import jax
import numpy as np

from mmjax.models.blocks.heads import ProjectionMLP
from mmjax.state import ModelDef


def test_layers_are_applied_in_numeric_order():
    dims = (3, 5, 4, 6, 3, 5, 4, 6, 3, 5, 4, 2)  # NNX sorts '10' and '11' before '2'
    model = ModelDef(lambda rngs: ProjectionMLP(in_features=4, dims=dims, rngs=rngs))
    params, extra = jax.jit(model.init)(jax.random.key(0))
    x = expected = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    for i in range(len(dims)):
        expected = expected @ np.asarray(params["linear"][str(i)]["kernel"])
        if i < len(dims) - 1:  # initial statistics: mean 0, variance 1
            expected = np.maximum(expected / np.sqrt(1 + 1e-5), 0)
    actual = jax.jit(lambda: model.bind(params, extra)(x, train=False))()
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-7)
