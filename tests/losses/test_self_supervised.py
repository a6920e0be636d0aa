"""Tests of self-supervised losses against published values and NumPy implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from mmjax.errors import UserError
from mmjax.losses import self_supervised
from tests.messages import raises

# Compiled as a whole, because JAX compiles each operation outside of jax.jit separately.
nt_xent = jax.jit(self_supervised.nt_xent, static_argnames="chunk_size")
one_way_nce = jax.jit(self_supervised.one_way_nce, static_argnames="chunk_size")
negative_cosine = jax.jit(self_supervised.negative_cosine)
sinkhorn = jax.jit(self_supervised.sinkhorn, static_argnames=("epsilon", "iterations"))
swapped_prediction = jax.jit(self_supervised.swapped_prediction, static_argnames="axis")

A = np.array([[1, 2, 0.5], [0.2, -1, 0.3], [1, 0, 1]], np.float32)
B = np.array([[1, 1, 0.2], [0.1, -1, 0.9], [0.5, 0.6, 1]], np.float32)
P0 = np.array([[0.1, 0.2, -0.1, 0], [0.3, -0.2, 0.1, 0.2], [0, 0.1, 0.2, -0.3]], np.float32)
P1 = np.array([[0.2, 0.1, 0, -0.1], [0.2, -0.1, 0.2, 0.1], [0.1, 0, 0.3, -0.2]], np.float32)


def random_views(count=8, features=5, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(count, features)).astype(np.float32) for _ in range(2)]


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def nt_xent_reference(a, b, temperature):
    """Computes SimCLR's loss in a loop over embeddings."""
    z = np.concatenate([unit(a), unit(b)])
    losses = []
    for i in range(len(z)):
        others = [z[i] @ z[j] / temperature for j in range(len(z)) if j != i]
        losses.append(logsumexp(others) - z[i] @ z[(i + len(a)) % len(z)] / temperature)
    return np.mean(losses)


def test_simclr_gives_the_published_value():
    np.testing.assert_allclose(nt_xent(A, B, temperature=0.1), 0.1686849, rtol=1e-5)


def test_nnclr_gives_the_published_value():
    both = one_way_nce(A, B, temperature=0.1) + one_way_nce(B, A, temperature=0.1)
    np.testing.assert_allclose(0.5 * both, 0.1149118, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 16])
def test_simclr_has_two_n_minus_two_negatives(chunk_size):
    a, b = random_views()
    loss = nt_xent(a, b, temperature=0.3, chunk_size=chunk_size)
    np.testing.assert_allclose(loss, nt_xent_reference(a, b, 0.3), rtol=1e-5)


@pytest.mark.parametrize("loss", [nt_xent, one_way_nce])
def test_chunking_does_not_change_the_gradient(loss):
    a, b = random_views()
    whole = jax.jit(jax.grad(lambda x: loss(x, b)))(a)
    chunked = jax.jit(jax.grad(lambda x: loss(x, b, chunk_size=2)))(a)
    np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [nt_xent, one_way_nce, negative_cosine])
def test_examples_without_a_view_are_ignored(loss):
    a, b = random_views()
    mask = np.array([1, 0, 1, 1, 0, 1, 1, 1], np.float32)
    a[1], b[4] = a[0], b[0]  # would be hard negatives
    valid = mask > 0
    np.testing.assert_allclose(loss(a, b, mask=mask), loss(a[valid], b[valid]), rtol=1e-5)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: loss(x, b, mask=mask)))(a))
    assert gradient[valid].any() and not gradient[~valid].any()
    assert loss(a, b, mask=np.zeros(8, np.float32)) == 0


def test_chunk_size_that_does_not_divide_the_batch_is_rejected():
    with raises(UserError, "chunk_size=3", 16):
        nt_xent(*random_views(), chunk_size=3)


def test_negative_cosine_compares_directions_and_stops_the_target_gradient():
    a, b = random_views()
    expected = -np.mean(np.sum(unit(a) * unit(b), axis=1))
    np.testing.assert_allclose(negative_cosine(a, 7 * b), expected, rtol=1e-5)
    gradient, target_gradient = jax.jit(jax.grad(negative_cosine, argnums=(0, 1)))(a, b)
    assert np.any(gradient) and not np.any(target_gradient)


def sinkhorn_reference(scores, epsilon=0.05, iterations=3):
    """Follows SwAV's code: prototypes in rows, and all divisions in the published order."""
    q = np.exp(np.asarray(scores, np.float64) / epsilon).T
    prototypes, examples = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q = q / q.sum(axis=1, keepdims=True) / prototypes
        q = q / q.sum(axis=0, keepdims=True) / examples
    return (q * examples).T


def test_sinkhorn_gives_the_published_assignment():
    expected = [0.0731489, 0.8503894, 0.0026716, 0.0737901]
    np.testing.assert_allclose(sinkhorn(P0)[0], expected, rtol=2e-5)
    np.testing.assert_allclose(sinkhorn(P0), sinkhorn_reference(P0), rtol=2e-5)


@pytest.mark.parametrize(("axis", "value"), [("batch", 0.5993439), ("prototypes", 1.0303807)])
def test_swav_gives_the_published_values(axis, value):
    q0, q1 = sinkhorn(P0), sinkhorn(P1)
    loss = 0.5 * (swapped_prediction(P1, q0, axis=axis) + swapped_prediction(P0, q1, axis=axis))
    np.testing.assert_allclose(loss, value, rtol=2e-5)


def test_examples_without_a_view_are_ignored_in_assignments():
    scores = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)
    mask = np.array([1, 0, 1, 1, 0, 1], np.float32)
    codes = np.asarray(sinkhorn(scores, mask=mask))
    assert not codes[mask == 0].any()
    np.testing.assert_allclose(codes[mask > 0], sinkhorn_reference(scores[mask > 0]), rtol=2e-5)
    for axis in ("batch", "prototypes"):
        loss = swapped_prediction(scores, codes, axis=axis, mask=mask)
        expected = swapped_prediction(scores[mask > 0], codes[mask > 0], axis=axis)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_small_epsilon_gives_one_hot_assignments():
    scores = jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    codes = sinkhorn(scores, epsilon=0.01)
    np.testing.assert_allclose(codes, np.eye(2), atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.02, 0.001])
def test_small_epsilon_keeps_every_example_assigned(epsilon):
    rng = np.random.default_rng(0)
    scores = rng.uniform(-1, 1, (6, 9)).astype(np.float32)
    scores[2] -= 0.9  # lower than all others for every prototype
    codes = np.asarray(sinkhorn(scores, epsilon=epsilon))
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-5)
    longer = scores.astype(np.longdouble) / epsilon
    expected = np.exp(longer - longer.max())
    for _ in range(3):
        expected /= expected.sum(0)
        expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(codes, expected.astype(float), atol=2e-3)


def test_unknown_softmax_axis_is_rejected_with_the_valid_ones():
    with raises(UserError, "softmax_axis", "'rows'", "prototypes", "batch"):
        swapped_prediction(P0, P1, axis="rows")
