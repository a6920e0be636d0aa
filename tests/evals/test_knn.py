"""The evaluator `knn` compared with scikit-learn."""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier

from mmjax.errors import UserError
from mmjax.evals.knn import knn_scores
from tests.evals.synthetic import unit
from tests.messages import raises


def test_knn_equals_scikit_learn():
    rng = np.random.default_rng(0)
    labels, test_labels = rng.integers(7, size=300), rng.integers(7, size=90)
    centers = rng.normal(size=(7, 16))
    train = unit(centers[labels] + rng.normal(size=(300, 16)))
    test = unit(centers[test_labels] + rng.normal(size=(90, 16)))
    reference = KNeighborsClassifier(
        20, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / 0.07)
    ).fit(train, labels)
    scores = knn_scores(train, labels, test, num_classes=7)
    np.testing.assert_allclose(
        scores / scores.sum(1, keepdims=True), reference.predict_proba(test), atol=1e-5
    )


def test_single_labels_are_required(make_harness):
    arrays = {"video": np.zeros((6, 1, 2), np.float32), "label": np.ones((6, 3), np.float32)}
    with raises(UserError, "config.evals.k", "'knn'", "split 'train' of fake", "linear_probe"):
        make_harness({"train": arrays, "test": arrays}).run(k=dict(type="knn"))


def test_data_without_usable_labels_are_refused(make_harness):
    video = np.zeros((6, 1, 2), np.float32)
    cfg = dict(type="knn")
    with raises(UserError, "config.evals.k", "split 'train' of fake", "label", "'video'"):
        make_harness({"train": {"video": video}, "test": {"video": video}}).run(k=cfg)
    arrays = {"video": video, "label": np.full(6, -1, np.int32)}
    with raises(UserError, "config.evals.k", "split 'train' of fake", "label", "'video'"):
        make_harness({"train": arrays, "test": arrays}).run(k=cfg)
