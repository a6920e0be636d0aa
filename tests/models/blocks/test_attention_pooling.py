"""Attention pooling with a key of zeros, with published values of FLAIR's block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmjax import tree
from mmjax.convert.attention_pooling import ATTENTION_POOLING
from mmjax.errors import UserError
from mmjax.formats.name_rules import match_keys, to_torch
from mmjax.models.blocks.attention_pooling import TextConditionedPooling
from mmjax.state import ModelDef
from tests.messages import raises
from tests.random_arrays import random_arrays

WIDTH, HEADS = 4, 2
QUERIES = np.float32([[1, 2, -1, 0.5], [0, 1, 0, -1]])
TOKENS = np.float32([[1, 0, 2, -1], [0, 3, 1, 1], [-2, 1, 0, 0.5]])
# Outputs and weights (heads, queries, 3 tokens and the key of zeros) of the original in PyTorch.
POOLED = [
    [-0.1815075, -0.1220547, 0.4061786, 0.0440048],
    [-0.2460097, -0.1678232, 0.4908114, -0.0178568],
]
WEIGHTS = [
    [
        [0.6222563, 0.0773833, 0.1648494, 0.1355109],
        [0.3162768, 0.2218946, 0.2478677, 0.2139608],
    ],
    [
        [0.4030375, 0.1677174, 0.2768234, 0.1524217],
        [0.2108712, 0.2633966, 0.2258943, 0.2998379],
    ],
]


def _fill(shape, a, b, c):
    index = np.arange(np.prod(shape))
    return np.float32((((a * index + b) % 11) - 5) / c).reshape(shape)


def published_arrays():
    """Returns {FLAIR's name: array} of a block of width 4."""
    arrays = {
        "attn.in_proj_weight": _fill((3 * WIDTH, WIDTH), 3, 1, 10),
        "attn.in_proj_bias": _fill((3 * WIDTH,), 5, 2, 20),
        "attn.out_proj.weight": _fill((WIDTH, WIDTH), 7, 3, 10),
        "attn.out_proj.bias": _fill((WIDTH,), 2, 4, 20),
    }
    for name in ("ln_q", "ln_k", "ln_v"):
        arrays[f"{name}.weight"] = np.float32([1, 0.5, 2, 1])
        arrays[f"{name}.bias"] = np.float32([0, 0.1, -0.1, 0])
    return arrays


def _model(**options):
    options = dict(width=WIDTH, num_heads=HEADS) | options
    return ModelDef(lambda rngs: TextConditionedPooling(**options, rngs=rngs))


@pytest.fixture(scope="module")
def block():
    arrays = published_arrays()
    leaves, mismatches, unknown = match_keys(
        {name: array.shape for name, array in arrays.items()}, ATTENTION_POOLING
    )
    assert not mismatches and not unknown
    params = tree.unflatten({path: leaf.read(arrays) for path, leaf in leaves.items()})
    assert jax.tree.structure(params) == jax.tree.structure(_model().params)
    return _model().bind(params, {})


def test_values_are_those_of_flair(block):
    pooled, weights = block(QUERIES, TOKENS)
    np.testing.assert_allclose(pooled, POOLED, rtol=1e-5, atol=2e-7)
    np.testing.assert_allclose(weights, WEIGHTS, rtol=1e-5)


def test_axes_of_queries_and_tokens_broadcast(block):
    batch = np.stack([TOKENS, TOKENS[::-1] + 1])
    pooled, weights = block(QUERIES, batch)
    assert pooled.shape == (2, 2, WIDTH) and weights.shape == (2, HEADS, 2, 4)
    np.testing.assert_allclose(pooled[0], POOLED, rtol=1e-5, atol=2e-7)
    alone, _ = block(QUERIES[1:], batch[1])
    np.testing.assert_allclose(pooled[1, 1:], alone, rtol=1e-5)


def test_projected_tokens_can_be_shared_by_pairs(block):
    batch = np.stack([TOKENS, TOKENS[::-1] + 1])
    keys, values = block.keys_values(batch)
    image = np.array([1, 0, 1])
    queries = np.stack([QUERIES[0], QUERIES[1], QUERIES[1]])
    pooled, _ = block.attend(queries[:, None], keys[image], values[image])
    for pair, index in enumerate(image):
        expected, _ = block(queries[pair][None], batch[index])
        np.testing.assert_allclose(pooled[pair], expected, rtol=1e-5)


def test_names_convert_back_to_the_same_arrays(block):
    arrays = published_arrays()
    params = tree.flatten(nnx.to_pure_dict(nnx.split(block, nnx.Param, ...)[1]))
    exported = to_torch(params, ATTENTION_POOLING)
    assert exported.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(exported[name], array)


def test_initial_values_have_pytorch_bounds():
    params, _ = _model(width=64, num_heads=8).init(jax.random.key(0))
    packed, out = (6 / (4 * 64)) ** 0.5, 64**-0.5
    for name, bound in dict(query=packed, key=packed, value=packed, out=out).items():
        largest = float(jnp.abs(params[name]["kernel"]).max())
        assert 0.98 * bound < largest <= bound, name
        assert not params[name]["bias"].any()


def test_bfloat16_computes_weights_in_float32():
    model = _model(dtype="bfloat16", width=16)
    pooled, weights = model.bind(*random_arrays(model))(
        jnp.ones((3, 16), jnp.bfloat16), jnp.ones((5, 16), jnp.bfloat16)
    )
    assert pooled.dtype == jnp.bfloat16 and weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_width_must_be_divisible_by_heads():
    with raises(UserError, "num_heads", 10, 4):
        _model(width=10, num_heads=4)
