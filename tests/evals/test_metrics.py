import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from mmjax.evals import metrics


@given(st.integers(0, 4), st.integers(0, 3), st.integers(1, 6))
def test_ties_are_an_average_over_all_orders(greater, ties, k):
    # The right entry is number 0 of those tied; `greater` entries stand before all of them.
    places = [greater + order.index(0) for order in itertools.permutations(range(ties + 1))]
    assert metrics.expected_hits(greater, ties, k) == pytest.approx(
        np.mean([p < k for p in places])
    )
    assert metrics.mean_ranks(greater, ties) == pytest.approx(np.mean(places) + 1)


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


def test_scores_that_are_not_finite_are_refused():
    scores = np.zeros((4, 3))
    scores[2, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 4 rows"):
        metrics.top_k_accuracy(scores, np.zeros(4, int))


def test_sigmoid_cross_entropy_equals_the_formula():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 4)) * 5, rng.integers(2, size=(30, 4))
    p = 1 / (1 + np.exp(-logits))
    direct = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    assert metrics.sigmoid_cross_entropy(logits, labels) == pytest.approx(direct)
    assert metrics.sigmoid_cross_entropy(np.array([[800.0]]), np.array([[0]])) == pytest.approx(800)


def test_rank_chance_is_what_random_scores_give():
    rng = np.random.default_rng(0)
    num_targets, own = 12, 3
    ranks = []  # of the best of three right targets
    for _ in range(4000):
        places = rng.permutation(num_targets)[:own]
        ranks.append(places.min() + 1)
    ranks = np.array(ranks)
    chance = metrics.rank_chance(np.full(5, own), num_targets)
    assert chance["R@1"] == pytest.approx(3 / 12)
    assert chance["R@5"] == pytest.approx((ranks <= 5).mean(), abs=0.03)
    assert chance["R@10"] == 1.0
    assert chance["mean_rank"] == pytest.approx(ranks.mean(), abs=0.1)
    single = metrics.rank_chance(np.ones(7, int), 200)
    assert single["R@1"] == pytest.approx(1 / 200) and single["median_rank"] == 100.5


def test_multi_label_by_counting_pairs():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(60, 3))
    scores = np.round(labels + rng.normal(size=(60, 3)) * 1.2, 1)  # rounding makes ties
    found = metrics.multi_label_metrics(scores, labels)
    for c in range(3):
        yes, no = scores[labels[:, c] == 1, c], scores[labels[:, c] == 0, c]
        pairs = (yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean()
        assert found.auc[c] == pytest.approx(pairs)
        assert found.d_prime[c] == pytest.approx(np.sqrt(2) * stats.norm.ppf(pairs))
    means = found.means()
    assert means["d_prime"] == pytest.approx(found.d_prime.mean())
    mean_auc = found.auc.mean()
    assert means["d_prime_of_mean_AUC"] == pytest.approx(np.sqrt(2) * stats.norm.ppf(mean_auc))
    assert means["d_prime"] != pytest.approx(means["d_prime_of_mean_AUC"], abs=1e-6)


def test_average_precision_of_a_ranking_by_hand():
    labels = np.array([[1], [0], [1], [0], [0]])
    scores = np.array([[5.0], [4], [3], [2], [1]])  # right entries at ranks 1 and 3
    found = metrics.multi_label_metrics(scores, labels)
    assert found.average_precision[0] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_classes_without_positives_are_left_out_and_named():
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [0, 0, 1]])
    scores = np.array([[0.9, 0.5, 0.1], [0.2, 0.1, 0.4], [0.3, 0.2, 0.2], [0.6, 0.3, 0.9]])
    found = metrics.multi_label_metrics(scores, labels)
    assert found.skipped == (1, 2)
    assert np.isnan(found.auc[1:]).all()
    assert found.means()["AUC"] == pytest.approx(found.auc[0]) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="No class"):
        metrics.multi_label_metrics(scores[:, 1:], labels[:, 1:]).means()


def test_a_perfect_class_has_a_finite_d_prime():
    labels = np.array([[1], [1], [0], [0], [0]])
    found = metrics.multi_label_metrics(labels.astype(float), labels)
    # Half a pair short of the 2 * 3 pairs.
    assert found.d_prime[0] == pytest.approx(np.sqrt(2) * stats.norm.ppf(1 - 0.5 / 6))
    assert np.isfinite(list(found.means().values())).all()
    worst = metrics.multi_label_metrics(1.0 - labels, labels)
    assert worst.d_prime[0] == pytest.approx(-found.d_prime[0])
