"""Classification by the model's own logits, over all examples, their views averaged by the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from mmjax.errors import UserError
from mmjax.evals import metrics
from mmjax.evals.base import Evaluator, with_chance


def num_classes(labels: np.ndarray, test_labels: np.ndarray, info: Any) -> int:
    """How many classes there are: the dataset's count, or the columns or the largest label."""
    if labels.ndim > 1:
        return labels.shape[1]
    return max(info.num_classes, int(labels.max()) + 1, int(test_labels.max()) + 1)


def multi_label(logits: np.ndarray, labels: np.ndarray, info: Any, who: str) -> dict[str, float]:
    """mAP, AUC, both d' and loss; classes that have no result are named in the log and counted."""
    found = metrics.multi_label_metrics(logits, labels)
    if found.skipped:
        names = [
            info.class_names[c] if c < len(info.class_names) else str(c) for c in found.skipped[:20]
        ]
        logging.warning(
            "%s: %d of %d classes have no positive or no negative example and are left out of "
            "the means: %s%s",
            who,
            len(found.skipped),
            labels.shape[1],
            ", ".join(names),
            " …" if len(found.skipped) > 20 else "",
        )
    kept = np.delete(np.asarray(labels) > 0.5, found.skipped, axis=1)
    chance = {"mAP": float(kept.mean()), "AUC": 0.5, "d_prime": 0.0, "d_prime_of_mean_AUC": 0.0}
    result = with_chance(found.means(), chance)
    result["loss"] = metrics.sigmoid_cross_entropy(logits, labels)
    result["skipped_classes"] = float(len(found.skipped))
    return result


class Classification(Evaluator):
    """Top-1, top-5, mean per class and loss of a classifier; mAP, AUC, d' and loss for multi-label
    data.

    Args:
      data: dataset; default the one of training.
      split: of the dataset.
      batch_size: over all devices.
      views: what differs from the training's data config, e.g.
        `dict(video=dict(num_clips=4, multi_crop=True))`; the task averages the logits of the views.
      limit: only the first so many examples (0: all).
    """

    def __init__(
        self,
        *,
        data: str = "",
        split: str = "test",
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        limit: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        self._request = self.ask(
            ["logits"],
            predict="logits",
            data=data,
            split=split,
            batch_size=batch_size,
            views=views,
            limit=limit,
        )

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        features = self.store.get(state, self._request)
        logits, labels = features.labeled("logits")
        if labels.ndim > 1:
            return multi_label(logits, labels, features.info, self.name)
        if labels.max() >= logits.shape[1]:
            raise UserError(
                f"Evaluator {self.name}: {features.info.name} has a label {labels.max()}, but "
                f"the model has {logits.shape[1]} classes."
            )
        found = metrics.classification_metrics(logits, labels)
        return with_chance(found, metrics.classification_chance(logits.shape[1]))
