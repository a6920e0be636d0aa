"""Mixup: weights, pairs of examples, and invalid leaves."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.preprocess.mixup import mix, mixup
from tests.messages import raises

KEY = jax.random.key(0)


def test_mixup_mixes_inputs_and_targets_with_the_same_weights():
    count = 4_000
    # One-hot vectors: a mixed one shows its weight and the other example.
    x = np.eye(8, dtype=np.float32)[np.arange(count) % 8]
    images = x[:, :, None, None] * np.ones((1, 1, 2, 3), np.float32)
    mixed, targets = jax.jit(lambda tree: mixup(KEY, tree, alpha=5.0))((images, x))
    np.testing.assert_allclose(mixed, np.asarray(targets)[:, :, None, None] * np.ones((2, 3)))
    np.testing.assert_allclose(np.sum(targets, axis=1), 1, atol=1e-6)
    own = np.asarray(targets)[np.arange(count), np.arange(count) % 8]
    other = own[np.max(targets, axis=1) + np.sort(targets, axis=1)[:, -2] > 0.999]
    weights = other[other < 0.999]  # mixed with another class: `own` is λ ~ Beta(5, 5)
    np.testing.assert_allclose(weights.mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(weights.var(), 1 / 44, rtol=0.1)


def test_mixup_weights_follow_a_beta_distribution_of_two_parameters():
    x = np.eye(2, dtype=np.float32)[np.arange(2_000) % 2]
    mixed = np.asarray(mixup(KEY, x, alpha=10.0, beta=2.0))
    own = mixed[np.arange(2_000), np.arange(2_000) % 2]
    np.testing.assert_allclose(own[own < 0.9999].mean(), 10 / 12, atol=0.02)


def test_mix_interpolates_with_the_given_weights_and_permutation():
    x = np.array([[1.0], [2.0], [4.0]], np.float32)
    result = mix(x, jnp.array([1.0, 0.75, 0.0]), jnp.array([2, 0, 1]))
    np.testing.assert_allclose(result, [[1.0], [1.75], [2.0]])


def test_mixup_of_integer_labels_is_an_error():
    with raises(TypeError, "mixup", "int32"):
        mixup(KEY, {"label": jnp.arange(4)}, alpha=1.0)
