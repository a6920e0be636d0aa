"""Maps of images for texts against loops over patches and tokens in NumPy."""

import jax
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.models.flair import Encoded, make_model
from mmjax.models.flair_maps import PUBLISHED_HEADS, text_maps
from mmjax.state import ModelDef
from tests.messages import raises
from tests.models.test_flair import TINY
from tests.random_arrays import random_arrays

NUM_HEADS, WIDTH, SIDE, LENGTH = 8, 24, 2, 6
MODES = ("similarity", "attention")
RANDOM = np.random.default_rng(0)


def encoded(count, tokens):
    return Encoded(
        RANDOM.normal(size=(count, WIDTH)).astype(np.float32),
        RANDOM.normal(size=(count, tokens, WIDTH)).astype(np.float32),
    )


IMAGES, TEXTS = encoded(3, SIDE * SIDE), encoded(3, LENGTH)
MASK = np.arange(LENGTH) < np.array([3, 6, 1])[:, None]


@pytest.fixture(scope="module")
def bound():
    model = ModelDef(make_model(**TINY | dict(num_heads=NUM_HEADS)))
    params, _ = random_arrays(model)
    return model, params


@pytest.fixture(scope="module")
def run(bound):
    model, params = bound

    def call(images, texts, token_mask=None, **options):
        return text_maps(model.bind(params, {}), images, texts, token_mask=token_mask, **options)

    compiled = jax.jit(call, static_argnames=("mode", "broadcast", "size", "method", "heads"))
    return lambda *args, **options: jax.device_get(compiled(*args, **options))


def layer_norm(x, layer):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * layer["scale"] + layer["bias"]


def attention(params, tokens, query, heads):
    """Weights [N] of tokens [N, D] for one query [D], averaged over heads, in loops."""
    pooling = jax.tree.map(np.float64, params["pooling"])
    q = layer_norm(query, pooling["query_norm"]) @ pooling["query"]["kernel"]
    k = layer_norm(tokens, pooling["key_norm"]) @ pooling["key"]["kernel"]
    q, k = q + pooling["query"]["bias"], k + pooling["key"]["bias"]
    size, total = WIDTH // NUM_HEADS, np.zeros(len(tokens))
    for head in heads:
        part = slice(head * size, (head + 1) * size)
        scores = np.array([q[part] @ key[part] / np.sqrt(size) for key in k] + [0.0])
        total += (np.exp(scores) / np.exp(scores).sum())[:-1] / len(heads)
    return total


def similarity(tokens, query):
    return tokens @ query / np.linalg.norm(tokens, axis=1) / np.linalg.norm(query)


def one_map(params, what, tokens, query, heads=PUBLISHED_HEADS):
    tokens, query = np.float64(tokens), np.float64(query)
    if what == "similarity":
        return similarity(tokens, query)
    return attention(params, tokens, query, heads)


@pytest.mark.parametrize("mode", MODES)
def test_maps_equal_loops_over_pairs(bound, run, mode):
    expected = [
        one_map(bound[1], mode, tokens, query)
        for tokens, query in zip(IMAGES.tokens, TEXTS.pooled, strict=True)
    ]
    maps = run(IMAGES, TEXTS, mode=mode)
    assert maps.token is None and maps.values.shape == (3, SIDE, SIDE)
    np.testing.assert_allclose(maps.values.reshape(3, -1), expected, rtol=1e-4, atol=1e-6)
    two = Encoded(*(x[:2] for x in IMAGES))
    every = run(two, TEXTS, mode=mode, broadcast=True).values
    assert every.shape == (2, 3, SIDE, SIDE)
    for i in range(2):
        for t in range(3):
            wanted = one_map(bound[1], mode, IMAGES.tokens[i], TEXTS.pooled[t])
            np.testing.assert_allclose(every[i, t].ravel(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("what", MODES)
@pytest.mark.parametrize("mask", [None, MASK])
def test_maps_of_text_tokens_equal_loops(bound, run, what, mask):
    valid = np.ones_like(MASK) if mask is None else mask
    best = run(IMAGES, TEXTS, mask, mode=f"max_token_{what}", broadcast=True)
    mean = run(IMAGES, TEXTS, mask, mode=f"mean_token_{what}", broadcast=True)
    own = run(IMAGES, TEXTS, mask, mode=f"max_token_{what}")
    assert mean.token is None
    for i in range(3):
        for t in range(3):
            queries = TEXTS.tokens[t][valid[t]]
            maps = np.stack([one_map(bound[1], what, IMAGES.tokens[i], q) for q in queries])
            for actual, expected in ((best, maps.max(axis=0)), (mean, maps.mean(axis=0))):
                values = actual.values[i, t].ravel()
                np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(best.token[i, t].ravel(), maps.argmax(axis=0))
        np.testing.assert_allclose(own.values[i], best.values[i, i], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(own.token[i], best.token[i, i])


def test_heads_can_be_selected(bound, run):
    expected = one_map(bound[1], "attention", IMAGES.tokens[0], TEXTS.pooled[0], heads=(1, 6))
    actual = run(IMAGES, TEXTS, heads=(1, 6)).values[0]
    np.testing.assert_allclose(actual.ravel(), expected, rtol=1e-4)
    model = ModelDef(make_model(**TINY))  # four heads: all of them
    module = model.bind(random_arrays(model)[0], {})
    every = text_maps(module, IMAGES, TEXTS, heads=range(4))
    np.testing.assert_array_equal(text_maps(module, IMAGES, TEXTS).values, every.values)


def test_maps_can_be_resized(run):
    small = run(IMAGES, TEXTS, mode="max_token_similarity")
    nearest = run(IMAGES, TEXTS, mode="max_token_similarity", size=(5, 4))
    rows, columns = np.arange(5) * 2 // 5, np.arange(4) * 2 // 4
    for name in ("values", "token"):
        expected = getattr(small, name)[:, rows][:, :, columns]
        np.testing.assert_array_equal(getattr(nearest, name), expected)
    smooth = run(IMAGES, TEXTS, mode="max_token_similarity", size=(5, 4), method="bilinear")
    expected = jax.image.resize(small.values, (3, 5, 4), "linear")
    np.testing.assert_allclose(smooth.values, expected, rtol=1e-5)
    np.testing.assert_array_equal(smooth.token, nearest.token)


def test_invalid_options_are_errors(bound):
    module = bound[0].bind(bound[1], {})
    with raises(UserError, "mode", "'atention'", "'attention'"):
        text_maps(module, IMAGES, TEXTS, mode="atention")
    with raises(UserError, "method", "'cubic'", "bilinear, nearest"):
        text_maps(module, IMAGES, TEXTS, mode="similarity", size=(3, 3), method="cubic")
    with raises(UserError, "3 patches"):
        text_maps(module, Encoded(IMAGES.pooled, IMAGES.tokens[:, :3]), TEXTS, mode="similarity")
