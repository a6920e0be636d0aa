"""Tests of rescaled cross entropies against published values and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mmjax.errors import UserError
from mmjax.losses import rescaled_cross_entropy as rescaled
from tests.messages import raises

LOSSES = np.array([[[1, 2], [0.5, 0]], [[0.25, 0.25], [3, 1]]], np.float32)
WEIGHTS = np.array([[[0.02, 0.01], [0, 0.05]], np.full((2, 2), 0.001)], np.float32)
value_and_grad = jax.value_and_grad(rescaled.rescaled_mean)


def test_rescaling_over_the_batch_has_the_published_values():
    value, grad = value_and_grad(LOSSES, WEIGHTS, normalize_over="batch")
    np.testing.assert_allclose(value, LOSSES.mean(), rtol=1e-6)
    first = [[0.1420959, 0.1302546], [0.1184133, 0.1776199]]
    np.testing.assert_allclose(grad[0], first, atol=1e-6)
    np.testing.assert_allclose(grad[1], 0.1195974, atol=1e-6)
    value, grad = value_and_grad(LOSSES, WEIGHTS, normalize_over="none")
    np.testing.assert_allclose(value, 1.0556251, atol=1e-6)
    np.testing.assert_allclose(grad[0], [[0.15, 0.1375], [0.125, 0.1875]], atol=1e-6)
    np.testing.assert_allclose(grad[1], 0.12625, atol=1e-6)


def test_rescaling_within_images_keeps_the_total_of_each_image():
    value, grad = value_and_grad(LOSSES, WEIGHTS)
    np.testing.assert_allclose(value, LOSSES.mean(), rtol=1e-6)
    # The gradient in ℓ of a sum that is linear in ℓ: its product with ℓ is the total.
    np.testing.assert_allclose((grad * LOSSES).sum((1, 2)), LOSSES.sum((1, 2)) / 8, rtol=1e-6)
    # An image with uniform weights has the gradient of the mean; others more at large weights.
    np.testing.assert_allclose(grad[1], 1 / 8, rtol=1e-6)
    assert grad[0, 0, 0] > grad[0, 0, 1] > grad[0, 1, 0]


def test_weights_have_no_gradient():
    grad = jax.grad(rescaled.rescaled_mean, argnums=1)(LOSSES, WEIGHTS, normalize_over="none")
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("normalize_over", ["image", "batch", "none"])
@pytest.mark.parametrize("count_ignored", [False, True])
def test_ignored_pixels_are_left_out(normalize_over, count_ignored):
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 3, 4, 5)).astype(np.float32)
    labels = random.integers(0, 5, size=(2, 3, 4, 1))
    labels[0, 0] = -1
    labels[1, 1, 1] = 4  # ignored
    weights = random.random((2, 3, 4)).astype(np.float32)
    valid = (labels[..., 0] >= 0) & (labels[..., 0] != 4)
    logits[~valid] = np.nan

    losses = np.where(
        valid,
        -np.take_along_axis(
            scipy.special.log_softmax(np.nan_to_num(logits.astype(np.float64)), axis=-1),
            np.maximum(labels, 0),
            axis=-1,
        )[..., 0],
        0.0,
    )
    after = losses * (1 + 2.0 * weights)
    if normalize_over == "batch":
        after *= losses.sum() / after.sum()
    elif normalize_over == "image":
        after *= losses.sum((1, 2), keepdims=True) / after.sum((1, 2), keepdims=True)
    expected = after.sum() / (valid.size if count_ignored else valid.sum())

    options = dict(normalize_over=normalize_over, count_ignored=count_ignored)
    value = rescaled.rescaled_cross_entropy(logits, labels, weights, ignore=4, alpha=2.0, **options)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    nothing = jnp.full_like(labels, -1)
    assert rescaled.rescaled_cross_entropy(logits, nothing, weights, **options) == 0


def test_weights_are_the_mean_of_the_maps_of_an_image_then_a_trend():
    random = np.random.default_rng(0)
    maps = random.random((4, 3, 2)).astype(np.float32)
    images, valid = np.array([2, 0, 2, 0]), np.array([1, 1, 1, 0], bool)
    maps[3] = np.nan
    mean = np.stack([maps[1], np.full((3, 2), 1 / 6), (maps[0] + maps[2]) / 2])
    trends = {
        "power": mean**0.8,
        "identity": mean,
        "log": np.log(1 + mean),
        "exp": np.exp(mean) - 1,
    }
    for trend, expected in trends.items():
        weights = rescaled.pixel_weights(maps, images, 3, valid=valid, trend=trend)
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
    weights = rescaled.pixel_weights(maps, images, 3, valid=valid, filler=0.25, trend="identity")
    np.testing.assert_array_equal(weights[1], 0.25)


def test_fillers_and_attention_have_the_published_weights():
    maps = np.full((1, 520, 520), 1 / 196, np.float32)
    weights = rescaled.pixel_weights(maps, np.array([1]), 2)
    np.testing.assert_allclose(weights[0], 4.5123e-5, rtol=1e-5)
    np.testing.assert_allclose(weights[1], 0.01466207, rtol=1e-6)


def test_unknown_options_are_errors():
    with raises(UserError, "trend", "'pow'", "'power'"):
        rescaled.pixel_weights(np.zeros((1, 2, 2)), np.array([0]), 1, trend="pow")
    with raises(UserError, "normalize_over", "'images'", "'image'"):
        rescaled.rescaled_mean(LOSSES, WEIGHTS, normalize_over="images")
