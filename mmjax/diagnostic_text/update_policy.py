"""Which pairs of a batch get a new text: those whose predicted mask has changed most.

The change of a pair is the Jaccard index between its cached mask and its current one: 0 if
it is not cached, 1 if it is the same. Pairs with an index of at most the threshold are described
again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.diagnostic_text.mask_cache import MaskCache
from mmjax.diagnostic_text.pairs import Pair
from mmjax.errors import UserError


def jaccard(a: np.ndarray, b: np.ndarray, *, empty: float = 1.0) -> np.float32:
    """Returns the Jaccard index of two bool masks; `empty` if both are empty."""
    union = np.count_nonzero(a | b)
    return np.float32(np.count_nonzero(a & b) / union if union else empty)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a batch needs.

    Attributes:
      update: Indices of pairs that need a new text, ascending.
      reuse: Indices of the other pairs with a cached text, ascending; empty unless texts are
        reused.
      similarity: Jaccard index of every pair, float32 [P].
      threshold: Largest index at which a pair is described again.
    """

    update: np.ndarray
    reuse: np.ndarray
    similarity: np.ndarray
    threshold: float


class UpdatePolicy:
    """Selects pairs by a percentile of their similarity, or by an absolute threshold.

    Args:
      percentile: Pairs up to this quantile of the batch are selected (0.4 selects about 40 %, and
        always at least one).
      smoothing: Weight of the earlier threshold in an exponential moving average of the quantile;
        0 uses the quantile of each batch as it is.
      threshold: Absolute threshold in place of `percentile`; a batch without changes then selects
        no pairs.
      budget: Maximum number of pairs per batch, the most changed ones first; None sets no limit.
      reuse: Whether other pairs use their cached text.
      empty_similarity: Similarity of two empty masks. 1 means unchanged. 0 reproduces TTDL, in
        which a class that is never predicted is described again at every visit.

    Raises:
      UserError: A value is out of range.
    """

    def __init__(
        self,
        *,
        percentile: float = 0.4,
        smoothing: float = 0.0,
        threshold: float | None = None,
        budget: int | None = None,
        reuse: bool = False,
        empty_similarity: float = 1.0,
    ):
        ranges = dict(percentile=percentile, smoothing=smoothing, threshold=threshold)
        for key, value in (ranges | dict(empty_similarity=empty_similarity)).items():
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"update policy: {key} must be between 0 and 1; got {value}.")
        if threshold is not None and smoothing:
            raise UserError(
                f"update policy: smoothing={smoothing} has no effect on the absolute "
                f"threshold={threshold}. Remove one of them."
            )
        if budget is not None and budget < 1:
            raise UserError(f"update policy: budget must be at least 1; got {budget}.")
        self._percentile, self._smoothing, self._absolute = percentile, smoothing, threshold
        self._budget, self._reuse, self._empty = budget, reuse, empty_similarity
        self._trend: float | None = None

    def decide(self, cache: MaskCache, pairs: Sequence[Pair]) -> Decision:
        """Returns which pairs need a new text, and updates the moving average."""
        similarity = np.zeros(len(pairs), np.float32)
        for index, pair in enumerate(pairs):
            mask = cache.mask(pair.key)
            if mask is not None:
                similarity[index] = jaccard(mask, pair.prediction, empty=self._empty)
        threshold = self._next_threshold(similarity)
        update = np.flatnonzero(similarity <= np.float32(threshold))
        if self._budget is not None and len(update) > self._budget:
            order = np.argsort(similarity[update], kind="stable")
            update = np.sort(update[order[: self._budget]])
        others = np.setdiff1d(np.arange(len(pairs)), update) if self._reuse else ()
        reuse = [index for index in others if cache.text(pairs[index].key)]
        return Decision(update, np.asarray(reuse, int), similarity, float(threshold))

    def _next_threshold(self, similarity: np.ndarray) -> float:
        if self._absolute is not None:
            return self._absolute
        if not len(similarity):
            return self._trend or 0.0
        quantile = float(np.quantile(similarity, self._percentile))
        if self._trend is not None:
            quantile = self._smoothing * self._trend + (1 - self._smoothing) * quantile
        self._trend = quantile
        return quantile

    def state(self) -> dict[str, Any]:
        """Returns the moving average as a JSON object, for checkpoints."""
        return {"trend": self._trend}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Restores the result of `state`."""
        self._trend = values["trend"]
