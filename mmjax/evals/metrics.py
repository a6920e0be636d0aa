"""Metrics as pure functions of scores and labels, in NumPy; long sums are in float64.

Ties are never resolved in favor of the model: if t other entries are tied with the correct one, all
orders of these t + 1 entries are equally likely. So a collapsed model scores exactly chance, not
100 %. Scores that are not finite raise an error, because comparisons with NaN would count as
perfect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import special, stats

from mmjax.errors import UserError


def check_finite(scores: np.ndarray, name: str) -> np.ndarray:
    """Returns scores [N, …] as an array.

    Raises:
      UserError: Scores of an example are NaN or infinite.
    """
    scores = np.asarray(scores)
    bad = ~np.isfinite(scores).reshape(len(scores), -1).all(axis=-1)
    if bad.any():
        raise UserError(
            f"The {name} of {bad.sum()} of {len(scores)} examples are not finite (first at index "
            f"{bad.argmax()}). The model or the classifier diverged, or a value overflowed: check "
            "the training loss, and set config.model.dtype='float32'."
        )
    return scores


# --------------------------------------------------------------------------------------------------
# Ranks.


def expected_hits(greater: np.ndarray, ties: np.ndarray, k: int) -> np.ndarray:
    """Returns the probability [N] that the correct entry is among the first k.

    Args:
      greater: Number of other entries with a higher score than the correct one, [N].
      ties: Number of other entries with the same score, [N].
      k: Length of the list.
    """
    return np.clip((k - np.asarray(greater)) / (np.asarray(ties) + 1.0), 0.0, 1.0)


def mean_ranks(greater: np.ndarray, ties: np.ndarray) -> np.ndarray:
    """Returns the rank [N] of the correct entry from 1, averaged over all orders of ties."""
    return 1.0 + np.asarray(greater) + np.asarray(ties) / 2.0


def rank_metrics(
    greater: np.ndarray, ties: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Returns R@k as fractions, and median and mean rank from 1.

    Args:
      greater, ties: As in `expected_hits`.
      ks: Lengths of the list.
    """
    ranks = mean_ranks(greater, ties)
    result = {f"R@{k}": float(expected_hits(greater, ties, k).mean()) for k in ks}
    return result | {"median_rank": float(np.median(ranks)), "mean_rank": float(ranks.mean())}


def rank_chance(
    num_positives: np.ndarray, num_targets: int, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Returns the expectation of `rank_metrics` for targets in random order.

    Args:
      num_positives: Number of correct targets of each query [N]; the best one counts.
      num_targets: Number of targets.
      ks: Lengths of the list.
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
    """Returns the probability [N] that a positive is among the first k, for several positives.

    Args:
      above: Number of negatives with a higher score than the best positive, [N].
      tied: Number of positives with the score of the best one, including it, [N].
      tied_others: Number of negatives with that score, [N].
      k: Length of the list; there may be fewer entries.
    """
    above, positives, negatives = (np.asarray(x, np.float64) for x in (above, tied, tied_others))
    miss = np.ones(above.shape)  # probability that the tied entries in the list are negatives
    for n in range(k):
        odds = np.maximum(negatives - n, 0) / np.maximum(positives + negatives - n, 1)
        miss *= np.where(above + n < k, odds, 1.0)
    return np.where(positives > 0, 1.0 - miss, 0.0)


def any_chance(positives: np.ndarray, num_targets: int, k: int) -> float:
    """Returns the mean of `any_hits` for entries in random order.

    Args:
      positives: Number of positives of each query, [N].
      num_targets: Number of entries.
      k: Length of the list.
    """
    positives = np.asarray(positives)
    return float(any_hits(np.zeros(len(positives)), positives, num_targets - positives, k).mean())


def half_width(values: np.ndarray) -> float:
    """Returns half the width of the 95 % confidence interval of a mean (normal approximation)."""
    return float(1.96 * np.std(values) / np.sqrt(len(values)))


# --------------------------------------------------------------------------------------------------
# Classification.


def _hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    scores = check_finite(scores, "class scores")
    own = np.take_along_axis(scores, np.asarray(labels)[:, None], axis=1)  # [N, 1]
    greater = (scores > own).sum(axis=1)
    return expected_hits(greater, (scores == own).sum(axis=1) - 1, k)


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Returns the fraction of examples whose label [N] is among the k highest scores [N, C]."""
    return float(_hits(scores, labels, k).mean())


def top_k_any(scores: np.ndarray, positives: np.ndarray, k: int = 1) -> float:
    """Returns the fraction of examples with a positive class among the k highest scores.

    Args:
      scores: [N, C].
      positives: bool [N, C].
      k: Length of the list.
    """
    scores, positives = check_finite(scores, "class scores"), np.asarray(positives, bool)
    best = np.where(positives, scores, -np.inf).max(axis=1, keepdims=True)
    tied = scores == best
    counts = (scores > best, tied & positives, tied & ~positives)
    return float(any_hits(*(c.sum(axis=1) for c in counts), k).mean())


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the top-1 accuracy of each class, averaged over the classes that occur."""
    hits, labels = _hits(scores, labels, 1), np.asarray(labels)
    return float(np.mean([hits[labels == label].mean() for label in np.unique(labels)]))


def softmax_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean negative log-likelihood in nats of labels int [N], for logits [N, C]."""
    log_probs = special.log_softmax(np.asarray(logits, np.float64), axis=1)
    return float(-np.take_along_axis(log_probs, np.asarray(labels)[:, None], axis=1).mean())


def sigmoid_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean binary cross-entropy in nats over examples and classes; both [N, C]."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns `top1`, `top5` (with more than 5 classes), `mean_class_top1` and `loss`.

    Args:
      logits: [N, C].
      labels: int [N].
    """
    result = {"top1": top_k_accuracy(logits, labels, 1)}
    if logits.shape[1] > 5:
        result["top5"] = top_k_accuracy(logits, labels, 5)
    result["mean_class_top1"] = mean_class_accuracy(logits, labels)
    return result | {"loss": softmax_cross_entropy(logits, labels)}


def classification_chance(num_classes: int) -> dict[str, float]:
    """Returns `classification_metrics` of a uniform guess among `num_classes` classes."""
    result = {"top1": 1 / num_classes, "mean_class_top1": 1 / num_classes}
    if num_classes > 5:
        result["top5"] = 5 / num_classes
    return result | {"loss": float(np.log(num_classes))}


# --------------------------------------------------------------------------------------------------
# Multi-label classification.


def d_prime(auc: np.ndarray, num_pairs: np.ndarray) -> np.ndarray:
    """Returns the sensitivity index d' = sqrt(2) * Phi^-1(AUC).

    It would be infinite for an AUC of 1 or 0. The AUC of P positives and Q negatives is a fraction
    of P * Q pairs, so it is clipped to half a pair below 1 or above 0, the usual correction.

    Args:
      auc: Area(s) under the ROC curve.
      num_pairs: P * Q of each.
    """
    half_pair = 0.5 / np.asarray(num_pairs, np.float64)
    return np.sqrt(2.0) * special.ndtri(np.clip(auc, half_pair, 1.0 - half_pair))


@dataclasses.dataclass(frozen=True)
class MultiLabelMetrics:
    """Results of `multi_label_metrics`.

    Attributes:
      average_precision, auc, d_prime: [C]; NaN for a class with only positives or only negatives.
      num_pairs: Number of positives times number of negatives, [C].
      skipped: Indices of the classes with NaN, which are excluded from the means.
    """

    average_precision: np.ndarray
    auc: np.ndarray
    d_prime: np.ndarray
    num_pairs: np.ndarray
    skipped: tuple[int, ...]

    def means(self) -> dict[str, float]:
        """Returns the unweighted class means `mAP`, `AUC`, `d_prime`, and `d_prime_of_mean_AUC`.

        VATT reports the mean of the classes' d', but most AudioSet papers compute d' from the mean
        AUC.

        Raises:
          ValueError: No class has both positive and negative examples.
        """
        if len(self.skipped) == len(self.auc):
            raise ValueError(
                f"None of {len(self.auc)} classes has both positive and negative examples, so mAP "
                "is undefined."
            )
        auc = float(np.nanmean(self.auc))
        return {
            "mAP": float(np.nanmean(self.average_precision)),
            "AUC": auc,
            "d_prime": float(np.nanmean(self.d_prime)),
            "d_prime_of_mean_AUC": float(d_prime(auc, self.num_pairs.sum())),
        }


def multi_label_metrics(scores: np.ndarray, labels: np.ndarray) -> MultiLabelMetrics:
    """Returns the average precision, area under the ROC curve and d' of each class.

    Args:
      scores: Any monotone function of the probability, [N, C].
      labels: Positive where above 0.5, [N, C].
    """
    # Imported here because it takes a second.
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
