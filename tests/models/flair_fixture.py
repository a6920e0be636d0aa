"""FLAIR with weights that follow from a formula, for published outputs of the original."""

import math

import numpy as np

from mmjax import tree
from mmjax.convert.flair.names import RULES
from mmjax.formats.name_rules import match_keys, to_torch
from mmjax.models.flair import make_model
from mmjax.state import ModelDef


def noise(count):
    """Returns `count` values in [-1, 1) that depend on the index and on `count`."""
    u = np.arange(count, dtype=np.uint32) + np.uint32((1 + count) % 2**32)
    u *= np.uint32(2654435761)
    u ^= u >> np.uint32(15)
    u *= np.uint32(2246822519)
    u ^= u >> np.uint32(13)
    return (u / np.float64(2**31) - 1).astype(np.float32)


def published_array(name, shape):
    """Returns the array of a name in FLAIR's state dict."""
    if name in ("logit_scale", "logit_bias"):
        return np.array(dict(logit_scale=2.6592600, logit_bias=-10.0)[name], np.float32)
    size = math.prod(shape)
    r = noise(size).reshape(shape)
    if "embedding" in name:
        return r * np.float32(0.1)
    if name.endswith("_post.proj"):
        return r * np.float32(math.sqrt(3 / shape[0]))
    if len(shape) > 1:
        return r * np.float32(math.sqrt(3 * shape[0] / size))
    return np.float32(0.1) * r + np.float32(name.endswith("weight"))


def state_dict_shapes(model):
    """Returns {FLAIR's name: shape} of the arrays of a model."""
    zeros = {
        path: np.broadcast_to(np.bool_(0), x.shape)  # small, if copied
        for path, x in tree.flatten(model.params).items()
    }
    return {name: x.shape for name, x in to_torch(zeros, RULES).items()}


def make_flair(**options):
    """Returns `(model, params, state dict)` of FLAIR with the arrays of the formula."""
    model = ModelDef(make_model(**options))
    shapes = state_dict_shapes(model)
    arrays = {name: published_array(name, shape) for name, shape in shapes.items()}
    leaves, mismatches, unknown = match_keys(shapes, RULES)
    assert not mismatches and not unknown
    return model, tree.unflatten({p: leaf.read(arrays) for p, leaf in leaves.items()}), arrays


def published_images(size):
    """Returns one normalized image, float32 [1, size, size, 3]."""
    pixel = np.arange(size * size, dtype=np.float64).reshape(size, size, 1)
    return np.sin(0.05 * pixel + np.arange(3)).astype(np.float32)[None]
