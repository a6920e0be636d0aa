"""A tiny tx_fac with deterministic weights, and reference outputs of VATT's published code.

`vatt_reference.npz` holds the inputs and the outputs of VATT's published TF2 code for a model of
this size with the weights of `weight`. `video` is stored as uint8 k for k · 2/255 − 1.
"""

import pathlib
import zlib

import jax.numpy as jnp
import numpy as np

from mmjax import tree
from mmjax.convert.vatt import names as vatt_names
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef

REFERENCE = pathlib.Path(__file__).parent / "vatt_reference.npz"


def weight(key, shape):
    """Returns the pseudorandom array of a checkpoint key."""
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    last = key.rsplit("/", 1)[-1]
    if last in ("gamma", "weight"):
        return (1 + 0.1 * noise).astype(np.float32)
    return (np.exp(0.3 * noise) if last == "moving_variance" else 0.1 * noise).astype(np.float32)


def tiny_model(*, keep_tokens=1.0, **shared):
    """Returns the model at the reference's size with params and extra from `weight`."""
    size = dict(width=64, head_dim=32, num_heads=2, mlp_dim=128, num_layers=2, dropout_rate=0.0)
    drop = dict(keep_tokens=keep_tokens)
    model = ModelDef(
        make_model(
            "tx_fac",
            video=dict(name="vit_tiny", patch_size=(4, 16, 16), buckets=(2, 2, 2), **size, **drop),
            audio=dict(name="wat_tiny", buckets=10, **size, **drop),
            text=dict(name="t5_small", vocab_size=512, embedding_dim=48, **size),
            head=dict(name="fac", fine=32, coarse=16),
            **shared,
        )
    )

    def values(part):
        shapes = {path: leaf.shape for path, leaf in tree.flatten(part).items()}
        key_shapes = {}  # shape of one layer's array by checkpoint key
        for path, shape in shapes.items():
            keys = vatt_names.keys_of(path, shape)
            stacked = "{i}" in vatt_names.key_of(path)
            key_shapes |= dict.fromkeys(keys, shape[1:] if stacked else shape)
        arrays = vatt_names.fill(shapes, lambda key: weight(key, key_shapes[key]))
        return tree.unflatten({path: jnp.asarray(array) for path, array in arrays.items()})

    return model, values(model.params), values(model.extra)


def inputs(reference):
    """Returns the model inputs in the arrays of `vatt_reference.npz`."""
    return {
        "video": reference["video"].astype(np.float32) * np.float32(2 / 255) - 1,
        "audio": reference["audio"],
        "text": reference["text"],
    }


def relative_error(actual, expected):
    """Returns the largest absolute difference over the largest absolute expected value."""
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
