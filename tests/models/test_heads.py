"""Projections of features: what no model of a task shows."""

import jax
import numpy as np

from mmjax.models.heads import ProjectionMLP
from mmjax.state import ModelDef


def test_many_layers_come_in_order():
    dims = (3, 5, 4, 6, 3, 5, 4, 6, 3, 5, 4, 2)  # '10' and '11' stand before '2' in NNX
    model = ModelDef(lambda rngs: ProjectionMLP(in_features=4, dims=dims, rngs=rngs))
    params, extra = model.init(jax.random.key(0))
    x = expected = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    for number in range(len(dims)):
        expected = expected @ np.asarray(params["linear"][str(number)]["kernel"])
        if number < len(dims) - 1:  # statistics as at the start: mean 0, variance 1
            expected = np.maximum(expected / np.sqrt(1 + 1e-5), 0)
    found = model.bind(params, extra)(x, train=False)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
