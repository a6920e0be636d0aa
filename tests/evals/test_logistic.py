import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mmjax.evals import logistic


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=300)
    centres = rng.normal(size=(5, 20))
    return (centres[labels] * 0.7 + rng.normal(size=(300, 20))).astype(np.float32), labels


def objective(kernel, bias, x, labels, strength):
    logits = x.astype(np.float64) @ kernel + bias
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return 0.5 * np.sum(kernel**2) - strength * log_probs[np.arange(len(x)), labels].sum()


def test_equals_scikit_learn_for_each_strength(data):
    x, labels = data
    for strength in (1e-3, 1e-1, 10.0):
        found = logistic.fit(x, np.eye(5)[labels], strength=strength)
        theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x, labels)
        best = objective(theirs.coef_.T, theirs.intercept_, x, labels, strength)
        ours = objective(found.kernel, found.bias, x, labels, strength)
        assert ours == pytest.approx(best, rel=1e-5)
        np.testing.assert_allclose(found.kernel.T, theirs.coef_, atol=0.01)
        agree = (found.logits(x).argmax(1) == theirs.predict(x)).mean()
        assert agree > 0.99
        assert found.gradient <= 1e-6 and found.iterations < 200


def test_sigmoid_is_a_problem_for_each_class(data):
    x, labels = data
    targets = np.stack([labels == 0, labels > 2], axis=1).astype(np.float32)
    found = logistic.fit(x, targets, strength=0.3, kind="sigmoid")
    for c in range(2):
        theirs = LogisticRegression(C=0.3, tol=1e-8, max_iter=5000).fit(x, targets[:, c])
        np.testing.assert_allclose(found.kernel[:, c], theirs.coef_[0], atol=2e-3)
        assert found.bias[c] == pytest.approx(theirs.intercept_[0], abs=2e-3)


def test_weights_leave_examples_out_and_count_them_twice(data):
    x, labels = data
    weight = np.ones(300)
    weight[:100], weight[100:150] = 0, 2
    theirs = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(x, labels, sample_weight=weight)
    found = logistic.fit(x, np.eye(5)[labels], strength=0.1, weight=weight)
    np.testing.assert_allclose(found.kernel.T, theirs.coef_, atol=2e-3)


def test_separable_and_badly_scaled_data_converge():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    x = rng.normal(size=(40, 3)).astype(np.float32) * np.array([1e-3, 1.0, 300.0], np.float32)
    x[:, 1] += 10 * labels
    found = logistic.fit(x, np.eye(2)[labels], strength=1.0)
    assert np.isfinite(found.kernel).all()
    assert (found.logits(x).argmax(1) == labels).all()


def test_a_warm_start_needs_no_iterations(data):
    x, labels = data
    targets = np.eye(5)[labels]
    first = logistic.fit(x, targets, strength=0.1)
    again = logistic.fit(x, targets, strength=0.1, start=first)
    assert first.iterations > 3 and again.iterations == 0


def test_correlated_features_converge():
    """As encoders give them: deviations along the axes from 1 to 1/300, turned; a weak penalty."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(24, 24)))[0]
    x = (rng.normal(size=(400, 24)) * np.geomspace(1, 1 / 300, 24)) @ turn
    logits = x @ turn.T @ (rng.normal(size=(24, 4)) / np.geomspace(1, 1 / 300, 24)[:, None])
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    found = logistic.fit(x, np.eye(4)[labels], strength=100.0)
    theirs = LogisticRegression(C=100.0, tol=1e-10, max_iter=500, solver="newton-cholesky")
    theirs.fit(x.astype(np.float64), labels)
    best = objective(theirs.coef_.T, theirs.intercept_, x, labels, 100.0)
    assert objective(found.kernel, found.bias, x, labels, 100.0) == pytest.approx(best, rel=1e-6)
    assert found.gradient <= 1e-6 and found.iterations < 150


@pytest.mark.parametrize("size", [3, 512, 513, 1500])
def test_the_product_in_blocks(size):
    rng = np.random.default_rng(0)
    x, rows = (rng.normal(size=(size, n)).astype(np.float32) for n in (7, 4))
    found = logistic.transposed_product(x, rows)
    np.testing.assert_allclose(found, x.T.astype(np.float64) @ rows, atol=1e-4)
