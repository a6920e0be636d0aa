"""Classification by the model's own logits, and checks of labels shared by evaluators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from mmjax.errors import UserError
from mmjax.evals import metrics
from mmjax.evals.base import Evaluator, with_chance
from mmjax.evals.features.arrays import Features

_MAX_NAMES = 20  # in a message


def num_classes(labels: np.ndarray, test_labels: np.ndarray, info: Any) -> int:
    """Returns the number of classes.

    Args:
      labels: Training labels, int [N], or [N, C] for multi-label data.
      test_labels: Test labels of the same type.
      info: `DatasetInfo`. It may declare more classes than the labels have.
    """
    if labels.ndim > 1:
        return labels.shape[1]
    return max(info.num_classes, int(labels.max()) + 1, int(test_labels.max()) + 1)


def check_single_label(
    labels: np.ndarray, features: Features, *, section: str, evaluator_type: str
) -> None:
    """Raises UserError for multi-label data; the message names an evaluator that supports them."""
    if labels.ndim > 1:
        raise UserError(
            f"config.{section}: type={evaluator_type!r} needs a single label per example, but "
            f"{features.source} is multi-label. Use type='linear_probe' with "
            f"classifier='logistic', or select single-label data with config.{section}.data and "
            "config.data.label.multi_label=False."
        )


def name_list(names: Sequence[str]) -> str:
    """Returns names for a message, at most 20 of them."""
    return ", ".join(names[:_MAX_NAMES]) + (" …" if len(names) > _MAX_NAMES else "")


def class_names(classes: Sequence[int], info: Any) -> str:
    """Returns the names of classes for a message, or their indices if they have no names."""
    return name_list(
        [info.class_names[c] if c < len(info.class_names) else str(c) for c in classes]
    )


def multi_label_metrics(
    logits: np.ndarray, labels: np.ndarray, features: Features, section: str
) -> dict[str, float]:
    """Returns mAP, AUC, both d', the loss, and the number of classes that have no result.

    Classes without positive or without negative examples are excluded from the means and logged.

    Args:
      logits: float [N, C].
      labels: [N, C].
      features: Features of the split, for messages.
      section: Config key of the evaluator's section, for messages.

    Raises:
      UserError: No class has both positive and negative examples.
    """
    result = metrics.multi_label_metrics(logits, labels)
    skipped, size = np.array(result.skipped, int), labels.shape[1]
    if len(skipped) == size:
        raise UserError(
            f"config.{section}: mAP is undefined, because none of the {size} classes has both "
            f"positive and negative examples among the {len(labels)} examples of "
            f"{features.source}. Evaluate more examples, or another split."
        )
    if len(skipped):
        logging.warning(
            "config.%s: %d of %d classes have no positive or no negative example in %s and are "
            "excluded from the means: %s",
            section,
            len(skipped),
            size,
            features.source,
            class_names(skipped, features.info),
        )
    kept = np.delete(np.asarray(labels) > 0.5, skipped, axis=1)
    chance = {"mAP": float(kept.mean()), "AUC": 0.5, "d_prime": 0.0, "d_prime_of_mean_AUC": 0.0}
    values = with_chance(result.means(), chance)
    values["loss"] = metrics.sigmoid_cross_entropy(logits, labels)
    values["skipped_classes"] = float(len(skipped))
    return values


class Classification(Evaluator):
    """Accuracy of the model's logits; mAP, AUC, d' and loss for multi-label data.

    The metrics for single labels are `top1`, `top5`, `mean_class_top1` and `loss`. The task
    averages the logits over the views of an example.

    Args:
      data: Dataset; '' for the training dataset.
      split: Split of the dataset.
      batch_size: Number of examples in a batch, over all devices.
      views: Changes of the data config, for example
        `dict(video=dict(num_clips=4, multi_crop=True))`.
      limit: Number of leading examples to use; 0 for all.
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
        self._request = self.add_request(
            ["logits"],
            predict="logits",
            data=data,
            split=split,
            batch_size=batch_size,
            views=views,
            limit=limit,
        )

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of the logits over all labeled examples."""
        features = self.store.get(state, self._request)
        logits, labels = features.labeled("logits", section=self.section)
        if labels.ndim > 1:
            return multi_label_metrics(logits, labels, features, self.section)
        if labels.max() >= logits.shape[1]:
            raise UserError(
                f"config.{self.section}: {features.source} has the label {labels.max()}, but the "
                f"model has {logits.shape[1]} classes (labels 0 to {logits.shape[1] - 1}). "
                "Evaluate a dataset with the classes of the training data."
            )
        values = metrics.classification_metrics(logits, labels)
        return with_chance(values, metrics.classification_chance(logits.shape[1]))
