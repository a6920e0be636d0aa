"""Tests of classification losses against NumPy implementations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from mmjax.errors import UserError
from mmjax.losses import classification
from tests.messages import raises

# Compiled as a whole, because JAX compiles each operation outside of jax.jit separately.
softmax_cross_entropy = jax.jit(classification.softmax_cross_entropy)
sigmoid_cross_entropy = jax.jit(
    classification.sigmoid_cross_entropy, static_argnames=("balance", "groups")
)
LOGITS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32) * 3


def test_softmax_cross_entropy_with_soft_targets():
    targets = scipy.special.softmax(np.random.default_rng(1).normal(size=(6, 4)), axis=-1)
    losses = -(targets * scipy.special.log_softmax(LOGITS.astype(np.float64), axis=-1)).sum(-1)
    value = softmax_cross_entropy(LOGITS, targets)
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-6)
    mask = np.array([1, 0, 1, 1, 0, 0.5])
    value = softmax_cross_entropy(LOGITS, targets, mask=mask)
    np.testing.assert_allclose(value, np.average(losses, weights=mask), rtol=1e-6)


def test_large_logits_give_the_exact_loss():
    value = softmax_cross_entropy(jnp.array([[200.0, -200.0]]), jnp.array([[0.0, 1.0]]))
    assert value == 400.0


def test_masked_examples_are_ignored_even_if_nan():
    logits = LOGITS.copy()
    logits[2] = np.nan
    mask = np.array([1, 1, 0, 1, 1, 1], np.float32)
    kept = np.flatnonzero(mask)
    targets = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
    for loss in (softmax_cross_entropy, sigmoid_cross_entropy):
        run = jax.jit(jax.value_and_grad(loss))
        value, grad = jax.device_get(run(logits, targets, mask=mask))
        expected, expected_grad = jax.device_get(run(LOGITS[kept], targets[kept]))
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(grad[kept], expected_grad, rtol=1e-5, atol=1e-7)
        assert np.any(expected_grad != 0)
        assert loss(LOGITS, targets, mask=np.zeros(6)) == 0.0


def weighted_by_definition(logits, targets):
    """Computes VATT's weights in loops: Σ_c (y_bc / n_c) / Σ_c y_bc; 0 without labels."""
    logits = logits.astype(np.float64)
    total = 0.0
    for b in range(len(logits)):
        if targets[b].sum() == 0:
            continue
        weight = sum(
            targets[b, c] / targets[:, c].sum() for c in range(targets.shape[1]) if targets[b, c]
        )
        weight /= targets[b].sum()
        total += weight * np.sum(np.logaddexp(0, logits[b]) - targets[b] * logits[b])
    return total / len(logits)


# One example has no label, and one class never occurs.
LABELS = np.array(
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]], np.float32
)


def test_sigmoid_cross_entropy_weights_by_inverse_class_frequency():
    value = sigmoid_cross_entropy(LOGITS, LABELS)
    np.testing.assert_allclose(value, weighted_by_definition(LOGITS, LABELS), rtol=1e-6)
    mixed = 0.3 * LABELS + 0.7 * LABELS[::-1]
    value = sigmoid_cross_entropy(LOGITS, mixed)
    np.testing.assert_allclose(value, weighted_by_definition(LOGITS, mixed), rtol=1e-6)


def test_class_frequencies_are_counted_per_group():
    value = sigmoid_cross_entropy(LOGITS, LABELS, groups=2)
    halves = [weighted_by_definition(LOGITS[p], LABELS[p]) for p in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(value, np.mean(halves), rtol=1e-6)
    with raises(UserError, "groups=4", 6):
        sigmoid_cross_entropy(LOGITS, LABELS, groups=4)


def test_unlabeled_examples_get_no_gradient_and_others_the_exact_one():
    grad = np.asarray(jax.jit(jax.grad(sigmoid_cross_entropy))(LOGITS, LABELS))
    np.testing.assert_array_equal(grad[2], 0)
    weights = np.array(
        [
            sum(y / n for y, n in zip(labels, LABELS.sum(0), strict=True) if y)
            / max(labels.sum(), 1)
            for labels in LABELS
        ]
    )
    expected = weights[:, None] * (scipy.special.expit(LOGITS) - LABELS) / len(LABELS)
    np.testing.assert_allclose(grad, expected, rtol=1e-5, atol=1e-7)


def test_without_balance_the_loss_is_the_unweighted_mean():
    value = sigmoid_cross_entropy(LOGITS, LABELS, balance=False)
    wide = LOGITS.astype(np.float64)
    expected = (np.logaddexp(0, wide) - LABELS * wide).sum(-1).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_label_smoothing():
    smooth = classification.smooth_labels(jnp.array([[0.0, 1.0, 0.0, 0.0]]), 0.1)
    np.testing.assert_allclose(smooth, [[0.025, 0.925, 0.025, 0.025]], rtol=1e-6)
