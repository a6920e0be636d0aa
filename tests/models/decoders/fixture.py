"""Deterministic weights and the input of the networks in section 19.9 of pyVTAB's specification."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import tree

RESNET50 = dict(conv=64, block1=256, block2=512, block3=1024, block4=2048)


def numbers(index, count):
    """Returns the numbers in [-1, 1) of elements of an array with `count` elements.

    Args:
      index: uint32 indices of the elements in PyTorch's layout.
      count: Number of elements.
    """
    u = (index + np.uint32(1 + count)) * np.uint32(2654435761)
    u = (u ^ (u >> 15)) * np.uint32(2246822519)
    u = u ^ (u >> 13)
    return u.astype(jnp.float32) * 2.0**-31 - 1


def _torch_index(shape):
    """Returns the index in PyTorch's layout of each element of a kernel in mmjax's layout."""
    order = (len(shape) - 1, len(shape) - 2, *range(len(shape) - 2))  # [out, in, *window]
    index, stride = jnp.uint32(0), 1
    for axis in reversed(order):
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    return index


def _array(path, leaf):
    name, shape = path.rsplit("/", 1)[-1], leaf.shape
    r = numbers(
        _torch_index(shape) if len(shape) > 1 else jnp.arange(*shape, dtype="uint32"), leaf.size
    )
    if name == "kernel":
        return r * math.sqrt(3 / math.prod(shape[:-1]))
    if name == "var":
        return 1 + 0.5 * jnp.abs(r)
    return 1 + 0.1 * r if name == "scale" else 0.1 * r


def arrays(model):
    """Returns the params and statistics of a ModelDef; fast for 100 million numbers."""
    return jax.jit(
        lambda: (tree.map_named(_array, model.params), tree.map_named(_array, model.extra))
    )()


def image(mirrored=False):
    """Returns the input, float32 [1, 70, 70, 3]."""
    y, x, c = np.meshgrid(np.arange(70), np.arange(70), np.arange(3), indexing="ij")
    pixels = np.sin(0.05 * (y * 70 + x) + c).astype(np.float32)[None]
    return pixels[:, :, ::-1] if mirrored else pixels
