"""The search for C, and the classifier 'sweep' with its two penalties."""

import math

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from mmjax.errors import UserError
from mmjax.evals.probes import lgssl_logistic
from mmjax.evals.probes.lgssl_sweep import fine_grid, fit_sweep, mean_per_class, search
from tests.messages import raises


def test_the_fine_grid_has_seven_steps_per_decade():
    grid = fine_grid(1.0)
    assert len(grid) == 29
    np.testing.assert_allclose(np.diff(np.log10(grid)), 1 / 7, rtol=1e-5)
    assert grid[0] == pytest.approx(1e-2) and grid[-1] == pytest.approx(1e2)
    for end, low, high in ((1e-6, 1e-6, 1e-4), (1e6, 1e4, 1e6)):
        grid = fine_grid(end)
        assert len(grid) == 15
        assert (grid[0], grid[-1]) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("peak", [-4.6, -1.0, 0.3, 2.2, 5.9])
def test_the_search_finds_the_maximum_of_a_unimodal_score(peak):
    evaluated = []

    def score(c):
        evaluated.append(c)
        return -abs(math.log10(c) - peak)

    best, value = search(score)
    assert abs(math.log10(best) - peak) <= 1 / 7
    assert value == score(best)
    assert len(set(evaluated)) == len(evaluated) - 1  # each once; the last call is above
    assert 7 + 5 <= len(evaluated) - 1 <= 7 + 9


def test_the_smallest_c_wins_among_equal_scores():
    assert search(lambda c: 0.5) == (1e-6, 0.5)
    plateau = lambda c: float(1e-1 < c < 1e3)  # noqa: E731
    assert search(plateau) == (1.0, 1.0)


def test_the_search_evaluates_the_same_grid_points_as_a_reference():
    """The reference bisects integer indices of the grid."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = {}

        def score(c, table=table):
            key = round(math.log10(c) * 7)
            return table.setdefault(key, float(rng.integers(4)))

        best, value = search(score)
        coarse = [table[7 * e] for e in range(-6, 7, 2)]
        winner = 7 * (2 * coarse.index(max(coarse)) - 6)
        left = [k for k in range(winner - 14, winner + 15) if -42 <= k <= 42]
        order = [winner]
        while len(left) > 1:
            n = len(left)
            quarter, half, last = n // 4, n // 2, n + math.floor(-n / 4)
            order += [left[quarter], left[half], left[last]]
            top = max(table[left[quarter]], table[left[half]], table[left[last]])
            if table[left[quarter]] == top:
                left = left[:half]
            elif table[left[last]] == top:
                left = left[half:]
            else:
                left = left[quarter : math.floor(-n / 4)]
        expected = max(order, key=lambda k: table[k])  # the first among equals
        assert round(math.log10(best) * 7) == expected and value == table[expected]
        assert set(table) == {*range(-42, 43, 14), *order}


def test_squared_penalty_equals_scikit_learn_at_the_selected_c(correlated_features):
    x, labels = correlated_features
    held_out = np.arange(500) % 4 == 0
    fitted = fit_sweep(x[:, None], labels, num_classes=5, held_out=held_out, penalty="squared")
    reference = LogisticRegression(C=fitted.selection["C"], tol=1e-8, max_iter=20000).fit(x, labels)
    probabilities = special.softmax(fitted.scores(x[:, None]), axis=1)
    np.testing.assert_allclose(probabilities, reference.predict_proba(x), atol=5e-3)
    reference = LogisticRegression(C=fitted.selection["C"], tol=1e-8, max_iter=20000)
    reference.fit(x[~held_out], labels[~held_out])
    accuracy = reference.score(x[held_out], labels[held_out])
    assert fitted.selection["valid_top1"] == pytest.approx(accuracy, abs=0.01)
    for c in (1e-6, 1e-3, 1e-2):
        reference = LogisticRegression(C=c, max_iter=20000).fit(x[~held_out], labels[~held_out])
        assert (
            reference.score(x[held_out], labels[held_out]) <= fitted.selection["valid_top1"] + 0.01
        )


def test_norm_penalty_is_refitted_on_all_examples(correlated_features):
    x, labels = correlated_features
    options = dict(num_classes=6, max_iterations=60)
    fitted = fit_sweep(x[:, None], labels, validation=0.3, **options)
    refitted = lgssl_logistic.fit(x, labels, C=fitted.selection["C"], **options)
    logits = refitted.logits(x)
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    scores = fitted.scores(x[:, None])
    scores = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
    np.testing.assert_allclose(scores, log_probs, atol=1e-4)
    assert scores.shape == (500, 6)


def test_mean_per_class_counts_absent_classes_as_zero():
    logits = np.eye(4)[[0, 0, 1, 2]] * 1.0
    labels = np.array([0, 0, 1, 1])  # correct: 2 of 2, 1 of 2, and no examples of classes 2 and 3
    assert mean_per_class(logits, labels, 4) == pytest.approx((1 + 0.5) / 4)
    assert mean_per_class(logits, labels, 2) == pytest.approx((1 + 0.5) / 2)


def test_the_metric_changes_the_selected_c():
    """With 90% of one class, top-1 prefers a strong penalty and the mean per class a weak one."""
    rng = np.random.default_rng(3)
    labels = (np.arange(400) % 10 == 0) * 1
    x = (rng.normal(size=(400, 80)) + 0.15 * labels[:, None]).astype(np.float32)
    top1 = fit_sweep(x[:, None], labels, num_classes=2, metric="top1", penalty="squared")
    mean_class = fit_sweep(
        x[:, None], labels, num_classes=2, metric="mean_per_class", penalty="squared"
    )
    assert set(top1.selection) == {"C", "valid_top1"}
    assert set(mean_class.selection) == {"C", "valid_mean_per_class"}
    assert mean_class.selection["C"] != top1.selection["C"]


def test_multi_label_data_are_refused(correlated_features):
    x, labels = correlated_features
    with raises(UserError, "classifier", "'sweep'", "'logistic'"):
        fit_sweep(x[:, None], np.eye(5)[labels], num_classes=5)
