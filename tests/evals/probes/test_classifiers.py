"""Classifiers of the linear probe, compared with scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from mmjax.errors import UserError
from mmjax.evals.probes.classifiers import (
    average_views,
    fit_logistic,
    fit_svm,
    fit_vatt,
    validation_part,
)
from tests.messages import raises


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=300)
    centers = rng.normal(size=(5, 20))
    return (centers[labels] * 0.7 + rng.normal(size=(300, 20))).astype(np.float32), labels


def test_validation_part_is_stratified_by_class():
    labels = np.repeat(np.arange(4), [50, 50, 10, 100])
    chosen = validation_part(labels, 0.2, seed=0)
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [10, 10, 2, 20])
    assert (chosen == validation_part(labels, 0.2, seed=0)).all()
    assert (chosen != validation_part(labels, 0.2, seed=1)).any()
    assert validation_part(np.zeros((50, 3)), 0.1, seed=0).sum() == 5


def test_logistic_refits_on_all_examples_with_the_selected_c(data):
    x, labels = data
    fitted = fit_logistic(
        x[:, None],
        labels,
        num_classes=5,
        Cs=(1e-4, 1e-2, 1.0),
        validation=0.3,
        average="logits",
    )
    standard = (x - x.mean(0)) / x.std(0)
    held_out = validation_part(labels, 0.3, seed=0)
    accuracy = {}
    for c in (1e-4, 1e-2, 1.0):
        reference = LogisticRegression(C=c, tol=1e-8, max_iter=5000)
        reference.fit(standard[~held_out], labels[~held_out])
        accuracy[c] = reference.score(standard[held_out], labels[held_out])
    assert accuracy[fitted.selection["C"]] == max(accuracy.values())
    reference = LogisticRegression(C=fitted.selection["C"], tol=1e-8, max_iter=5000).fit(
        standard, labels
    )
    scores = fitted.scores(x[:, None])
    np.testing.assert_allclose(
        scores - scores.mean(1, keepdims=True), reference.decision_function(standard), atol=5e-3
    )


def test_view_scores_are_averaged_as_logits_or_probabilities():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(7, 3, 4)) * 3
    np.testing.assert_allclose(average_views(logits, "logits", "softmax"), logits.mean(1))
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    averaged = average_views(logits, "probabilities", "softmax")
    np.testing.assert_allclose(np.exp(averaged), probs.mean(1))
    averaged = average_views(logits, "probabilities", "sigmoid")
    np.testing.assert_allclose(1 / (1 + np.exp(-averaged)), (1 / (1 + np.exp(-logits))).mean(1))


@pytest.mark.parametrize("fit", [fit_logistic, fit_svm])
def test_a_duplicated_training_view_does_not_change_the_fit(data, fit):
    x, labels = data
    one = fit(x[:, None], labels, num_classes=5, Cs=(0.1,))
    two = fit(np.stack([x, x], axis=1), labels, num_classes=5, Cs=(0.1,))
    np.testing.assert_allclose(one.scores(x[:, None]), two.scores(x[:, None]), atol=1e-3)


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("fit", [fit_logistic, fit_svm])
def test_logistic_takes_several_labels_and_svm_refuses_them(data, fit, num_views):
    x, labels = data
    many = np.stack([labels == 0, labels > 2], axis=1).astype(np.float32)
    views = np.repeat(x[:, None], num_views, axis=1)
    if fit is fit_svm:
        with raises(UserError, "classifier", "'svm'", "'logistic'"):
            fit(views, many, num_classes=2)
        return
    fitted = fit(views, many, num_classes=2, Cs=(0.1, 1.0))
    assert ((fitted.scores(views) > 0) == (many > 0)).mean() > 0.8


@pytest.mark.parametrize("standardize", [False, True])
def test_svm_equals_scikit_learn(data, standardize):
    x, labels = data
    scaled = make_pipeline(*[StandardScaler()] * standardize, LinearSVC(C=1e-3)).fit(x, labels)
    views = np.stack([x, x[::-1]], axis=1)
    expected = (scaled.decision_function(x) + scaled.decision_function(x[::-1])) / 2
    fitted = fit_svm(x[:, None], labels, num_classes=5, Cs=(1e-3,), standardize=standardize)
    np.testing.assert_allclose(fitted.scores(views), expected, atol=1e-4)
    assert fitted.selection == {"C": 1e-3}


def test_svm_with_two_classes_scores_both(data):
    x, labels = data
    reference = LinearSVC(C=1e-3).fit(x, labels > 2)
    fitted = fit_svm(x[:, None], (labels > 2) * 1, num_classes=2, Cs=(1e-3,))
    scores = fitted.scores(x[:, None])
    np.testing.assert_allclose(scores[:, 1], reference.decision_function(x), atol=1e-4)
    np.testing.assert_allclose(scores[:, 0], -scores[:, 1])


def test_svm_selects_c_on_the_validation_part(data):
    x, labels = data
    held_out, accuracy = validation_part(labels, 0.2, seed=0), {}
    for c in (1e-6, 1e-3, 10.0):
        reference = LinearSVC(C=c).fit(x[~held_out], labels[~held_out])
        accuracy[c] = reference.score(x[held_out], labels[held_out])
    fitted = fit_svm(x[:, None], labels, num_classes=5, Cs=(1e-6, 1e-3, 10.0))
    assert accuracy[fitted.selection["C"]] == max(accuracy.values()) > min(accuracy.values())


def test_svm_needs_two_classes(data):
    with raises(UserError, "classifier", "'svm'", "two classes", "1 class", 300):
        fit_svm(data[0][:, None], np.zeros(300, int), num_classes=3)


@pytest.mark.parametrize("fit", [fit_logistic, fit_svm, fit_vatt])
def test_a_class_without_training_examples_is_never_predicted(data, fit):
    x, labels = data
    keep = labels != 3
    options = {"epochs": 200} if fit is fit_vatt else {}
    fitted = fit(x[keep][:, None], labels[keep], num_classes=7, **options)
    scores = fitted.scores(x[:, None])
    assert scores.shape == (300, 7) and np.isfinite(scores).all()
    assert not np.isin(scores.argmax(1), [3, 5, 6]).any()
    assert (scores.argmax(1) == labels)[keep].mean() > 0.7
