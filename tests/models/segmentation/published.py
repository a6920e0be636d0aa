"""Deterministic weights and images, for which outputs of the PyTorch models are known."""

import jax.numpy as jnp
import numpy as np

from mmjax import tree
from mmjax.formats.name_rules import match_keys, to_torch


def _hashed(size):
    """Returns `size` numbers in [-1, 1), a function of `size`."""
    x = (np.arange(size, dtype=np.uint64) + 1 + size) * 2654435761 % 2**32
    x ^= x >> 15
    x = x * 2246822519 % 2**32
    x ^= x >> 13
    return x / 2**31 - 1


def _array(name, shape):
    values = _hashed(int(np.prod(shape))).reshape(shape)
    if name.endswith("running_mean"):
        return 0.1 * values
    if name.endswith("running_var"):
        return 1 + 0.5 * np.abs(values)
    if len(shape) > 1:
        return values * (3 * shape[0] / values.size) ** 0.5
    return 1 + 0.1 * values if name.endswith("weight") else 0.1 * values


def torch_arrays(model, rules):
    """Returns {PyTorch's name: array} of a ModelDef, without counters of batches."""
    leaves = tree.flatten(model.params) | tree.flatten(model.extra)
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in leaves.items()}
    shapes = {name: array.shape for name, array in to_torch(zeros, rules).items()}
    return {name: _array(name, shape).astype(np.float32) for name, shape in shapes.items()}


def weights(model, rules):
    """Returns the params and extra of a ModelDef."""
    arrays = torch_arrays(model, rules)
    leaves, mismatches, unknown = match_keys({k: x.shape for k, x in arrays.items()}, rules)
    assert not mismatches and not unknown

    def read(path, leaf):
        return jnp.asarray(leaves[path].read(arrays))

    return tree.map_named(read, model.params), tree.map_named(read, model.extra)


def image(size):
    """Returns a normalized image, [1, size, size, 3]."""
    y, x = np.mgrid[:size, :size]
    channels = [np.sin(0.05 * (y * size + x) + channel) for channel in range(3)]
    return np.stack(channels, axis=-1)[None].astype(np.float32)
