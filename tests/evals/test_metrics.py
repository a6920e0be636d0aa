"""Metrics compared with scikit-learn, enumeration and closed forms."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from mmjax.evals import metrics
from tests.messages import raises


@given(st.integers(0, 4), st.integers(0, 3), st.integers(1, 6))
def test_ties_count_as_the_average_over_all_orders(greater, ties, k):
    # The correct entry has index 0 among those tied; `greater` entries precede all of them.
    positions = [greater + order.index(0) for order in itertools.permutations(range(ties + 1))]
    assert metrics.expected_hits(greater, ties, k) == pytest.approx(
        np.mean([p < k for p in positions])
    )
    assert metrics.mean_ranks(greater, ties) == pytest.approx(np.mean(positions) + 1)


def test_collapsed_scores_give_chance():
    labels = np.arange(20) % 10
    assert metrics.top_k_accuracy(np.zeros((20, 10)), labels, 1) == pytest.approx(0.1)
    assert metrics.top_k_accuracy(np.zeros((20, 10)), labels, 5) == pytest.approx(0.5)


def test_accuracies_equal_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 9)), rng.integers(9, size=200)
    scores[np.arange(200), labels] += 1
    top1 = sk.accuracy_score(labels, scores.argmax(1))
    assert metrics.top_k_accuracy(scores, labels, 1) == pytest.approx(top1)
    top5 = sk.top_k_accuracy_score(labels, scores, k=5)
    assert metrics.top_k_accuracy(scores, labels, 5) == pytest.approx(top5)
    balanced = sk.balanced_accuracy_score(labels, scores.argmax(1))
    assert metrics.mean_class_accuracy(scores, labels) == pytest.approx(balanced)
    probs = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert metrics.softmax_cross_entropy(scores, labels) == pytest.approx(
        sk.log_loss(labels, probs)
    )


def test_nonfinite_scores_are_refused():
    scores = np.zeros((4, 3))
    scores[2, 1] = np.nan
    with raises(ValueError, "scores", "finite", 1, 4):
        metrics.top_k_accuracy(scores, np.zeros(4, int))


def test_sigmoid_cross_entropy_equals_the_formula():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 4)) * 5, rng.integers(2, size=(30, 4))
    p = 1 / (1 + np.exp(-logits))
    direct = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    assert metrics.sigmoid_cross_entropy(logits, labels) == pytest.approx(direct)
    assert metrics.sigmoid_cross_entropy(np.array([[800.0]]), np.array([[0]])) == pytest.approx(800)


def test_rank_chance_equals_the_ranks_of_random_scores():
    rng = np.random.default_rng(0)
    num_targets, own = 12, 3
    ranks = []  # of the best of three positives
    for _ in range(4000):
        positions = rng.permutation(num_targets)[:own]
        ranks.append(positions.min() + 1)
    ranks = np.array(ranks)
    chance = metrics.rank_chance(np.full(5, own), num_targets)
    assert chance["R@1"] == pytest.approx(3 / 12)
    assert chance["R@5"] == pytest.approx((ranks <= 5).mean(), abs=0.03)
    assert chance["R@10"] == 1.0
    assert chance["mean_rank"] == pytest.approx(ranks.mean(), abs=0.1)
    single = metrics.rank_chance(np.ones(7, int), 200)
    assert single["R@1"] == pytest.approx(1 / 200) and single["median_rank"] == 100.5


def test_multi_label_auc_equals_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(60, 3))
    scores = np.round(labels + rng.normal(size=(60, 3)) * 1.2, 1)  # rounding makes ties
    result = metrics.multi_label_metrics(scores, labels)
    for c in range(3):
        yes, no = scores[labels[:, c] == 1, c], scores[labels[:, c] == 0, c]
        pairs = (yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean()
        assert result.auc[c] == pytest.approx(pairs)
        assert result.d_prime[c] == pytest.approx(np.sqrt(2) * stats.norm.ppf(pairs))
    means = result.means()
    assert means["d_prime"] == pytest.approx(result.d_prime.mean())
    mean_auc = result.auc.mean()
    assert means["d_prime_of_mean_AUC"] == pytest.approx(np.sqrt(2) * stats.norm.ppf(mean_auc))
    assert means["d_prime"] != pytest.approx(means["d_prime_of_mean_AUC"], abs=1e-6)


def test_average_precision_of_a_known_ranking():
    labels = np.array([[1], [0], [1], [0], [0]])
    scores = np.array([[5.0], [4], [3], [2], [1]])  # positives at ranks 1 and 3
    result = metrics.multi_label_metrics(scores, labels)
    assert result.average_precision[0] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_classes_with_a_single_label_value_are_skipped_and_reported():
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]])
    scores = np.array([[0.9, 0.5, 0.1], [0.2, 0.1, 0.4], [0.3, 0.2, 0.2], [0.6, 0.3, 0.9]])
    result = metrics.multi_label_metrics(scores, labels)
    assert result.skipped == (1, 2)
    assert np.isnan(result.auc[1:]).all()
    assert result.means()["AUC"] == pytest.approx(result.auc[0]) == pytest.approx(0.75)
    with raises(ValueError, "mAP"):
        metrics.multi_label_metrics(scores[:, 1:], labels[:, 1:]).means()


def test_d_prime_of_a_perfect_class_is_clipped():
    labels = np.array([[1], [1], [0], [0], [0]])
    result = metrics.multi_label_metrics(labels.astype(float), labels)
    # Clipped to half a pair below all 2 * 3 pairs.
    assert result.d_prime[0] == pytest.approx(np.sqrt(2) * stats.norm.ppf(1 - 0.5 / 6))
    means = result.means()
    assert means["AUC"] == means["mAP"] == 1.0
    assert means["d_prime"] == pytest.approx(result.d_prime[0])
    assert means["d_prime_of_mean_AUC"] == pytest.approx(result.d_prime[0])
    worst = metrics.multi_label_metrics(1.0 - labels, labels)
    assert worst.d_prime[0] == pytest.approx(-result.d_prime[0])
