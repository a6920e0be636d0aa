"""Comparisons across encoders: correlations of end tasks, regressions, and groups of encoders."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import stats

from mmjax.benchmark.report.encoder_names import DEFAULT_EPOCHS, Encoder
from mmjax.benchmark.report.table import Table, mean_of_known
from mmjax.errors import check_choice

MIN_ENCODERS = 3  # fewer have no correlation
_EXACT = 8  # up to this number of encoders, p-values of Spearman count all permutations
METHODS = ("spearman", "pearson")


@dataclasses.dataclass(frozen=True, eq=False)
class Correlations:
    """Correlations between the columns of scores [E, T].

    Attributes:
      coefficients: float64 [T, T], NaN if undefined.
      p_values: float64 [T, T], two-sided, of no correlation; not corrected for multiple tests.
      counts: int [T, T], the number of encoders with both scores.
    """

    coefficients: np.ndarray
    p_values: np.ndarray
    counts: np.ndarray


def correlate(scores: np.ndarray, method: Literal["spearman", "pearson"]) -> Correlations:
    """Returns the correlations between all pairs of columns.

    A pair uses the encoders that have both scores. It needs three, and scores that are not all
    equal. P-values assume Student's t distribution, except those of Spearman for at most eight
    encoders, which are exact.

    Args:
      scores: float [E, T], larger is better; NaN where there is no result.
      method: 'spearman' or 'pearson'.
    """
    check_choice("correlation", method, METHODS)
    size = scores.shape[1]
    coefficients, p_values = np.full((2, size, size), np.nan)
    counts = np.zeros((size, size), int)
    for i, j in itertools.combinations_with_replacement(range(size), 2):
        known = np.isfinite(scores[:, i]) & np.isfinite(scores[:, j])
        x, y = scores[known, i], scores[known, j]
        r, p = _pair(x, y, method)
        for a, b in ((i, j), (j, i)):
            coefficients[a, b], p_values[a, b], counts[a, b] = r, p, known.sum()
    return Correlations(coefficients, p_values, counts)


def _pair(x: np.ndarray, y: np.ndarray, method: str) -> tuple[float, float]:
    if len(x) < MIN_ENCODERS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan, math.nan
    if method == "pearson":
        return tuple(map(float, stats.pearsonr(x, y)))
    r, p = map(float, stats.spearmanr(x, y))
    return r, _exact_p_value(x, y, r) if len(x) <= _EXACT else p


def _exact_p_value(x: np.ndarray, y: np.ndarray, coefficient: float) -> float:
    """Returns the fraction of permutations with a rank correlation at least as far from zero."""
    ranks_x, ranks_y = (stats.zscore(stats.rankdata(values)) for values in (x, y))
    orders = np.array(list(itertools.permutations(range(len(x)))))
    permuted = ranks_x[orders] @ ranks_y / len(x)
    return float(np.mean(np.abs(permuted) >= abs(coefficient) - 1e-9))


@dataclasses.dataclass(frozen=True)
class Line:
    """A linear regression y = slope * x + intercept of `count` encoders with correlation `r`."""

    slope: float
    intercept: float
    r: float
    p_value: float
    count: int


def regress(x: np.ndarray, y: np.ndarray, *, above: float | None = None) -> Line | None:
    """Returns the regression line of the encoders that have both values, or None.

    Args:
      x, y: float [E].
      above: Uses only encoders whose x is larger. pyVTAB uses a top-1 accuracy of 0.4.
    """
    known = np.isfinite(x) & np.isfinite(y)
    if above is not None:
        known &= x > above
    if known.sum() < MIN_ENCODERS or np.ptp(x[known]) == 0:
        return None
    fit = stats.linregress(x[known], y[known])
    return Line(
        float(fit.slope),
        float(fit.intercept),
        float(fit.rvalue),
        float(fit.pvalue),
        int(known.sum()),
    )


def level_means(table: Table) -> np.ndarray:
    """Returns the mean relative score of each encoder, float64 [E, 2].

    The first column is of image-level end tasks, the second of pixelwise ones. Relative scores are
    0 for the worst encoder and 1 for the best, also where lower values are better; see
    `Table.relative`.
    """
    pixelwise = [column.pixelwise for column in table.columns]
    chosen = [[n for n, value in enumerate(pixelwise) if value is level] for level in (False, True)]
    return np.stack([mean_of_known(table.relative[:, columns]) for columns in chosen], axis=1)


def groups(encoders: Sequence[Encoder], by: Literal["method", "data"]) -> dict[str, list[int]]:
    """Returns the indices of the encoders of each group, in the order of the groups' names.

    Args:
      encoders: The encoders.
      by: 'method'; or 'data', the dataset of the pretraining. Datasets are compared over methods
        that were pretrained on several, for the same number of epochs; others are left out.
    """
    check_choice("grouping", by, ("method", "data"))
    result: dict[str, list[int]] = {}
    methods = {e.method for e in encoders if e.data not in (None, "Imagenet")}
    for number, encoder in enumerate(encoders):
        comparable = encoder.epochs == DEFAULT_EPOCHS and encoder.method in methods
        if by == "method":
            result.setdefault(encoder.method, []).append(number)
        elif comparable and encoder.data:
            result.setdefault(encoder.data, []).append(number)
    return dict(sorted(result.items()))
