"""A TensorFlow reference for convolutional units, and checks of their training."""

import jax
import numpy as np
import tensorflow as tf

from mmjax import tree
from tests.random_arrays import random_arrays


class TensorFlowUnits:
    """Computes a unit, selected by its path, from the weights of `random_arrays` in TensorFlow."""

    def __init__(self, params, extra):
        leaves = {**tree.flatten(params), **tree.flatten(extra)}
        self.leaves = {path: np.asarray(leaf) for path, leaf in leaves.items()}

    def __call__(self, path, x, *, stride=1, padding="SAME", relu=True):
        kernel = self.leaves[f"{path}/conv/kernel"]
        convolve = tf.nn.conv3d if kernel.ndim == 5 else tf.nn.conv2d
        y = convolve(x, kernel, [1, *[stride] * (kernel.ndim - 2), 1], padding)
        mean, var, scale, bias = (
            self.leaves[f"{path}/norm/{name}"] for name in ("mean", "var", "scale", "bias")
        )
        y = (y - mean) / tf.sqrt(var + 1e-5) * scale + bias
        return tf.nn.relu(y) if relu else y


def check_training(build, x, *, atol):
    """Checks gradients and BatchNorm statistics of `build(remat)`, with and without remat.

    Every parameter gets a gradient, every statistic changes, a small step along the gradient lowers
    the loss as much as predicted, and `remat` changes none of the results.
    """
    results = {}
    for remat in ("none", "full"):
        model = build(remat)
        params, extra = random_arrays(model)

        def loss(params, extra, model=model):
            module = model.bind(params, extra)
            pooled, _ = module(x, key=jax.random.key(0))
            return (pooled**2).mean(), model.extra_of(module)

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        results[remat] = jax.device_get(step(params, extra))
        if remat == "none":
            check_descent(lambda params, step=step, extra=extra: step(params, extra), params)
    (_, new), gradients = results["none"]
    assert jax.tree.structure(new) == jax.tree.structure(extra)
    for path, leaf in tree.flatten(gradients).items():
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path
    extra = tree.flatten(jax.device_get(extra))
    for path, leaf in tree.flatten(new).items():
        assert np.abs(leaf - extra[path]).max() > 1e-4, path
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=atol),
        results["none"],
        results["full"],
    )


def check_descent(step, params):
    """Checks a gradient: a small step against it lowers the loss as its square predicts.

    Args:
      step: Maps params to ((loss, aux), gradient).
      params: Params at which to check.
    """
    params = jax.device_get(params)
    (before, _), gradient = jax.device_get(step(params))
    square = sum(float(np.square(np.float64(leaf)).sum()) for leaf in jax.tree.leaves(gradient))
    rate = 1e-3 * float(before) / square  # lowers the loss by 0.1 %, to first order
    (after, _), _ = step(jax.tree.map(lambda leaf, g: leaf - rate * g, params, gradient))
    np.testing.assert_allclose(1 - float(after) / float(before), 1e-3, rtol=0.3)


def count(model):
    """Returns the number of parameters and BatchNorm statistics of a ModelDef."""
    return sum(leaf.size for leaf in jax.tree.leaves((model.params, model.extra)))


def xla_flops(model, shape):
    """Returns XLA's FLOP count of the forward pass over one input, before optimization."""
    x = jax.ShapeDtypeStruct((1, *shape), "float32")
    forward = jax.jit(lambda params, extra, x: model.bind(params, extra)(x)[0])
    return forward.lower(model.params, model.extra, x).cost_analysis()["flops"]
