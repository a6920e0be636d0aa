"""Logistic regression compared with scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mmjax.evals.probes import logistic


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=300)
    centers = rng.normal(size=(5, 20))
    return (centers[labels] * 0.7 + rng.normal(size=(300, 20))).astype(np.float32), labels


def objective(kernel, bias, x, labels, c):
    logits = x.astype(np.float64) @ kernel + bias
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return 0.5 * np.sum(kernel**2) - c * log_probs[np.arange(len(x)), labels].sum()


def test_equals_scikit_learn_for_each_c(data):
    x, labels = data
    for c in (1e-3, 1e-1, 10.0):
        result = logistic.fit(x, np.eye(5)[labels], C=c)
        reference = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(x, labels)
        best = objective(reference.coef_.T, reference.intercept_, x, labels, c)
        actual = objective(result.kernel, result.bias, x, labels, c)
        assert actual == pytest.approx(best, rel=1e-5)
        np.testing.assert_allclose(result.kernel.T, reference.coef_, atol=0.01)
        agree = (result.logits(x).argmax(1) == reference.predict(x)).mean()
        assert agree > 0.99
        assert result.gradient <= 1e-6 and result.iterations < 200


def test_sigmoid_fits_one_binary_problem_per_class(data):
    x, labels = data
    targets = np.stack([labels == 0, labels > 2], axis=1).astype(np.float32)
    result = logistic.fit(x, targets, C=0.3, activation="sigmoid")
    for c in range(2):
        reference = LogisticRegression(C=0.3, tol=1e-8, max_iter=5000).fit(x, targets[:, c])
        np.testing.assert_allclose(result.kernel[:, c], reference.coef_[0], atol=2e-3)
        assert result.bias[c] == pytest.approx(reference.intercept_[0], abs=2e-3)


def test_example_weights_of_zero_and_two(data):
    x, labels = data
    weight = np.ones(300)
    weight[:100], weight[100:150] = 0, 2
    reference = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(
        x, labels, sample_weight=weight
    )
    result = logistic.fit(x, np.eye(5)[labels], C=0.1, weight=weight)
    np.testing.assert_allclose(result.kernel.T, reference.coef_, atol=2e-3)


def test_separable_and_badly_scaled_data_converge():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    x = rng.normal(size=(40, 3)).astype(np.float32) * np.array([1e-3, 1.0, 300.0], np.float32)
    x[:, 1] += 10 * labels
    result = logistic.fit(x, np.eye(2)[labels], C=1.0)
    assert result.gradient <= 1e-6 and result.iterations < 200
    assert (result.logits(x).argmax(1) == labels).all()


def test_a_warm_start_needs_no_iterations(data):
    x, labels = data
    targets = np.eye(5)[labels]
    first = logistic.fit(x, targets, C=0.1)
    again = logistic.fit(x, targets, C=0.1, start=first)
    assert first.iterations > 3 and again.iterations == 0


def test_correlated_features_converge():
    """As from encoders: deviations from 1 to 1/300 along rotated axes, with a weak penalty."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    x = (rng.normal(size=(400, 24)) * np.geomspace(1, 1 / 300, 24)) @ rotation
    logits = x @ rotation.T @ (rng.normal(size=(24, 4)) / np.geomspace(1, 1 / 300, 24)[:, None])
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    result = logistic.fit(x, np.eye(4)[labels], C=100.0)
    reference = LogisticRegression(C=100.0, tol=1e-10, max_iter=500, solver="newton-cholesky")
    reference.fit(x.astype(np.float64), labels)
    best = objective(reference.coef_.T, reference.intercept_, x, labels, 100.0)
    assert objective(result.kernel, result.bias, x, labels, 100.0) == pytest.approx(best, rel=1e-6)
    assert result.gradient <= 1e-6 and result.iterations < 150
