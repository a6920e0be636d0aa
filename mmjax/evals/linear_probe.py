"""Linear classifiers on frozen features: the linear probe of a representation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from mmjax import config
from mmjax.errors import UserError
from mmjax.evals import classification, metrics
from mmjax.evals.base import Evaluator, names_tuple, with_chance
from mmjax.evals.features.arrays import Features
from mmjax.evals.features.overlap import Fit
from mmjax.evals.probes.classifiers import Fitted, fit_logistic, fit_svm, fit_vatt
from mmjax.evals.probes.lgssl_sweep import fit_sweep

Classifier = Literal["logistic", "sweep", "svm", "vatt"]
CLASSIFIERS: dict[str, Callable[..., Fitted]] = {
    "logistic": fit_logistic,
    "sweep": fit_sweep,
    "svm": fit_svm,
    "vatt": fit_vatt,
}
# Arguments of the fit functions that are not options of the config.
_FIT_ARGUMENTS = ("x", "labels", "num_classes", "held_out")


class LinearProbe(Evaluator):
    """Accuracy of a linear classifier on frozen features; mAP, AUC and d' for multi-label data.

    In addition to the test metrics, reports `train_top1` and `train_top5` over all examples that
    the classifier is fitted to, and the selected `C`. With several splits, the metrics of each are
    under `split1/…` and so on, and their means have no prefix.

    Args:
      feature: Output(s) of the task, for example 'video' or ('video', 'audio'), each probed
        separately.
      classifier: 'logistic' (regression; by default C is selected on validation examples), 'sweep'
        (LGSSL's protocol), 'svm' (the protocol of VATT's paper) or 'vatt' (of its published code).
      data: Dataset; '' for the training dataset.
      train_split, split: Splits to train and test on. Tuples of equal length evaluate several pairs
        of splits.
      valid_split: Split to select C on, instead of a part of `train_split`. The classifier is then
        fitted to both. A tuple like the others.
      batch_size: Number of examples in a batch, over all devices.
      views, train_views: Changes of the data config for test and training examples, for example
        `dict(video=dict(num_clips=4))`.
      train_limit: Number of leading training examples to use; 0 for all.
      Cs, validation, standardize, average, penalty, metric, seed, max_iterations, epochs: Options
        of the classifier, see `probes.classifiers` and `probes.lgssl_sweep`. None selects the
        default of the classifier.

    Raises:
      UserError: An option that the classifier does not have, or a value out of range.
    """

    def __init__(
        self,
        *,
        feature: str | Sequence[str] = "video",
        classifier: Classifier = "logistic",
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
        average: Literal["probabilities", "logits"] | None = None,
        penalty: Literal["norm", "squared"] | None = None,
        metric: Literal["top1", "mean_per_class"] | None = None,
        seed: int | None = None,
        max_iterations: int | None = None,
        epochs: int | None = None,
        **common: Any,
    ):
        super().__init__(**common)
        self.check_minimum(0, train_limit=train_limit)
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
        self._fit = CLASSIFIERS[classifier]
        self._options = config.keywords(
            self._fit,
            {key: value for key, value in options.items() if value is not None},
            self.section,
            provided=_FIT_ARGUMENTS,
            owner=f"classifier={classifier}",
        )
        self._check_ranges(**self._options)
        if valid_split and not takes_valid_split(classifier):
            raise UserError(
                f"{self.key('valid_split')}={valid_split!r} has no effect, because "
                f"classifier={classifier!r} selects nothing on validation examples. Remove it."
            )
        self._features = names_tuple(feature)
        self._fits = [
            self._add_requests(
                train=dict(split=train, views=train_views, limit=train_limit),
                test=dict(split=test, views=views),
                valid=dict(split=valid, views=train_views) if valid else None,
                data=data,
                batch_size=batch_size,
            )
            for train, valid, test in self._split_triples(train_split, valid_split, split)
        ]

    def _split_triples(
        self,
        train_split: str | Sequence[str],
        valid_split: str | Sequence[str] | None,
        split: str | Sequence[str],
    ) -> list[tuple[str, str | None, str]]:
        """Returns (train, validation or None, test) splits."""
        train, test = names_tuple(train_split), names_tuple(split)
        valid = names_tuple(valid_split) if valid_split else (None,) * len(test)
        if not len(train) == len(test) == len(valid):
            counts = f"train_split has {len(train)}, split has {len(test)}"
            counts += f", valid_split has {len(valid)}" if valid_split else ""
            raise UserError(
                f"config.{self.section}: the split options must name equally many splits, but "
                f"{counts}."
            )
        return list(zip(train, valid, test, strict=True))

    def _add_requests(
        self,
        *,
        train: Mapping[str, Any],
        test: Mapping[str, Any],
        valid: Mapping[str, Any] | None,
        **common: Any,
    ) -> Fit:
        fitted = [
            self.add_request(self._features, **part, **common) for part in (train, valid) if part
        ]
        if valid:  # C is selected on it
            self.add_fit(fitted[:1], fitted[1])
        return self.add_fit(fitted, self.add_request(self._features, **test, **common))

    def _check_ranges(
        self,
        *,
        Cs: Sequence[float] = (1.0,),
        validation: float = 0.5,
        max_iterations: int = 1,
        epochs: int = 1,
        **_: Any,
    ) -> None:
        """Raises UserError for a value out of range."""
        if not Cs or min(Cs) <= 0:
            raise UserError(f"{self.key('Cs')} must be one or more positive numbers; got {Cs}.")
        if not 0 < validation < 1:
            raise UserError(
                f"{self.key('validation')} must be a fraction between 0 and 1 (exclusive); got "
                f"{validation}."
            )
        self.check_minimum(1, max_iterations=max_iterations, epochs=epochs)

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of each feature, and the means over several splits."""
        result = {}
        for name in self._features:
            splits = [self._probe(name, *self.get_fit(state, fit)) for fit in self._fits]
            for metric in splits[0]:
                result[f"{name}/{metric}"] = float(np.mean([values[metric] for values in splits]))
            if len(splits) > 1:
                for n, values in enumerate(splits, 1):
                    result |= {f"{name}/split{n}/{key}": value for key, value in values.items()}
        return result

    def _probe(self, name: str, fitted_to: Sequence[Features], test: Features) -> dict[str, float]:
        """Fits a classifier to training and maybe validation examples; returns its metrics."""
        train, *valid = fitted_to
        x, labels = train.labeled(name, section=self.section)
        test_x, test_labels = test.labeled(name, section=self.section)
        options = dict(self._options)
        if valid:
            valid_x, valid_labels = valid[0].labeled(name, section=self.section)
            options["held_out"] = np.repeat([False, True], [len(labels), len(valid_labels)])
            x, labels = np.concatenate([x, valid_x]), np.concatenate([labels, valid_labels])
        num_classes = classification.num_classes(labels, test_labels, train.info)
        try:
            fitted = self._fit(x, labels, num_classes=num_classes, **options)
        except UserError as error:
            raise UserError(f"config.{self.section}, {train.source}: {error}") from error
        scores = fitted.scores(test_x)
        if labels.ndim > 1:
            values = classification.multi_label_metrics(scores, test_labels, test, self.section)
            return values | fitted.selection
        values = metrics.classification_metrics(scores, test_labels)
        if not fitted.probabilistic:
            del values["loss"]
        values = with_chance(values, metrics.classification_chance(len(np.unique(labels))))
        train_values = metrics.classification_metrics(fitted.scores(x), labels)
        for key in ("top1", "top5"):
            if key in train_values:
                values[f"train_{key}"] = train_values[key]
        return values | fitted.selection


def takes_valid_split(classifier: Classifier) -> bool:
    """Returns whether a classifier selects something on validation examples."""
    return "held_out" in config.parameters(CLASSIFIERS[classifier])
