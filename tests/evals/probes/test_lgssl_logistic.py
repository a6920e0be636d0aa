"""Logistic regression with the penalty of the published LGSSL code."""

import math

import numpy as np
import pytest
from scipy import optimize

from mmjax.evals.probes import lgssl_logistic

# Six points of three classes.
POINTS = np.array([[1, 0], [0.8, 0.3], [0, 1], [0.2, 0.9], [-1, -1], [-0.7, -1.2]], np.float32)
CLASSES = np.array([0, 0, 1, 1, 2, 2])


def objective(theta, x, labels, c):
    """Mean cross-entropy + 0.5 / C |W|, and its gradient, in float64."""
    theta = theta.reshape(x.shape[1] + 1, -1)
    logits = x @ theta[:-1] + theta[-1]
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    norm = np.linalg.norm(theta[:-1])
    loss = -np.log(probs[np.arange(len(x)), labels]).mean() + 0.5 / c * norm
    error = (probs - np.eye(theta.shape[1])[labels]) / len(x)
    kernel = x.T @ error + 0.5 / c * theta[:-1] / max(norm, 1e-30)
    return loss, np.concatenate([kernel, error.sum(0, keepdims=True)]).ravel()


@pytest.mark.parametrize(
    "c, expected, norm", [(1.0, 1.065795, 0.478345), (100.0, 0.0479057, 7.887211)]
)
def test_optima_equal_published_code(c, expected, norm):
    solution = lgssl_logistic.fit(POINTS, CLASSES, num_classes=3, C=c)
    assert solution.objective == pytest.approx(expected, rel=1e-5)
    assert np.linalg.norm(solution.kernel) == pytest.approx(norm, rel=1e-3)
    theta = np.concatenate([solution.kernel, solution.bias[None]])
    assert objective(theta, POINTS, CLASSES, c)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("c", [10.0, 300.0])
def test_the_fit_reaches_the_minimum_of_scipy(correlated_features, c):
    x, labels = correlated_features
    solution = lgssl_logistic.fit(x, labels, num_classes=5, C=c)
    start = np.random.default_rng(1).normal(size=(13, 5)).ravel()
    best = optimize.minimize(
        objective, start, (x.astype(np.float64), labels, c), jac=True, tol=1e-10
    )
    assert solution.objective == pytest.approx(best.fun, rel=1e-5)


def test_a_strong_penalty_shrinks_the_kernel_to_zero():
    """At zero, |W| is not smooth; the line search of the published code also stops there."""
    for c in (1e-6, 1e-2):
        solution = lgssl_logistic.fit(POINTS, CLASSES, num_classes=3, C=c)
        np.testing.assert_array_equal(solution.kernel, 0)
        assert solution.objective == pytest.approx(math.log(3))


def test_examples_with_zero_weight_are_ignored(correlated_features):
    x, labels = correlated_features
    weight = (np.arange(500) < 300).astype(np.float32)
    weighted = lgssl_logistic.fit(x, labels, num_classes=5, C=30.0, weight=weight)
    subset = lgssl_logistic.fit(x[:300], labels[:300], num_classes=5, C=30.0)
    assert weighted.objective == pytest.approx(subset.objective, rel=1e-5)


def test_the_fit_equals_torch_lbfgs(correlated_features):
    torch = pytest.importorskip("torch")
    x, labels = correlated_features
    for c in (1e-2, 1.0, 100.0, 1e3):
        kernel = torch.zeros(5, 12, requires_grad=True)
        bias = torch.zeros(5, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [kernel, bias],
            lr=1,
            max_iter=1000,
            tolerance_grad=1e-7,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        def closure(parts=(kernel, bias), optimizer=optimizer, c=c):
            optimizer.zero_grad()
            logits = torch.tensor(x) @ parts[0].T + parts[1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
            loss = loss + 0.5 / c * parts[0].norm()
            loss.backward()
            return loss

        optimizer.step(closure)
        solution = lgssl_logistic.fit(x, labels, num_classes=5, C=c)
        assert solution.objective == pytest.approx(closure().item(), rel=1e-4)
