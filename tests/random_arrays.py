"""Random arrays for models, without compiling their initialization.

Use them where initial values are not under test: XLA compiles the initialization of a model with
three towers in more than a second, and their forward pass in half of that.
"""

import jax
import numpy as np

from mmjax import tree


def random_arrays(model, seed=0):
    """Returns random params and extra; no scale, bias or statistic keeps its initial value.

    Args:
      model: A ModelDef.
      seed: Seed of the arrays.
    """
    rng = np.random.default_rng(seed)

    def sample(path, leaf):
        name = path.rsplit("/", 1)[-1]
        if name == "kernel":
            return rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape)
        return rng.normal(0, 0.3, leaf.shape)

    def array(path, leaf):
        # NumPy converts without a compiled program per shape.
        return jax.device_put(np.asarray(sample(path, leaf), leaf.dtype))

    return tree.map_named(array, model.params), tree.map_named(array, model.extra)
