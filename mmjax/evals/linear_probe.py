"""Classifiers on frozen features: the linear probe of a representation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.errors import UserError, choose, unknown
from mmjax.evals import classification, metrics
from mmjax.evals.base import Evaluator, with_chance
from mmjax.evals.features.store import Features, Request
from mmjax.evals.probes.classifiers import Fitted, fit_logistic, fit_svm, fit_vatt
from mmjax.evals.probes.lgssl_sweep import fit_sweep

CLASSIFIERS: dict[str, Callable[..., Fitted]] = {
    "logistic": fit_logistic,
    "sweep": fit_sweep,
    "svm": fit_svm,
    "vatt": fit_vatt,
}
# What the values of a classifier's options must be.
_RANGES = {
    "Cs": (lambda values: len(values) and min(values) > 0, "positive numbers"),
    "validation": (lambda value: 0 < value < 1, "within 0 and 1"),
    "average": (lambda value: value in ("probabilities", "logits"), "'probabilities' or 'logits'"),
    "penalty": (lambda value: value in ("norm", "squared"), "'norm' or 'squared'"),
    "metric": (lambda value: value in ("top1", "mean_per_class"), "'top1' or 'mean_per_class'"),
    "max_iterations": (lambda value: value > 0, "positive"),
    "epochs": (lambda value: value > 0, "positive"),
}


class LinearProbe(Evaluator):
    """Accuracy of a linear classifier on frozen features; mAP, AUC and d' for multi-label data.

    Besides the test metrics it gives `train_top1`, `train_top5` (of all examples that the
    classifier is fitted to) and the chosen `C`. With several splits, each has its metrics under
    `split1/…` and so on, and their means stand without.

    Args:
      feature: output(s) of the task, e.g. 'video' or ('video', 'audio'), each probed on its own.
      classifier: 'logistic' (regression, by default its C chosen on a validation part), 'sweep'
        (LGSSL's protocol), 'svm' (that of VATT's paper) or 'vatt' (of its published code).
      data: dataset; default the one of training.
      train_split, split: to train on and to test on; tuples of equal length for datasets that come
        with several pairs.
      valid_split: to choose C on, instead of a part of train_split; then the classifier is fitted
        to both. A tuple like the others.
      batch_size: over all devices.
      views, train_views: what differs from the training's data config, for test and train clips,
        e.g. `views=dict(video=dict(num_clips=4))`.
      train_limit: only the first so many training examples (0: all).
      strengths, validation, standardize, average, penalty, metric, seed, max_iterations, epochs:
        those that the classifier has, see `mmjax.evals.probes.classifiers` and `mmjax.evals.probes.lgssl_sweep`; None
        is its own default.

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
        valid_split: str | Sequence[str] | None = None,
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        train_views: Mapping[str, Any] | None = None,
        train_limit: int = 0,
        Cs: Sequence[float] | None = None,
        validation: float | None = None,
        standardize: bool | None = None,
        average: str | None = None,
        penalty: str | None = None,
        metric: str | None = None,
        seed: int | None = None,
        max_iterations: int | None = None,
        epochs: int | None = None,
        **common: Any,
    ):
        super().__init__(**common)
        train_splits, splits = _tuple(train_split), _tuple(split)
        valid_splits = _tuple(valid_split) if valid_split else (None,) * len(splits)
        if not len(train_splits) == len(splits) == len(valid_splits):
            raise UserError(
                f"Evaluator {self.name}: {len(train_splits)} train_split but {len(splits)} split"
                + (f" and {len(valid_splits)} valid_split." if valid_split else ".")
            )
        self._fit = choose("classifier", classifier, CLASSIFIERS)
        options = dict(
            Cs=Cs,
            validation=validation,
            standardize=standardize,
            average=average,
            penalty=penalty,
            metric=metric,
            seed=seed,
            max_iterations=max_iterations,
            epochs=epochs,
        )
        self._options = {key: value for key, value in options.items() if value is not None}
        self._check_options(classifier, bool(valid_split))
        self._features = _tuple(feature)
        common = dict(data=data, batch_size=batch_size)

        def ask(train: str, valid: str | None, test: str) -> tuple[Request, ...]:
            asked = [
                dict(split=train, views=train_views, limit=train_limit),
                dict(split=test, views=views),
            ]
            if valid:
                asked.append(dict(split=valid, views=train_views))
            return tuple(self.ask(self._features, **one, **common) for one in asked)

        self._requests = [
            ask(*names) for names in zip(train_splits, valid_splits, splits, strict=True)
        ]

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        result = {}
        for name in self._features:
            found = [
                self._probe(name, *(self.store.get(state, request) for request in several))
                for several in self._requests
            ]
            for metric in found[0]:
                result[f"{name}/{metric}"] = float(np.mean([one[metric] for one in found]))
            if len(found) > 1:
                for number, one in enumerate(found, 1):
                    result |= {f"{name}/split{number}/{key}": value for key, value in one.items()}
        return result

    def _check_options(self, classifier: str, has_valid_split: bool) -> None:
        takes = list(inspect.signature(self._fit).parameters)[3:]  # after x, labels, num_classes
        if takes_valid_split(classifier):
            takes.remove("held_out")
        elif has_valid_split:
            raise UserError(
                f"Evaluator {self.name}: classifier={classifier!r} has nothing to choose on a "
                "valid_split: leave it out."
            )
        for key, value in self._options.items():
            if key not in takes:
                kind = f"Evaluator {self.name}: option of classifier={classifier!r}:"
                raise unknown(kind, key, takes)
            if key in _RANGES and not _RANGES[key][0](value):
                raise UserError(
                    f"Evaluator {self.name}: {key}={value!r} must be {_RANGES[key][1]}."
                )

    def _probe(
        self, name: str, train: Features, test: Features, valid: Features | None = None
    ) -> dict[str, float]:
        x, labels = train.labeled(name)
        test_x, test_labels = test.labeled(name)
        options = dict(self._options)
        if valid is not None:
            valid_x, valid_labels = valid.labeled(name)
            options["held_out"] = np.repeat([False, True], [len(labels), len(valid_labels)])
            x, labels = np.concatenate([x, valid_x]), np.concatenate([labels, valid_labels])
        num_classes = classification.num_classes(labels, test_labels, train.info)
        fitted = self._fit(x, labels, num_classes=num_classes, **options)
        scores = fitted.scores(test_x)
        if labels.ndim > 1:
            found = classification.multi_label(scores, test_labels, test.info, self.name)
            return found | fitted.facts
        found = metrics.classification_metrics(scores, test_labels)
        if not fitted.probabilistic:
            del found["loss"]
        guess = metrics.classification_chance(len(np.unique(labels)))
        found = with_chance(found, guess)
        own = metrics.classification_metrics(fitted.scores(x), labels)
        own = {f"train_{key}": own[key] for key in ("top1", "top5") if key in own}
        return found | own | fitted.facts


def takes_valid_split(classifier: str) -> bool:
    """Whether a classifier chooses something on validation examples."""
    fit = choose("classifier", classifier, CLASSIFIERS)
    return "held_out" in inspect.signature(fit).parameters


def _tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
