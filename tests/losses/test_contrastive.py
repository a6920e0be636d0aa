"""Tests of contrastive losses against loops over examples and candidates in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmjax.errors import UserError
from mmjax.losses import contrastive
from tests.messages import raises

BATCH, CANDIDATES, WIDTH = 8, 3, 16
MASK = np.array([1, 1, 0, 1, 1, 1, 1, 1], np.float32)
CANDIDATE_MASK = np.ones((BATCH, CANDIDATES), np.float32)
CANDIDATE_MASK[1] = 0  # no candidate: the example is invalid
CANDIDATE_MASK[4, 1:] = 0
ANCHOR_MASK = np.array([1, 1, 1, 1, 1, 0, 1, 1], np.float32)
ALL_MASKS = dict(mask=MASK, candidate_mask=CANDIDATE_MASK, anchor_mask=ANCHOR_MASK)


@pytest.fixture(scope="module")
def embeddings():
    random = np.random.default_rng(0)
    anchor = random.normal(size=(BATCH, WIDTH))
    other = random.normal(size=(BATCH, CANDIDATES, WIDTH)) + 0.5 * anchor[:, None]
    return anchor.astype(np.float32), other.astype(np.float32)


def log_sum_exp(values):
    """Returns log Σ exp by definition; -inf for an empty list."""
    return np.logaddexp.reduce(np.asarray(values, np.float64)) if len(values) else -np.inf


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_definition(
    loss,
    anchor,
    other,
    mask=None,
    candidate_mask=None,
    anchor_mask=None,
    temperature=0.07,
    double_positive=True,
    groups=1,
):
    """Computes a loss in loops over examples and candidates, in float64."""
    anchor, other = unit(anchor), unit(other)
    count, candidates = other.shape[:2]
    has_anchor = np.ones(count) if anchor_mask is None else anchor_mask
    exists = np.ones((count, candidates))
    if mask is not None:
        exists = exists * mask[:, None]
    if candidate_mask is not None:
        exists = exists * candidate_mask

    def s(b, c, candidate):
        return anchor[b] @ other[c, candidate] / temperature

    def loss_of(b):
        mine = [i for i in range(candidates) if exists[b, i]]
        if not mine or not has_anchor[b]:
            return None
        own = log_sum_exp([s(b, b, i) for i in mine])
        by_anchor = [s(b, c, i) for c in range(count) for i in range(candidates) if exists[c, i]]
        others = [c for c in range(count) if has_anchor[c]]
        if loss == "symmetric":
            by_candidate = [s(c, b, i) for c in others for i in mine]
            return log_sum_exp(by_anchor) + log_sum_exp(by_candidate) - 2 * own
        by_candidate = [s(c, b, i) for c in others for i in mine if double_positive or c != b]
        return log_sum_exp(by_anchor + by_candidate) - own

    means = []
    for part in np.split(np.arange(count), groups):
        values = [value for value in map(loss_of, part) if value is not None]
        means.append(np.mean(values) if values else 0.0)
    return np.mean(means)


# Compiled as a whole, because JAX compiles each operation outside of jax.jit separately.
LOSSES = {
    "asymmetric": jax.jit(
        contrastive.asymmetric_nce,
        static_argnames=("double_positive", "mask_groups", "chunk_size"),
    ),
    "symmetric": jax.jit(contrastive.symmetric_nce, static_argnames=("mask_groups", "chunk_size")),
}
info_nce = jax.jit(contrastive.info_nce, static_argnames="chunk_size")
soft_nce = jax.jit(contrastive.soft_nce, static_argnames=("target_temperature", "chunk_size"))
sigmoid_loss = jax.jit(contrastive.sigmoid_loss, static_argnames="chunk_size")
# The accuracy of float32 sums of similarities up to 1 / 0.07.
ROUNDING = dict(rtol=0, atol=3e-6)


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize(
    "masks",
    [{}, dict(mask=MASK), ALL_MASKS],
    ids=["none", "examples", "all"],
)
@pytest.mark.parametrize("name", LOSSES)
def test_nce_equals_the_published_formula(embeddings, name, masks, chunk_size):
    value = LOSSES[name](*embeddings, **masks, chunk_size=chunk_size)
    np.testing.assert_allclose(value, by_definition(name, *embeddings, **masks), **ROUNDING)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_single_positive_gives_the_standard_denominator(embeddings, chunk_size):
    value = LOSSES["asymmetric"](
        *embeddings, **ALL_MASKS, double_positive=False, chunk_size=chunk_size
    )
    expected = by_definition("asymmetric", *embeddings, **ALL_MASKS, double_positive=False)
    np.testing.assert_allclose(value, expected, **ROUNDING)


def test_loss_of_a_single_pair_counts_the_positive_once_or_twice():
    pair = jnp.ones((1, 4)), jnp.ones((1, 4))
    np.testing.assert_allclose(LOSSES["asymmetric"](*pair), np.log(2.0), rtol=1e-6)
    assert LOSSES["asymmetric"](*pair, double_positive=False) == 0.0


@pytest.mark.parametrize("name", LOSSES)
def test_mask_groups_average_over_their_own_valid_examples(embeddings, name):
    # The groups have 3, 1, 1 and 2 valid examples, so that the mean over all examples differs.
    value = LOSSES[name](*embeddings, **ALL_MASKS, mask_groups=4)
    expected = by_definition(name, *embeddings, **ALL_MASKS, groups=4)
    np.testing.assert_allclose(value, expected, **ROUNDING)
    assert abs(expected - by_definition(name, *embeddings, **ALL_MASKS)) > 1e-2


@pytest.mark.parametrize("double_positive", [True, False])
def test_gradient_equals_finite_differences(embeddings, double_positive):
    anchor, other = embeddings
    random = np.random.default_rng(1)
    direction = random.normal(size=anchor.shape), random.normal(size=other.shape)

    def at(distance):
        moved = (
            x.astype(np.float64) + distance * t for x, t in zip(embeddings, direction, strict=True)
        )
        return by_definition("asymmetric", *moved, **ALL_MASKS, double_positive=double_positive)

    expected = (at(1e-4) - at(-1e-4)) / 2e-4
    for chunk_size in (None, 2):
        grads = jax.jit(
            jax.grad(
                lambda a, o, chunk_size=chunk_size: LOSSES["asymmetric"](
                    a, o, **ALL_MASKS, double_positive=double_positive, chunk_size=chunk_size
                ),
                argnums=(0, 1),
            )
        )(anchor, other)
        slope = sum(np.vdot(g, t) for g, t in zip(grads, direction, strict=True))
        np.testing.assert_allclose(slope, expected, rtol=1e-4)


def test_masked_candidates_get_no_gradient(embeddings):
    grad = jax.jit(
        jax.grad(lambda o: LOSSES["asymmetric"](embeddings[0], o, **ALL_MASKS, chunk_size=2))
    )(embeddings[1])
    largest = np.abs(grad).max(axis=-1)
    exists = (CANDIDATE_MASK * MASK[:, None]) > 0
    assert np.all(largest[~exists] == 0) and np.all(largest[exists] > 0)


@pytest.mark.parametrize("name", LOSSES)
def test_without_valid_examples_loss_and_gradient_are_zero(embeddings, name):
    for absent in (dict(mask=np.zeros(BATCH)), dict(anchor_mask=np.zeros(BATCH))):
        value, grads = jax.jit(
            jax.value_and_grad(lambda e, absent=absent: LOSSES[name](*e, **absent, chunk_size=4))
        )(embeddings)
        assert value == 0.0
        assert all(np.all(np.asarray(g) == 0.0) for g in grads)


def test_zero_vectors_of_a_missing_modality_do_not_change_gradients(embeddings):
    gradient = jax.jit(jax.grad(lambda a: LOSSES["asymmetric"](a, embeddings[1], **ALL_MASKS)))
    expected = np.asarray(gradient(embeddings[0]))
    actual = np.asarray(gradient(embeddings[0] * ANCHOR_MASK[:, None]))
    assert np.abs(expected[ANCHOR_MASK > 0]).max() > 1e-3
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    np.testing.assert_array_equal(actual[ANCHOR_MASK == 0], 0)


def test_bfloat16_embeddings_are_compared_in_float32(embeddings):
    halves = [jnp.asarray(x, jnp.bfloat16) for x in embeddings]
    value = LOSSES["asymmetric"](*halves)
    assert value.dtype == jnp.float32
    expected = by_definition("asymmetric", *(np.asarray(x, np.float32) for x in halves))
    np.testing.assert_allclose(value, expected, **ROUNDING)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_info_nce_is_the_mean_of_two_cross_entropies(embeddings, chunk_size):
    first, second = embeddings[0], embeddings[1][:, 0]
    valid = np.flatnonzero(MASK)

    def expected(scale):
        logits = scale * unit(first[valid]) @ unit(second[valid]).T
        own = np.diagonal(logits)
        forward, backward = (np.logaddexp.reduce(logits, axis=axis) for axis in (1, 0))
        return ((forward - own).mean() + (backward - own).mean()) / 2

    value, slope = jax.jit(
        jax.value_and_grad(
            lambda scale: info_nce(
                first, second, logit_scale=scale, mask=MASK, chunk_size=chunk_size
            )
        )
    )(jnp.float32(10.0))
    np.testing.assert_allclose(value, expected(10.0), rtol=1e-5)
    np.testing.assert_allclose(slope, (expected(10.1) - expected(9.9)) / 0.2, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "chunk_size"), [("asymmetric", None), ("asymmetric", 2), ("symmetric", 2), ("info", 2)]
)
def test_eight_devices_give_the_loss_and_gradient_of_one(embeddings, name, chunk_size):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))

    def loss(anchor, other, mask):
        if name == "info":
            return info_nce(anchor, other[:, 0], logit_scale=14.0, mask=mask, chunk_size=chunk_size)
        return LOSSES[name](anchor, other, mask=mask, chunk_size=chunk_size)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, grads = step(*embeddings, MASK)
    sharded = jax.device_put((*embeddings, MASK), sharding)
    sharded_value, sharded_grads = step(*sharded)
    np.testing.assert_allclose(sharded_value, value, **ROUNDING)
    for one, other in zip(grads, sharded_grads, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)


def test_chunking_bounds_the_memory_of_similarities():
    count, chunk, devices = 1024, 32, 8
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    anchor = jax.ShapeDtypeStruct((count, 8), jnp.float32, sharding=sharding)
    other = jax.ShapeDtypeStruct((count, CANDIDATES, 8), jnp.float32, sharding=sharding)

    def memory(chunk_size):
        step = jax.grad(
            lambda a, o: LOSSES["asymmetric"](a, o, chunk_size=chunk_size), argnums=(0, 1)
        )
        return jax.jit(step).lower(anchor, other).compile().memory_analysis().temp_size_in_bytes

    share = (
        4 * count * count * CANDIDATES / devices
    )  # the similarity matrix, sharded over the devices
    assert memory(None) > share
    assert memory(chunk) < share / 2


def test_batch_top1_counts_valid_examples():
    batch_top1 = jax.jit(contrastive.batch_top1, static_argnames="chunk_size")
    anchor = np.eye(4, dtype=np.float32)
    other = np.stack(
        [anchor[[0, 1, 3, 2]], np.full((4, 4), -1, np.float32)], axis=1
    )  # 2 and 3 are swapped
    for chunk_size in (None, 2):
        hits, count = batch_top1(anchor, other, chunk_size=chunk_size)
        assert (float(hits), float(count)) == (2, 4)
        # Example 2 is nearest to the candidate of example 3, and without it to its own.
        partial = other.copy()
        partial[2, 1] = anchor[2] + 2 * anchor[3]
        hits, count = batch_top1(anchor, partial, chunk_size=chunk_size)
        assert (float(hits), float(count)) == (2, 4)
        mask = np.array([1, 1, 1, 0])
        hits, count = batch_top1(anchor, partial, mask=mask, chunk_size=chunk_size)
        assert (float(hits), float(count)) == (3, 3)
        # Missing candidates are not selected.
        mask = np.ones((4, 2))
        mask[0, 0] = 0
        hits, count = batch_top1(anchor, other, candidate_mask=mask, chunk_size=chunk_size)
        assert (float(hits), float(count)) == (1, 4)


def test_sizes_that_do_not_divide_the_batch_are_named(embeddings):
    with raises(UserError, "chunk_size=3", BATCH):
        LOSSES["asymmetric"](*embeddings, chunk_size=3)
    with raises(UserError, "mask_groups=3", BATCH):
        LOSSES["asymmetric"](*embeddings, mask_groups=3)


@pytest.mark.parametrize("name", LOSSES)
def test_missing_anchors_are_ignored(name):
    loss = LOSSES[name]
    rng = np.random.default_rng(5)
    texts, videos = rng.normal(size=(4, 3, 8)), rng.normal(size=(4, 8))
    exists = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]])
    value = loss(texts, videos, anchor_mask=exists)
    texts[exists == 0] = 9 * rng.normal(size=(6, 8))
    changed = loss(texts, videos, anchor_mask=exists)
    np.testing.assert_allclose(value, changed, rtol=1e-6)
    unmasked = loss(texts, videos)
    assert abs(float(unmasked) - float(value)) > 1e-3


# A worked example of TVL's losses: four touch images, four captions, logit scale 1 / 0.07.
TOUCH = np.array([[1, 0.2, 0], [0.1, 1, 0.3], [0.3, 0.2, 1], [0.9, 0.1, 0.3]], np.float32)
TEXT = np.array([[1, 0.1, 0.1], [0.2, 1, 0.1], [0.1, 0.3, 1], [0.95, 0.3, 0]], np.float32)
SCALE = 1 / 0.07


def test_tvl_losses_of_the_worked_example():
    hard = info_nce(TOUCH, TEXT, logit_scale=SCALE)
    np.testing.assert_allclose(hard, 0.4526839, rtol=2e-6)
    soft = soft_nce(TOUCH, TEXT, logit_scale=SCALE)
    np.testing.assert_allclose(soft, 0.3885876, rtol=2e-6)


def soft_by_definition(first, second, scale, mask):
    """Computes the mean cross-entropy over both axes for the valid examples, in float64."""
    keep = mask > 0
    a, b = unit(first)[keep], unit(second)[keep]
    text_similarity, scores = b @ b.T / 0.05, scale * a @ b.T

    def softmax(x, axis):
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)

    entropies = [
        -(softmax(text_similarity, axis) * np.log(softmax(scores, axis))).sum() / keep.sum()
        for axis in (0, 1)
    ]
    return np.mean(entropies)


def sigmoid_by_definition(first, second, scale, bias, mask):
    a, b = unit(first), unit(second)
    valid = np.flatnonzero(mask)
    total = 0.0
    for i in valid:
        for j in valid:
            z = scale * a[i] @ b[j] + bias
            total += np.log1p(np.exp(-z if i == j else z))
    return total / len(valid)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_soft_and_sigmoid_losses_equal_their_definitions(embeddings, chunk_size):
    first, second = embeddings[0], embeddings[1][:, 0]
    options = dict(logit_scale=5.0, mask=MASK, chunk_size=chunk_size)
    soft = soft_nce(first, second, **options)
    np.testing.assert_allclose(soft, soft_by_definition(first, second, 5.0, MASK), rtol=1e-5)
    sigmoid = sigmoid_loss(first, second, logit_bias=-3.0, **options)
    np.testing.assert_allclose(
        sigmoid, sigmoid_by_definition(first, second, 5.0, -3.0, MASK), rtol=1e-5
    )


@pytest.mark.parametrize("loss", [soft_nce, sigmoid_loss])
def test_chunking_does_not_change_the_gradient(embeddings, loss):
    first, second = jnp.asarray(embeddings[0]), jnp.asarray(embeddings[1][:, 0])

    def gradient(chunk_size):
        function = lambda a, b: loss(a, b, logit_scale=5.0, mask=MASK, chunk_size=chunk_size)  # noqa: E731
        return jax.jit(jax.grad(function, argnums=(0, 1)))(first, second)

    for whole, chunked in zip(gradient(None), gradient(4), strict=True):
        np.testing.assert_allclose(chunked, whole, atol=1e-6)
        assert np.all(np.asarray(whole)[MASK == 0] == 0)  # Masked examples get no gradient.


def test_soft_targets_get_no_gradient():
    eye = jnp.eye(3)
    gradient = jax.jit(jax.grad(lambda text: soft_nce(eye, text, logit_scale=0.0)))(eye)
    np.testing.assert_array_equal(gradient, 0)  # At scale 0 only the targets depend on the text.


def test_soft_targets_need_a_positive_temperature():
    with raises(UserError, "target_temperature", "got 0", "'info_nce'"):
        soft_nce(TOUCH, TEXT, logit_scale=SCALE, target_temperature=0)


def test_soft_targets_approach_info_nce_at_low_temperature():
    soft = soft_nce(TOUCH, TEXT, logit_scale=SCALE, target_temperature=1e-3)
    hard = info_nce(TOUCH, TEXT, logit_scale=SCALE)
    np.testing.assert_allclose(soft, hard, rtol=1e-5)


def test_clamped_scale_stops_increases_at_the_limit_and_allows_decreases():
    limit = np.log(100.0)
    scale, up = jax.value_and_grad(lambda x: -contrastive.clamped_scale(x, 100.0))(limit + 0.1)
    np.testing.assert_allclose(scale, -100.0, rtol=1e-6)
    assert up == 0
    down = jax.grad(lambda x: contrastive.clamped_scale(x, 100.0))(limit + 0.1)
    np.testing.assert_allclose(down, 100.0, rtol=1e-5)
    np.testing.assert_allclose(
        contrastive.clamped_scale(limit + 0.1, 0), 100 * np.exp(0.1), rtol=1e-5
    )
    np.testing.assert_allclose(
        contrastive.clamped_scale(jnp.float32(2.0), 100.0), np.exp(2), rtol=1e-6
    )


def test_clamped_scale_has_a_minimum():
    def scale(x):
        return contrastive.clamped_scale(x, 100.0, 2.0)

    low, inside = jnp.float32(np.log(1.5)), jnp.float32(np.log(30))
    value, up = jax.value_and_grad(lambda x: -scale(x))(low)
    np.testing.assert_allclose([-value, -up], 2.0, rtol=1e-6)
    assert jax.grad(scale)(low) == 0
    np.testing.assert_allclose(jax.value_and_grad(scale)(inside), 30.0, rtol=1e-5)
