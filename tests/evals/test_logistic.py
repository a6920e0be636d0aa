import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mmjax.evals import logistic
from mmjax.evals.linear_probe import Probe, validation_part


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


def test_validation_part_is_a_share_of_each_class():
    labels = np.repeat(np.arange(4), [50, 50, 10, 100])
    chosen = validation_part(labels, 0.2, seed=0)
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [10, 10, 2, 20])
    assert (chosen == validation_part(labels, 0.2, seed=0)).all()
    assert (chosen != validation_part(labels, 0.2, seed=1)).any()
    assert validation_part(np.zeros((50, 3)), 0.1, seed=0).sum() == 5


def test_probe_refits_on_everything_with_the_chosen_strength(data):
    x, labels = data
    probe = Probe(x[:, None], labels, num_classes=5, strengths=(1e-4, 1e-2, 1.0), validation=0.3)
    standard = (x - x.mean(0)) / x.std(0)
    held_out = validation_part(labels, 0.3, seed=0)
    accuracy = {}
    for strength in (1e-4, 1e-2, 1.0):
        theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=5000)
        theirs.fit(standard[~held_out], labels[~held_out])
        accuracy[strength] = theirs.score(standard[held_out], labels[held_out])
    assert accuracy[probe.strength] == max(accuracy.values())
    theirs = LogisticRegression(C=probe.strength, tol=1e-8, max_iter=5000).fit(standard, labels)
    scores = probe.scores(x[:, None], "logits")
    np.testing.assert_allclose(
        scores - scores.mean(1, keepdims=True), theirs.decision_function(standard), atol=5e-3
    )


def test_views_are_averaged_as_asked(data):
    x, labels = data
    probe = Probe(x[:, None], labels, num_classes=5, strengths=(0.1,))
    views = np.stack([x, x[::-1]], axis=1)  # [N, 2, D]
    each = np.stack([probe.scores(views[:, [v]], "logits") for v in range(2)], axis=1)
    np.testing.assert_allclose(probe.scores(views, "logits"), each.mean(1), atol=1e-5)
    probs = np.exp(each) / np.exp(each).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(probe.scores(views, "probabilities")), probs.mean(1), rtol=1e-4
    )
    many = np.stack([labels == 0, labels == 1], axis=1).astype(np.float32)
    probe = Probe(x[:, None], many, num_classes=2, strengths=(0.1,))
    each = np.stack([probe.scores(views[:, [v]], "logits") for v in range(2)], axis=1)
    found = probe.scores(views, "probabilities")
    np.testing.assert_allclose(
        1 / (1 + np.exp(-found)), (1 / (1 + np.exp(-each))).mean(1), rtol=1e-4
    )


def test_two_equal_training_views_are_one(data):
    x, labels = data
    one = Probe(x[:, None], labels, num_classes=5, strengths=(0.1,))
    two = Probe(np.stack([x, x], axis=1), labels, num_classes=5, strengths=(0.1,))
    np.testing.assert_allclose(
        one.scores(x[:, None], "logits"), two.scores(x[:, None], "logits"), atol=1e-3
    )
