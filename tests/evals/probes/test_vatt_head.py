"""The classifier head of VATT's linear evaluation, compared with Keras."""

import jax
import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.evals.probes import vatt_head
from mmjax.evals.probes.classifiers import fit_vatt
from tests.messages import raises


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=150)  # two batches of 64 and one of 22
    centers = rng.normal(size=(5, 12))
    return (centers[labels] + rng.normal(size=(150, 12))).astype(np.float32), labels


def test_training_equals_keras(data):
    import keras

    x, labels = data
    start = vatt_head.init(jax.random.key(3), 12, 5)
    model = keras.Sequential(
        [
            keras.layers.Input((12,)),
            keras.layers.Dense(128),
            keras.layers.Dropout(0.0),
            keras.layers.Dense(5, "softmax", kernel_regularizer=keras.regularizers.L2(0.1)),
        ]
    )
    model.set_weights([start[part][name] for part in start for name in ("kernel", "bias")])
    model.compile(keras.optimizers.Adam(5e-4, epsilon=1e-7), "categorical_crossentropy")
    model.fit(x, np.eye(5)[labels], batch_size=64, epochs=6, shuffle=False, verbose=0)
    trained = vatt_head.train(
        start, x, labels, jax.random.key(0), epochs=6, rate=0.0, shuffle=False
    )
    weights = [trained[part][name] for part in ("hidden", "classes") for name in ("kernel", "bias")]
    for actual, expected in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, atol=2e-6)
    assert np.abs(weights[0] - start["hidden"]["kernel"]).max() > 5e-3  # it moved


def test_initialization_is_truncated_glorot_normal():
    params = vatt_head.init(jax.random.key(0), 512, 64)
    for part, fans in (("hidden", 512 + 128), ("classes", 128 + 64)):
        kernel = np.asarray(params[part]["kernel"])
        assert kernel.std() == pytest.approx(np.sqrt(2 / fans), rel=0.03)
        assert np.abs(kernel).max() <= 2 * np.sqrt(2 / fans) / 0.8796  # a truncated normal
        assert (params[part]["bias"] == 0).all()


def test_loss_equals_the_formula(data):
    x, labels = data[0][:6], data[1][:6]
    params = jax.tree.map(np.asarray, vatt_head.init(jax.random.key(1), 12, 5))
    noise = np.asarray(vatt_head.dropout(jax.random.key(2), 6, 0.9))
    weight = np.array([1, 1, 1, 0, 1, 0], np.float32)
    logits = (x @ params["hidden"]["kernel"] * noise) @ params["classes"]["kernel"]
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    losses = -log_probs[np.arange(6), labels]
    expected = losses[weight > 0].mean() + 0.1 * (params["classes"]["kernel"] ** 2).sum()
    assert vatt_head.loss(params, x, labels, weight, noise) == pytest.approx(expected, rel=1e-5)


def test_dropout_keeps_one_unit_in_ten_and_rescales_it():
    noise = np.asarray(vatt_head.dropout(jax.random.key(0), 400, 0.9))
    np.testing.assert_allclose(np.unique(noise), [0, 10], rtol=1e-5)
    assert (noise > 0).mean() == pytest.approx(0.1, abs=0.005)


def test_epochs_differ_in_order_and_noise(data):
    x, labels = data
    start = vatt_head.init(jax.random.key(3), 12, 5)
    runs = [
        vatt_head.train(start, x, labels, jax.random.key(key), epochs=1, rate=rate)
        for key, rate in ((0, 0.0), (1, 0.0), (0, 0.9), (1, 0.9), (0, 0.9))
    ]
    kernels = [np.asarray(run["hidden"]["kernel"]) for run in runs]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-5  # different orders
    assert np.abs(kernels[2] - kernels[3]).max() > 1e-3  # and different noise
    np.testing.assert_array_equal(kernels[2], kernels[4])


def test_scores_are_the_mean_probabilities_of_the_views(data):
    x, labels = data
    fitted = fit_vatt(x[:, None], labels, num_classes=5, epochs=60)
    first, second = (np.exp(fitted.scores(view[:, None])) for view in (x, x[::-1]))
    first, second = (p / p.sum(1, keepdims=True) for p in (first, second))
    mean = np.exp(fitted.scores(np.stack([x, x[::-1]], axis=1)))
    np.testing.assert_allclose(mean, (first + second) / 2, rtol=1e-4)
    assert (first.argmax(1) == labels).mean() > 0.9 and fitted.selection == {}


def test_multi_label_data_are_refused(data):
    with raises(UserError, "classifier", "'vatt'", "'logistic'"):
        fit_vatt(data[0][:, None], np.ones((150, 2), np.float32), num_classes=2)
