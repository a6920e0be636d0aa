"""Metrics as pure functions of scores and labels, in numpy; float64 where sums are long.

Ties are never resolved in favor of the model: with `t` other entries tied with the right one,
every order of these `t + 1` entries is taken as equally likely, so a collapsed model scores exactly
chance, not 100 %. Scores that are not finite raise ValueError: comparisons with NaN would count as
perfect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import special, stats


def check_finite(scores: np.ndarray, what: str) -> np.ndarray:
    """`scores` as an array, or ValueError naming how many of its rows hold NaN or infinity."""
    scores = np.asarray(scores)
    bad = ~np.isfinite(scores).reshape(len(scores), -1).all(axis=-1)
    if bad.any():
        raise ValueError(f"{bad.sum()} of {len(scores)} rows of the {what} are not finite.")
    return scores


# ---------------------------------------------------------------------------------- ranks


def expected_hits(greater: np.ndarray, ties: np.ndarray, k: int) -> np.ndarray:
    """Probability [N] that the right entry is among the first k, over all orders of the tied ones.

    Args:
      greater: [N] how many other entries score above the right one.
      ties: [N] how many other entries score the same as the right one.
      k: length of the list.
    """
    return np.clip((k - np.asarray(greater)) / (np.asarray(ties) + 1.0), 0.0, 1.0)


def mean_ranks(greater: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Rank [N] of the right entry, counted from 1, averaged over all orders of the tied ones."""
    return 1.0 + np.asarray(greater) + np.asarray(ties) / 2.0


def rank_metrics(
    greater: np.ndarray, ties: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """R@k as fractions, median and mean rank (from 1), for queries with these counts."""
    ranks = mean_ranks(greater, ties)
    result = {f"R@{k}": float(expected_hits(greater, ties, k).mean()) for k in ks}
    return result | {"median_rank": float(np.median(ranks)), "mean_rank": float(ranks.mean())}


def rank_chance(
    num_positives: np.ndarray, num_targets: int, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """What `rank_metrics` gives in expectation when targets come in random order.

    Args:
      num_positives: [N] right targets of each query; the best placed one counts.
      num_targets: how many targets there are in all.
      ks: lengths of the list.
    """
    positives, counts = np.unique(num_positives, return_counts=True)
    share = counts / counts.sum()
    # Hypergeometric: no positive among the first k.
    result = {
        f"R@{k}": float(share @ stats.hypergeom.sf(0, num_targets, positives, min(k, num_targets)))
        for k in ks
    }
    mean = float(share @ (1 + (num_targets - positives) / (positives + 1)))
    if len(positives) == 1 and positives[0] == 1:
        result["median_rank"] = (num_targets + 1) / 2
    return result | {"mean_rank": mean}


def any_hits(above: np.ndarray, tied: np.ndarray, tied_others: np.ndarray, k: int) -> np.ndarray:
    """Probability [N] that a right entry is among the first k, where several entries are right.

    Args:
      above: [N] how many wrong entries score above the best right one.
      tied: [N] how many right entries score the same as the best one, itself included.
      tied_others: [N] how many wrong entries score the same as it.
      k: length of the list; there may be fewer entries.
    """
    above, right, wrong = (np.asarray(x, np.float64) for x in (above, tied, tied_others))
    none = np.ones(above.shape)
    for drawn in range(k):  # wrong ones alone, in a random order of the tied ones
        odds = np.maximum(wrong - drawn, 0) / np.maximum(right + wrong - drawn, 1)
        none *= np.where(above + drawn < k, odds, 1.0)
    return np.where(right > 0, 1.0 - none, 0.0)


def any_chance(positives: np.ndarray, num_targets: int, k: int) -> float:
    """Mean of `any_hits` when `num_targets` entries, so many [N] of them right, are shuffled."""
    positives = np.asarray(positives)
    return float(any_hits(np.zeros(len(positives)), positives, num_targets - positives, k).mean())


def half_width(values: np.ndarray) -> float:
    """Half of the 95 % confidence interval of the mean of independent values (normal law)."""
    return float(1.96 * np.std(values) / np.sqrt(len(values)))


# ------------------------------------------------------------------------- classification


def _hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    scores = check_finite(scores, "class scores")
    right = np.take_along_axis(scores, np.asarray(labels)[:, None], axis=1)  # [N, 1]
    greater = (scores > right).sum(axis=1)
    return expected_hits(greater, (scores == right).sum(axis=1) - 1, k)


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of examples whose label [N] is among the k highest of their scores [N, C]."""
    return float(_hits(scores, labels, k).mean())


def top_k_any(scores: np.ndarray, positives: np.ndarray, k: int = 1) -> float:
    """Share of examples with a right class (bool [N, C]) among the k highest of scores [N, C]."""
    scores, positives = check_finite(scores, "class scores"), np.asarray(positives, bool)
    best = np.where(positives, scores, -np.inf).max(axis=1, keepdims=True)
    tied = scores == best
    counts = (scores > best, tied & positives, tied & ~positives)
    return float(any_hits(*(c.sum(axis=1) for c in counts), k).mean())


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy of each class, averaged with equal weight over the classes that occur."""
    hits, labels = _hits(scores, labels, 1), np.asarray(labels)
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def softmax_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood in nats (logits [N, C], labels int [N])."""
    log_probs = special.log_softmax(np.asarray(logits, np.float64), axis=1)
    return float(-np.take_along_axis(log_probs, np.asarray(labels)[:, None], axis=1).mean())


def sigmoid_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean over examples and classes of the binary cross-entropy in nats (both [N, C])."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`top1`, `top5` (with more than 5 classes), `mean_class_top1` and `loss` for single labels."""
    result = {"top1": top_k_accuracy(logits, labels, 1)}
    if logits.shape[1] > 5:
        result["top5"] = top_k_accuracy(logits, labels, 5)
    result["mean_class_top1"] = mean_class_accuracy(logits, labels)
    return result | {"loss": softmax_cross_entropy(logits, labels)}


def classification_chance(num_classes: int) -> dict[str, float]:
    """What `classification_metrics` gives for a guess with equal probabilities among so many."""
    result = {"top1": 1 / num_classes, "mean_class_top1": 1 / num_classes}
    if num_classes > 5:
        result["top5"] = 5 / num_classes
    return result | {"loss": float(np.log(num_classes))}


# ---------------------------------------------------------------------------- multi label


def d_prime(auc: np.ndarray, num_pairs: np.ndarray) -> np.ndarray:
    """Sensitivity index sqrt(2) * Phi^-1(AUC).

    An AUC of 1 (or 0) would be infinite. An AUC from P positives and Q negatives is a count out of
    P * Q pairs, so a perfect one is taken as half a pair short of perfect, the usual correction.

    Args:
      auc: area(s) under the ROC curve.
      num_pairs: P * Q of each.
    """
    half_pair = 0.5 / np.asarray(num_pairs, np.float64)
    return np.sqrt(2.0) * special.ndtri(np.clip(auc, half_pair, 1.0 - half_pair))


@dataclasses.dataclass(frozen=True)
class MultiLabelMetrics:
    """Per class and averaged results of `multi_label_metrics`.

    Attributes:
      average_precision, auc, d_prime: [C], NaN for a class that has only positives or only
        negatives.
      num_pairs: [C] positives times negatives.
      skipped: classes (numbers) left out of the averages for that reason.
    """

    average_precision: np.ndarray
    auc: np.ndarray
    d_prime: np.ndarray
    num_pairs: np.ndarray
    skipped: tuple[int, ...]

    def means(self) -> dict[str, float]:
        """Unweighted class means `mAP`, `AUC`, `d_prime`; and `d_prime_of_mean_AUC`.

        VATT reports the mean of the classes' d'; AudioSet papers mostly compute d' from the mean
        AUC. They differ, hence both.
        """
        if len(self.skipped) == len(self.auc):
            raise ValueError("No class has both positive and negative examples: mAP is undefined.")
        auc = float(np.nanmean(self.auc))
        return {
            "mAP": float(np.nanmean(self.average_precision)),
            "AUC": auc,
            "d_prime": float(np.nanmean(self.d_prime)),
            "d_prime_of_mean_AUC": float(d_prime(auc, self.num_pairs.sum())),
        }


def multi_label_metrics(scores: np.ndarray, labels: np.ndarray) -> MultiLabelMetrics:
    """Average precision, area under ROC and d' of each class.

    Args:
      scores: [N, C], any monotone function of the probability.
      labels: [N, C], positive where above 0.5.
    """
    # Imported here: a second that runs without multi-label evaluation need not wait for.
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = check_finite(scores, "class scores")
    labels = np.asarray(labels) > 0.5
    positives = labels.sum(axis=0).astype(np.int64)
    num_pairs = positives * (len(labels) - positives)
    average_precision = np.full(labels.shape[1], np.nan)
    auc = np.full(labels.shape[1], np.nan)
    for c in np.flatnonzero(num_pairs):
        average_precision[c] = average_precision_score(labels[:, c], scores[:, c])
        auc[c] = roc_auc_score(labels[:, c], scores[:, c])
    return MultiLabelMetrics(
        average_precision=average_precision,
        auc=auc,
        d_prime=d_prime(auc, np.maximum(num_pairs, 1)),
        num_pairs=num_pairs,
        skipped=tuple(int(c) for c in np.flatnonzero(num_pairs == 0)),
    )
