"""Tests of FLAIR's loss against loops over images and texts in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import tree
from mmjax.convert.attention_pooling import ATTENTION_POOLING
from mmjax.formats.name_rules import match_keys
from mmjax.losses import flair
from mmjax.models.blocks.attention_pooling import TextConditionedPooling
from mmjax.state import ModelDef
from tests.models.blocks.test_attention_pooling import TOKENS, published_arrays

COUNT, NUM_TOKENS, WIDTH = 6, 3, 4
RANDOM = np.random.default_rng(0)
MASK = np.array([1, 1, 0, 1, 1, 1], np.float32)
CAPTION_MASK = np.array([[0, 1, 1], [1, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1], [0, 0, 1]])
SCALE, BIAS = 5.0, -2.0
flair_loss = jax.jit(flair.flair_loss, static_argnames=("pool", "multi_positive", "chunk_size"))


def pool(queries, tokens):
    """A pooling that depends on every query and token, for JAX and NumPy."""
    xp = jnp if isinstance(queries, jax.Array) or isinstance(tokens, jax.Array) else np
    scores = xp.einsum("bqd,bnd->bqn", queries, tokens)
    weights = xp.exp(scores) / (1 + xp.exp(scores).sum(-1, keepdims=True))
    return xp.einsum("bqn,bnd->bqd", weights, tokens)


def embeddings(num_captions):
    shapes = (COUNT, WIDTH), (COUNT, NUM_TOKENS, WIDTH), (COUNT, num_captions, WIDTH)
    return tuple(RANDOM.normal(size=shape).astype(np.float32) for shape in shapes)


def cosine(a, b):
    a, b = np.float64(a), np.float64(b)
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def pair_loss(cosine, positive):
    logit = SCALE * cosine + BIAS
    return np.logaddexp(0.0, -logit if positive else logit)


def by_definition(images, tokens, texts, mask, choice):
    """Returns `(TCS, MPS)`; `choice(i, j)` is the caption of image j that is compared with i."""
    exists = np.broadcast_to(mask if mask.ndim == 2 else mask[:, None], texts.shape[:2])
    captions = [np.flatnonzero(row) for row in exists]
    valid = [i for i in range(len(texts)) if len(captions[i])]
    conditioned, multi, num_compared = 0.0, 0.0, 0
    for i in valid:
        compared = [(i, k) for k in captions[i]]
        compared += [(j, choice(i, j)) for j in valid if j != i]
        num_compared += len(compared)
        for j, k in compared:
            text = np.float64(texts[j, k])
            pooled = pool(text[None, None], np.float64(tokens[i])[None])[0, 0]
            conditioned += pair_loss(cosine(pooled, text), i == j)
        for j in valid:
            for k in captions[j]:
                multi += pair_loss(cosine(images[i], texts[j, k]), i == j)
    mean_compared = num_compared / len(valid)
    if mask.ndim == 1:
        assert mean_compared == len(valid) + texts.shape[1] - 1
    return conditioned / mean_compared, multi / exists.sum()


@pytest.mark.parametrize(
    ("num_captions", "mask"),
    [(1, np.ones(COUNT, np.float32)), (3, np.ones(COUNT)), (1, MASK), (3, MASK), (3, CAPTION_MASK)],
)
def test_the_loss_equals_loops(num_captions, mask):
    arrays = embeddings(num_captions)
    first = mask.argmax(axis=1) if mask.ndim == 2 else np.zeros(COUNT, int)
    conditioned, multi = by_definition(*arrays, mask, choice=lambda i, j: first[j])
    options = dict(logit_scale=SCALE, logit_bias=BIAS, mask=mask)
    value = flair_loss(*arrays, pool, multi_positive=False, **options)
    np.testing.assert_allclose(value, conditioned, rtol=1e-5)
    for chunk_size in (None, 2):
        value = flair_loss(*arrays, pool, chunk_size=chunk_size, **options)
        np.testing.assert_allclose(value, (conditioned + multi) / 2, rtol=1e-5)


@pytest.mark.parametrize("mask", [MASK, CAPTION_MASK])
def test_captions_of_other_images_are_sampled_and_ordered_by_image(mask):
    num_captions, key = 3, jax.random.key(0)
    exists = np.broadcast_to(mask if mask.ndim == 2 else mask[:, None], (COUNT, num_captions)) > 0
    owner, caption = map(np.asarray, flair._compared_texts(jnp.asarray(exists), key))
    for i in range(COUNT):
        expected = [*range(i), *[i] * num_captions, *range(i + 1, COUNT)]
        np.testing.assert_array_equal(owner[i], expected)
        np.testing.assert_array_equal(caption[i, i : i + num_captions], range(num_captions))
    for j in range(COUNT):
        others = caption[(owner == j) & (np.arange(COUNT) != j)[:, None]]
        if exists[j].any():
            assert set(others) <= set(np.flatnonzero(exists[j]))
    others = caption[owner != np.arange(COUNT)[:, None]]
    assert set(others) == set(range(num_captions))

    pairs = zip(owner, caption, strict=True)
    chosen = {(i, j): k for i, row in enumerate(pairs) for j, k in zip(*row, strict=True) if i != j}
    arrays = embeddings(num_captions)
    conditioned, _ = by_definition(*arrays, mask, choice=lambda i, j: chosen[i, j])
    value = flair_loss(
        *arrays,
        pool,
        logit_scale=SCALE,
        logit_bias=BIAS,
        mask=mask,
        key=key,
        multi_positive=False,
    )
    np.testing.assert_allclose(value, conditioned, rtol=1e-5)


def test_without_valid_examples_the_loss_is_zero():
    value = flair_loss(
        *embeddings(2), pool, logit_scale=SCALE, logit_bias=BIAS, mask=np.zeros(COUNT)
    )
    assert value == 0


def test_the_loss_with_flairs_pooling_has_the_published_values():
    arrays = published_arrays()
    leaves, _, _ = match_keys({name: x.shape for name, x in arrays.items()}, ATTENTION_POOLING)
    params = tree.unflatten({path: leaf.read(arrays) for path, leaf in leaves.items()})
    model = ModelDef(lambda rngs: TextConditionedPooling(width=4, num_heads=2, rngs=rngs))

    def published_pool(queries, tokens):
        return model.bind(params, {})(queries, tokens)[0]

    images = np.float32([[1, 0, 0, 0], [0, 1, 1, 0]])
    texts = np.float32([[[1, 1, 0, 0]], [[0, 0, 2, 1]]])
    tokens = np.stack([TOKENS, np.float32([[0, 1, 0, 2], [1, 1, -1, 0], [2, 0, 0, 1]])])
    for multi_positive, expected in ((False, 6.3164496), (True, 3.9569559)):
        value = flair_loss(
            images,
            tokens,
            texts,
            published_pool,
            logit_scale=10.0,
            logit_bias=-2.0,
            multi_positive=multi_positive,
        )
        np.testing.assert_allclose(value, expected, rtol=1e-4)
