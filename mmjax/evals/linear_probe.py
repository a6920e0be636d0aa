"""Classifiers on frozen features: the linear probe of a representation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.errors import UserError, choose, unknown
from mmjax.evals import classification, metrics
from mmjax.evals.base import Evaluator, with_chance
from mmjax.evals.classifiers import CLASSIFIERS
from mmjax.evals.features import Features

# What the values of a classifier's options must be.
_RANGES = {
    "strengths": (lambda values: len(values) and min(values) > 0, "positive numbers"),
    "validation": (lambda value: 0 < value < 1, "within 0 and 1"),
    "average": (lambda value: value in ("probabilities", "logits"), "'probabilities' or 'logits'"),
    "max_iterations": (lambda value: value > 0, "positive"),
    "epochs": (lambda value: value > 0, "positive"),
}


class LinearProbe(Evaluator):
    """Accuracy of a linear classifier on frozen features; mAP, AUC and d' for multi-label data.

    Besides the test metrics it gives `train_top1`, `train_top5` and the chosen `C`. With several
    splits, each has its metrics under `split1/…` and so on, and their means stand without.

    Args:
      feature: output(s) of the task, e.g. 'video' or ('video', 'audio'), each probed on its own.
      classifier: 'logistic' (regression, by default its C chosen on a validation part), 'svm' (the
        protocol of VATT's paper) or 'vatt' (of its published code).
      data: dataset; default the one of training.
      train_split, split: to train on and to test on; tuples of equal length for datasets that come
        with several pairs.
      batch_size: over all devices.
      views, train_views: what differs from the training's data config, for test and train clips,
        e.g. `views=dict(video=dict(num_clips=4))`.
      train_limit: only the first so many training examples (0: all).
      strengths, validation, standardize, average, seed, max_iterations, epochs: those that the
        classifier has, see `mmjax.evals.classifiers`; None is its own default.

    Raises:
      UserError: an option that the classifier does not have, or a value out of range.
    """

    def __init__(
        self,
        *,
        feature: str | Sequence[str] = "video",
        classifier: str = "logistic",
        data: str = "",
        train_split: str | Sequence[str] = "train",
        split: str | Sequence[str] = "test",
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        train_views: Mapping[str, Any] | None = None,
        train_limit: int = 0,
        strengths: Sequence[float] | None = None,
        validation: float | None = None,
        standardize: bool | None = None,
        average: str | None = None,
        seed: int | None = None,
        max_iterations: int | None = None,
        epochs: int | None = None,
        **common: Any,
    ):
        super().__init__(**common)
        train_splits = (train_split,) if isinstance(train_split, str) else tuple(train_split)
        splits = (split,) if isinstance(split, str) else tuple(split)
        if len(train_splits) != len(splits):
            raise UserError(
                f"Evaluator {self.name}: {len(train_splits)} train_split but {len(splits)} split."
            )
        self._fit = choose("classifier", classifier, CLASSIFIERS)
        options = dict(
            strengths=strengths,
            validation=validation,
            standardize=standardize,
            average=average,
            seed=seed,
            max_iterations=max_iterations,
            epochs=epochs,
        )
        self._options = {key: value for key, value in options.items() if value is not None}
        self._check_options(classifier)
        self._features = (feature,) if isinstance(feature, str) else tuple(feature)
        common = dict(data=data, batch_size=batch_size)
        self._pairs = [
            (
                self.ask(self._features, split=a, views=train_views, limit=train_limit, **common),
                self.ask(self._features, split=b, views=views, **common),
            )
            for a, b in zip(train_splits, splits, strict=True)
        ]

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        result = {}
        for name in self._features:
            found = [
                self._probe(name, self.store.get(state, train), self.store.get(state, test))
                for train, test in self._pairs
            ]
            for metric in found[0]:
                result[f"{name}/{metric}"] = float(np.mean([one[metric] for one in found]))
            if len(found) > 1:
                for number, one in enumerate(found, 1):
                    result |= {f"{name}/split{number}/{key}": value for key, value in one.items()}
        return result

    def _check_options(self, classifier: str) -> None:
        takes = list(inspect.signature(self._fit).parameters)[3:]  # after x, labels, num_classes
        for key, value in self._options.items():
            if key not in takes:
                kind = f"Evaluator {self.name}: option of classifier={classifier!r}:"
                raise unknown(kind, key, takes)
            if key in _RANGES and not _RANGES[key][0](value):
                raise UserError(
                    f"Evaluator {self.name}: {key}={value!r} must be {_RANGES[key][1]}."
                )

    def _probe(self, name: str, train: Features, test: Features) -> dict[str, float]:
        x, labels = train.labelled(name)
        test_x, test_labels = test.labelled(name)
        num_classes = classification.num_classes(labels, test_labels, train.info)
        fitted = self._fit(x, labels, num_classes=num_classes, **self._options)
        scores = fitted.scores(test_x)
        if labels.ndim > 1:
            found = classification.multi_label(scores, test_labels, test.info, self.name)
            return found | fitted.facts
        found = metrics.classification_metrics(scores, test_labels)
        if not fitted.probabilistic:
            del found["loss"]
        found = with_chance(found, metrics.classification_chance(num_classes))
        own = metrics.classification_metrics(fitted.scores(x), labels)
        own = {f"train_{key}": own[key] for key in ("top1", "top5") if key in own}
        return found | own | fitted.facts
