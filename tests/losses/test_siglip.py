"""Tests of grouped sigmoid losses against published values and against double loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.losses import siglip
from tests.messages import raises

X = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
TEXTS = np.array([[1, 1], [0.5, -1], [-1, 2]], np.float32)
TEXT_IMAGE = np.array([0, 0, 1])
NEGATIVES = np.array([[[0, 1], [1, -1]], [[2, 0], [-1, -1]], [[0.5, 0.5], [-2, 1]]], np.float32)
PAIRS = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
GROUPS = np.array([0, 0, 1])


def softplus(x):
    return np.logaddexp(0.0, np.float64(x))


# --------------------------------------------------------------------------------------------------
# Values of the published code, in float32.


@pytest.mark.parametrize(
    ("options", "scale", "bias", "expected"),
    [
        (dict(), 1.0, 0.0, 0.8201275),
        (dict(ignore_empty=False), 1.0, 0.0, 2.1248830),
        (dict(aggregation="mean"), 1.0, 0.0, 0.5490402),
        (dict(), 2.0, -1.0, 0.6540761),
    ],
)
def test_variable_text_has_the_published_values(options, scale, bias, expected):
    logits = siglip.pair_logits(X, TEXTS, scale=scale, bias=bias)
    value = siglip.variable_text(logits, TEXT_IMAGE, **options)
    np.testing.assert_allclose(value, expected, atol=1e-6)


def test_paired_negative_and_multi_text_have_the_published_values():
    logits = siglip.pair_logits(X, TEXTS)
    negatives = siglip.negative_logits(X, NEGATIVES)
    value = siglip.paired_negative(logits, TEXT_IMAGE, negatives)
    np.testing.assert_allclose(value, 1.7199797, atol=1e-6)
    np.testing.assert_allclose(siglip.multi_text(logits[:, :2], 0), 5.0148679, atol=1e-6)


def test_grouped_has_the_published_values():
    logits = siglip.pair_logits(PAIRS, TEXTS)
    np.testing.assert_allclose(siglip.grouped(logits, GROUPS), 1.8020259, atol=1e-6)
    half = siglip.grouped(logits, GROUPS, negative_weight=0.5)
    np.testing.assert_allclose(half, 1.0311623, atol=1e-6)
    # A fourth image without text; its own text and group are arbitrary.
    logits = siglip.pair_logits(
        np.concatenate([PAIRS, [[1, 1]]]), np.concatenate([TEXTS, [[9, 9]]])
    )
    has_text = np.array([1, 1, 1, 0], bool)
    for ignore_empty, expected in ((True, 1.2013506), (False, 2.5061064)):
        value = siglip.grouped(
            logits, np.array([0, 0, 1, 0]), has_text=has_text, ignore_empty=ignore_empty
        )
        np.testing.assert_allclose(value, expected, atol=1e-6)


def test_grouped_paired_negative_has_the_published_values():
    logits = siglip.pair_logits(PAIRS, TEXTS)
    for count, expected in ((2, 2.5156177), (0, 0.2602987)):
        negatives = siglip.negative_logits(PAIRS, NEGATIVES[:, :count])
        value = siglip.grouped_paired_negative(logits, GROUPS, negatives)
        np.testing.assert_allclose(value, expected, atol=1e-6)
        own = siglip.grouped_paired_negative(jnp.diagonal(logits), GROUPS, negatives)
        np.testing.assert_array_equal(own, value)


def test_grouped_slacked_negative_has_the_published_values():
    logits = siglip.pair_logits(PAIRS, TEXTS)
    third = np.array([[0, 0], [1, 1], [1, 0]], np.float32)[:, None]
    negatives = siglip.negative_logits(PAIRS, np.concatenate([NEGATIVES, third], axis=1))
    for count, expected in ((2, 1.8020259), (3, 2.9940834)):
        value = siglip.grouped_slacked_negative(logits, GROUPS, negatives, num_negatives=count)
        np.testing.assert_allclose(value, expected, atol=1e-6)


# --------------------------------------------------------------------------------------------------
# Loops over images and texts.

COUNT, NUM_NEGATIVES, WIDTH = 7, 3, 5
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(COUNT, WIDTH)).astype(np.float32)
CAPTIONS = RANDOM.normal(size=(COUNT, WIDTH)).astype(np.float32)
OWN_NEGATIVES = RANDOM.normal(size=(COUNT, NUM_NEGATIVES, WIDTH)).astype(np.float32)
VALID = np.array([1, 1, 0, 1, 1, 1, 1], bool)
HAS_TEXT = np.array([1, 0, 1, 1, 1, 1, 1], bool)
IMAGE_OF = np.array([0, 1, 0, 0, 4, 4, 6])
EXCLUDED = RANDOM.random((COUNT, COUNT)) < 0.2


def loop_over_images(s, negatives=None, *, valid, image_valid, excluded, aggregation, ignore_empty):
    """`variable_text`, or `paired_negative` with the logits of negatives."""
    total, count = 0.0, 0
    for i in range(len(s)):
        if not image_valid[i]:
            continue
        count += 1
        own = [t for t in range(s.shape[1]) if valid[t] and IMAGE_OF[t] == i]
        if not own and ignore_empty:
            continue
        positive = sum(softplus(-s[i, t]) for t in own) / max(len(own), 1)
        if negatives is None:
            others = [
                softplus(s[i, t])
                for t in range(s.shape[1])
                if valid[t] and t not in own and not excluded[i, t]
            ]
        else:
            others = [softplus(x) for x in negatives[i]]
        negative = sum(others)
        if aggregation == "mean":
            negative /= max(len(others), 1)
        total += positive + negative
    return total / max(count, 1)


def loop_over_pairs(
    s, negatives=None, *, valid, has_text, excluded, weight, ignore_empty, target=None
):
    """`grouped`; with the logits of negatives, `grouped_paired_negative`, or slacked to a target"""
    members: dict[object, list[float]] = {}
    for p in range(len(s)):
        if not valid[p]:
            continue
        loss, negative = 0.0, 0.0
        if has_text[p]:
            loss += softplus(-s[p, p])
        others = [
            q for q in range(len(s)) if q != p and valid[q] and has_text[q] and not excluded[p, q]
        ]
        if negatives is None or target is not None:
            negative += sum(softplus(s[p, q]) for q in others)
        if negatives is not None:
            used = len(negatives[p]) if target is None else max(0, target - len(others))
            negative += sum(softplus(x) for x in negatives[p][:used])
        if has_text[p] or not ignore_empty:
            loss += weight * negative
        group = IMAGE_OF[p] if has_text[p] else ("alone", p)
        members.setdefault(group, []).append(loss)
    return np.mean([np.mean(losses) for losses in members.values()]) if members else 0.0


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
@pytest.mark.parametrize("ignore_empty", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_losses_of_images_equal_loops(aggregation, ignore_empty, masked):
    valid = VALID if masked else np.ones(COUNT, bool)
    image_valid = HAS_TEXT if masked else np.ones(COUNT, bool)
    excluded = EXCLUDED if masked else np.zeros((COUNT, COUNT), bool)
    logits = siglip.pair_logits(IMAGES, CAPTIONS, scale=3.0, bias=-2.0, normalize="l2")
    own = siglip.negative_logits(IMAGES, OWN_NEGATIVES, scale=3.0, bias=-2.0, normalize="l2")
    s = 3.0 * unit(IMAGES) @ unit(CAPTIONS).T - 2.0
    n = 3.0 * np.einsum("pd,pmd->pm", unit(IMAGES), unit(OWN_NEGATIVES)) - 2.0
    np.testing.assert_allclose(logits, s, rtol=1e-5, atol=1e-6)
    options = dict(valid=valid, image_valid=image_valid, ignore_empty=ignore_empty)
    value = jax.jit(siglip.variable_text, static_argnames=("aggregation", "ignore_empty"))(
        logits, IMAGE_OF, excluded=excluded, aggregation=aggregation, **options
    )
    expected = loop_over_images(s, excluded=excluded, aggregation=aggregation, **options)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    value = siglip.paired_negative(logits, IMAGE_OF, own, **options)
    expected = loop_over_images(s, n, excluded=excluded, aggregation="sum", **options)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("ignore_empty", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_losses_of_pairs_equal_loops(ignore_empty, masked):
    valid = VALID if masked else np.ones(COUNT, bool)
    has_text = HAS_TEXT if masked else np.ones(COUNT, bool)
    excluded = EXCLUDED if masked else np.zeros((COUNT, COUNT), bool)
    logits = siglip.pair_logits(IMAGES, CAPTIONS)
    own = siglip.negative_logits(IMAGES, OWN_NEGATIVES)
    s = np.float64(IMAGES) @ CAPTIONS.T
    n = np.einsum("pd,pmd->pm", np.float64(IMAGES), OWN_NEGATIVES)
    options = dict(valid=valid, has_text=has_text, ignore_empty=ignore_empty)
    expect = dict(options, excluded=excluded, weight=0.3)
    options["negative_weight"] = 0.3
    value = siglip.grouped(logits, IMAGE_OF, excluded=excluded, **options)
    np.testing.assert_allclose(value, loop_over_pairs(s, **expect), rtol=1e-5)
    value = siglip.grouped_paired_negative(logits, IMAGE_OF, own, **options)
    np.testing.assert_allclose(value, loop_over_pairs(s, n, **expect), rtol=1e-5)
    for target in (1, 6, 8):
        value = siglip.grouped_slacked_negative(
            logits, IMAGE_OF, own, num_negatives=target, excluded=excluded, **options
        )
        expected = loop_over_pairs(s, n, target=target, **expect)
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_vector_for_each_text_replaces_the_vector_of_the_image():
    pooled = RANDOM.normal(size=(COUNT, COUNT, WIDTH)).astype(np.float32)
    logits = siglip.pair_logits(pooled, CAPTIONS)
    expected = [[pooled[p, t] @ CAPTIONS[t] for t in range(COUNT)] for p in range(COUNT)]
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    pooled = pooled[:, :NUM_NEGATIVES]
    logits = siglip.negative_logits(pooled, OWN_NEGATIVES)
    expected = (np.float64(pooled) * OWN_NEGATIVES).sum(axis=-1)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_paired_negatives_that_are_the_other_texts_give_variable_text():
    logits = siglip.pair_logits(X[:2], TEXTS[[0, 2]])
    negatives = siglip.negative_logits(X[:2], TEXTS[[2, 0]][:, None])
    first = siglip.variable_text(logits, np.array([0, 1]))
    second = siglip.paired_negative(logits, np.array([0, 1]), negatives)
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_excluded_texts_are_those_of_the_image_and_copies():
    ids = np.array([[1, 2, 0], [1, 3, 0], [1, 2, 0]])
    expected = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], bool)
    np.testing.assert_array_equal(siglip.same_text(ids), expected)
    np.testing.assert_array_equal(siglip.same_group(np.array([4, 2, 4])), expected)
    # With one group whose texts are no negatives, only positives remain.
    logits = siglip.pair_logits(PAIRS, TEXTS)
    one = np.zeros(3, int)
    value = siglip.grouped(logits, one, excluded=siglip.same_group(one))
    positives = siglip.grouped(logits, one, negative_weight=0.0)
    np.testing.assert_allclose(value, positives, rtol=1e-6)
    assert siglip.grouped(logits, one) > value + 0.1


def test_padded_pairs_affect_neither_values_nor_gradients_even_if_nan():
    valid = np.array([1, 1, 1, 0], bool)

    def padded(x):
        return np.concatenate([x, np.full_like(x[:1], np.nan)])

    def loss(images, texts, negatives, groups, valid=None):
        logits = siglip.pair_logits(images, texts)
        own = siglip.negative_logits(images, negatives)
        return (
            siglip.grouped(logits, groups, valid=valid)
            + siglip.grouped_slacked_negative(logits, groups, own, num_negatives=3, valid=valid)
            + siglip.grouped_paired_negative(logits, groups, own, valid=valid)
            + siglip.variable_text(logits, groups, valid=valid, image_valid=valid)
            + siglip.paired_negative(logits, groups, own, valid=valid, image_valid=valid)
        )

    arrays = (PAIRS, TEXTS, NEGATIVES)
    grad = jax.grad(loss, argnums=(0, 1, 2))
    expected, expected_grads = loss(*arrays, GROUPS), grad(*arrays, GROUPS)
    more = tuple(map(padded, arrays))
    groups = np.array([0, 0, 1, 0])
    np.testing.assert_allclose(loss(*more, groups, valid), expected, rtol=1e-6)
    # Embeddings of padding must be finite for gradients: 0 · NaN is NaN.
    finite = tuple(np.nan_to_num(x) for x in more)
    for grads, wanted in zip(grad(*finite, groups, valid), expected_grads, strict=True):
        np.testing.assert_allclose(grads[:3], wanted, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(grads[3], 0)
        assert np.any(wanted != 0)


@pytest.mark.parametrize("count", [0, 2])
def test_without_pairs_losses_and_gradients_are_zero(count):
    images = np.ones((count, 2), np.float32)
    valid = np.zeros(count, bool)
    groups = np.zeros(count, int)
    mask = dict(valid=valid)
    both = dict(mask, image_valid=valid)

    def losses(images):
        logits = siglip.pair_logits(images, images)
        own = siglip.negative_logits(images, images[:, None])
        return jnp.stack(
            [
                siglip.variable_text(logits, groups, **both),
                siglip.paired_negative(logits, groups, own, **both),
                siglip.grouped(logits, groups, **mask),
                siglip.grouped_paired_negative(logits, groups, own, **mask),
                siglip.grouped_slacked_negative(logits, groups, own, num_negatives=4, **mask),
            ]
        )

    np.testing.assert_array_equal(losses(images), np.zeros(5))
    np.testing.assert_array_equal(
        jax.grad(lambda x: losses(x).sum())(images), np.zeros_like(images)
    )


def test_scale_and_bias_can_be_learned():
    def loss(log_scale, bias):
        logits = siglip.pair_logits(PAIRS, TEXTS, scale=jnp.exp(log_scale), bias=bias)
        return siglip.grouped(logits, GROUPS)

    grads = jax.grad(loss, argnums=(0, 1))(0.3, -0.5)
    for argument, grad in enumerate(grads):
        step = np.array([1e-2 * (argument == 0), 1e-2 * (argument == 1)])
        up, down = (loss(*(np.array([0.3, -0.5]) + sign * step)) for sign in (1, -1))
        np.testing.assert_allclose(grad, (up - down) / 2e-2, rtol=1e-3)


def test_unknown_options_are_errors():
    with raises(UserError, "aggregation", "'max'", "mean, sum"):
        siglip.variable_text(jnp.zeros((3, 3)), TEXT_IMAGE, aggregation="max")
    with raises(UserError, "normalize", "'l1'", "l2, none"):
        siglip.pair_logits(X, TEXTS, normalize="l1")
