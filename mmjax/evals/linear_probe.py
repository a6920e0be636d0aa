"""Logistic regression on frozen features, its regularisation chosen on a validation part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from scipy import special

from mmjax.errors import UserError, choose
from mmjax.evals import classification, logistic, metrics
from mmjax.evals.base import Evaluator, with_chance
from mmjax.evals.features import Features

STRENGTHS = tuple(10.0**e for e in range(-4, 3))
_CHOICE_TOLERANCE = 1e-4  # enough to rank strengths; the chosen one is then solved to the end


def validation_part(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """bool [N]: which examples are for validation, a `fraction` of each class (of all, if
    multi-label).

    Examples in a random order, sorted by class, of which evenly spaced ones are taken: classes too
      small for one
    of their own share.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.ndim == 1:
        order = order[np.argsort(labels[order], kind="stable")]
    number = np.arange(len(labels))
    taken = np.floor((number + 1) * fraction + 0.5) > np.floor(number * fraction + 0.5)
    chosen = np.zeros(len(labels), bool)
    chosen[order[taken]] = True
    return chosen


class Probe:
    """A linear classifier of features [..., D], single or multi-label.

    Args:
      x: [N, V, D] training features; each of the V views counts 1 / V.
      labels: int [N], or [N, C] for multi-label.
      num_classes: C.
      strengths: values of scikit-learn's C to choose from; with several, the one with the best
        top-1 accuracy (multi-label: the lowest loss) on the validation part, then refitted on
        everything.
      validation: fraction of the examples for that choice.
      standardize: subtract the training mean and divide by the training deviation of each feature.
      seed: of the validation part.
      max_iterations: bound on the iterations of L-BFGS.

    Attributes:
      strength: the chosen C.
    """

    def __init__(
        self,
        x: np.ndarray,
        labels: np.ndarray,
        *,
        num_classes: int,
        strengths: Sequence[float] = STRENGTHS,
        validation: float = 0.2,
        standardize: bool = True,
        seed: int = 0,
        max_iterations: int = 500,
    ):
        x = np.asarray(x, np.float32)
        views, dim = x.shape[1:]
        self._mean, self._scale = np.zeros(dim, np.float32), np.ones(dim, np.float32)
        if standardize:
            rows = x.reshape(-1, dim)
            deviation = rows.std(axis=0, dtype=np.float64)
            self._mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
            # A constant feature is rounding noise after its mean is taken off: leave it so small.
            constant = deviation <= 1e-6 * np.maximum(np.abs(self._mean), 1e-30)
            self._scale = np.where(constant, 1.0, deviation).astype(np.float32)
        self._kind: logistic.Kind = "softmax" if labels.ndim == 1 else "sigmoid"
        rows = self._prepare(x).reshape(-1, dim)
        targets = np.eye(num_classes, dtype=np.float32)[labels] if labels.ndim == 1 else labels
        targets = np.repeat(targets, views, axis=0)

        # On the device once, for all fits; they have one shape and so one compilation.
        self._rows, self._targets = jnp.asarray(rows), jnp.asarray(targets)
        self._views, self._max_iterations = views, max_iterations
        start, self.strength = None, float(strengths[0])
        if len(strengths) > 1:
            held_out = validation_part(labels, validation, seed)
            if not held_out.any() or held_out.all():
                raise UserError(
                    f"{len(labels)} examples cannot be split with validation={validation}; give "
                    "one value in strengths=(C,) to skip the choice."
                )
            start, self.strength = self._choose(x, labels, held_out, strengths)
        everything = np.ones(len(labels), bool)
        self._solution = self._fit(self.strength, everything, start, tolerance=1e-6)
        if self._solution.iterations >= max_iterations:
            logging.warning(
                "Linear probe: not converged after %d iterations (gradient %.1e of the first).",
                max_iterations,
                self._solution.gradient,
            )
        del self._rows, self._targets

    def _prepare(self, x: np.ndarray) -> np.ndarray:
        return (np.asarray(x, np.float32) - self._mean) / self._scale

    def _fit(
        self,
        strength: float,
        examples: np.ndarray,
        start: logistic.Solution | None,
        tolerance: float,
    ) -> logistic.Solution:
        return logistic.fit(
            self._rows,
            self._targets,
            strength=strength,
            kind=self._kind,
            weight=np.repeat(examples, self._views) / self._views,
            start=start,
            tolerance=tolerance,
            max_iterations=self._max_iterations,
        )

    def _choose(
        self, x: np.ndarray, labels: np.ndarray, held_out: np.ndarray, strengths: Sequence[float]
    ) -> tuple[logistic.Solution, float]:
        """The best strength and its solution; of equal ones the lower loss, then the smaller C."""
        best, solution = None, None
        x, right = self._prepare(x[held_out]), labels[held_out]
        for strength in sorted(strengths):  # each starts from the one before
            solution = self._fit(strength, ~held_out, solution, tolerance=_CHOICE_TOLERANCE)
            logits = solution.logits(x).mean(axis=1)
            if right.ndim == 1:
                loss = metrics.softmax_cross_entropy(logits, right)
                score = (metrics.top_k_accuracy(logits, right, 1), -loss)
            else:
                score = (-metrics.sigmoid_cross_entropy(logits, right),)
            if best is None or score > best[0]:
                best = (score, solution, float(strength))
        return best[1:]

    def scores(self, x: np.ndarray, average: str) -> np.ndarray:
        """Logits [N, C] for features [N, V, D]: those of the views averaged, or the log of the
        averaged probabilities (softmax) or its logit (sigmoid)."""
        logits = self._solution.logits(self._prepare(x))  # [N, V, C]
        if average == "logits" or logits.shape[1] == 1:
            return logits.mean(axis=1)
        logits = logits.astype(np.float64)
        views = np.log(logits.shape[1])
        if self._kind == "softmax":
            return special.logsumexp(special.log_softmax(logits, axis=-1), axis=1) - views
        yes = special.logsumexp(special.log_expit(logits), axis=1)
        return yes - special.logsumexp(special.log_expit(-logits), axis=1)


class LinearProbe(Evaluator):
    """Accuracy of a linear classifier on frozen features; mAP, AUC and d' for multi-label data.

    Besides the test metrics it gives `train_top1` and the chosen `C`. With several splits, each has
    its metrics under `split1/…` and so on, and their means stand without.

    Args:
      feature: output(s) of the task, e.g. 'video' or ('video', 'audio'), each probed on its own.
      data: dataset; default the one of training.
      train_split, split: to train on and to test on; tuples of equal length for datasets that come
        with several pairs.
      batch_size: over all devices.
      views, train_views: what differs from the training's data config, for test and train clips,
        e.g. `views=dict(video=dict(num_clips=4))`.
      average: how the views of a test example are averaged: 'probabilities' (VATT's) or 'logits'.
      strengths, validation, standardize, seed, max_iterations: see `Probe`.
      train_limit: only the first so many training examples (0: all).
    """

    def __init__(
        self,
        *,
        feature: str | Sequence[str] = "video",
        data: str = "",
        train_split: str | Sequence[str] = "train",
        split: str | Sequence[str] = "test",
        batch_size: int = 64,
        views: Mapping[str, Any] | None = None,
        train_views: Mapping[str, Any] | None = None,
        average: str = "probabilities",
        strengths: Sequence[float] = STRENGTHS,
        validation: float = 0.2,
        standardize: bool = True,
        seed: int = 0,
        max_iterations: int = 500,
        train_limit: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        choose("average of views", average, {"probabilities": 0, "logits": 0})
        train_splits = (train_split,) if isinstance(train_split, str) else tuple(train_split)
        splits = (split,) if isinstance(split, str) else tuple(split)
        if len(train_splits) != len(splits):
            raise UserError(
                f"Evaluator {self.name}: {len(train_splits)} train_split but {len(splits)} split."
            )
        if not strengths or min(strengths) <= 0:
            raise UserError(
                f"Evaluator {self.name}: strengths={strengths} must be positive numbers."
            )
        if not 0 < validation < 1:
            raise UserError(
                f"Evaluator {self.name}: validation={validation} must be within 0 and 1."
            )
        self._features = (feature,) if isinstance(feature, str) else tuple(feature)
        self._average = average
        self._options = dict(
            strengths=tuple(strengths),
            validation=validation,
            standardize=standardize,
            seed=seed,
            max_iterations=max_iterations,
        )
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

    def _probe(self, name: str, train: Features, test: Features) -> dict[str, float]:
        x, labels = train.labelled(name)
        test_x, test_labels = test.labelled(name)
        num_classes = classification.num_classes(labels, test_labels, train.info)
        probe = Probe(x, labels, num_classes=num_classes, **self._options)
        scores = probe.scores(test_x, self._average)
        if labels.ndim > 1:
            found = classification.multi_label(scores, test_labels, test.info, self.name)
            return found | {"C": probe.strength}
        found = metrics.classification_metrics(scores, test_labels)
        found = with_chance(found, metrics.classification_chance(num_classes))
        own = metrics.top_k_accuracy(probe.scores(x, self._average), labels, 1)
        return found | {"train_top1": own, "C": probe.strength}
