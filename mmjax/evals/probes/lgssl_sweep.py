"""The linear probe of LGSSL (El Banani et al. 2023, arXiv 2302.12248): logistic regression whose C
is searched for from coarse to fine on validation accuracy, then fitted to training and validation
examples together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging

from mmjax.errors import choose
from mmjax.evals import metrics
from mmjax.evals.probes import classifiers, lgssl_logistic, logistic

COARSE = tuple(10.0**e for e in range(-6, 7, 2))
_DECADES = 2  # that the fine search looks at on either side of the best coarse value
_PER_DECADE = 7


def fine_grid(best: float) -> list[float]:
    """29 values around the best of `COARSE`, evenly spaced in their logarithms; 15 at its ends."""
    low = max(math.log10(best) - _DECADES, math.log10(COARSE[0]))
    high = min(math.log10(best) + _DECADES, math.log10(COARSE[-1]))
    number = round((high - low) * _PER_DECADE) + 1
    return np.logspace(low, high, number).astype(np.float32).tolist()


def search(score: Callable[[float], float]) -> tuple[float, float]:
    """`(C, score)` of the best strength.

    First `COARSE`. Then the values of `fine_grid` are looked at like a book: at a quarter, the
    middle and three quarters of what is left, of which the half (or the middle) goes on that has
    the best of the three. Of equal scores the one that was found first wins.

    Args:
      score: how good a value of C is; called once for each value.
    """
    coarse = [score(C) for C in COARSE]
    best = COARSE[int(np.argmax(coarse))]
    known = {float(np.float32(c)): value for c, value in zip(COARSE, coarse, strict=True)}
    found = (best, max(coarse))
    left = fine_grid(best)
    while len(left) > 1:
        number = len(left)
        places = (number // 4, number // 2, number + -number // 4)
        for place in places:
            if left[place] not in known:
                known[left[place]] = score(left[place])
            if known[left[place]] > found[1]:
                found = (left[place], known[left[place]])
        values = [known[left[place]] for place in places]
        if values[0] == max(values):
            left = left[: number // 2]
        elif values[2] == max(values):
            left = left[number // 2 :]
        else:
            left = left[places[0] : places[2]]
    return found


def mean_per_class(logits: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Accuracy of each class, summed and divided by `num_classes`: absent classes count 0."""
    found = metrics.mean_class_accuracy(logits, labels)
    return found * len(np.unique(labels)) / num_classes


def fit_sweep(
    x: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    held_out: np.ndarray | None = None,
    validation: float = 0.2,
    penalty: str = "norm",
    metric: str = "top1",
    standardize: bool = False,
    seed: int = 0,
    max_iterations: int = 1000,
) -> classifiers.Fitted:
    """Logistic regression with LGSSL's search for C, see `search`.

    Args:
      x, labels, num_classes: see `classifiers`; labels int [N], each of V views counts 1 / V, and
        their probabilities are averaged.
      held_out: bool [N], the validation examples; default a part of each class.
      validation: the size of that part.
      penalty: 'norm' is that of LGSSL's published code, see `norm_penalty`; 'squared' the usual
        one, scikit-learn's for the same C. The two need quite different values of C.
      metric: 'top1' or 'mean_per_class', for the search. The latter divides by the number of
        classes in the training part, so that one without validation examples counts 0.
      standardize: as in `classifiers.fit_logistic`.
      seed: of the validation part.
      max_iterations: bound on the iterations of L-BFGS.

    Raises:
      UserError: multi-label data, or nothing to validate on.
    """
    classifiers.check_single(labels, "sweep")
    views = x.shape[1]
    prepare = classifiers.standardization(x) if standardize else classifiers.as_float32
    # On the device once, for all fits; they have one shape and so one compilation.
    rows = jnp.asarray(prepare(x).reshape(-1, x.shape[-1]))
    targets = np.repeat(labels, views)
    held_out = classifiers.part_to_choose_on(labels, validation, seed, held_out)
    solve = choose("penalty", penalty, _PENALTIES)(rows, targets, num_classes, max_iterations)

    def weights(examples: np.ndarray) -> np.ndarray:
        return np.repeat(examples, views) / views

    def logits(solution: logistic.Linear, x: np.ndarray) -> np.ndarray:
        return classifiers.average_views(solution.logits(prepare(x)), "probabilities", "softmax")

    validation_x, right = x[held_out], labels[held_out]
    in_training = len(np.unique(labels[~held_out]))

    def score(C: float) -> float:
        found = logits(solve(C, weights(~held_out)), validation_x)
        if metric == "top1":
            return metrics.top_k_accuracy(found, right, 1)
        return mean_per_class(found, right, in_training)

    C, best = search(score)
    if C in (COARSE[0], COARSE[-1]):
        logging.warning("Linear probe: the best C=%g is at the end of the search.", C)
    solution = solve(C, weights(np.ones(len(labels), bool)))
    return classifiers.Fitted(
        scores=lambda x: logits(solution, x),
        facts={"C": C, f"valid_{metric}": best},
    )


def _norm(rows: Any, targets: np.ndarray, num_classes: int, max_iterations: int) -> Callable:
    targets = jnp.asarray(targets)

    def solve(C: float, weight: np.ndarray) -> logistic.Linear:
        # Every fit begins with zeros, as published: where it starts decides where it ends.
        return lgssl_logistic.fit(
            rows,
            targets,
            num_classes=num_classes,
            C=C,
            weight=weight,
            max_iterations=max_iterations,
        )

    return solve


def _squared(rows: Any, targets: np.ndarray, num_classes: int, max_iterations: int) -> Callable:
    one_hot = jnp.asarray(np.eye(num_classes, dtype=np.float32)[targets])
    solutions: dict[float, logistic.Solution] = {}  # for others to start from: it is convex

    def solve(C: float, weight: np.ndarray) -> logistic.Linear:
        near = min(solutions, key=lambda c: abs(math.log(c / C)), default=None)
        solutions[C] = logistic.fit(
            rows,
            one_hot,
            C=C,
            weight=weight,
            start=solutions.get(near),
            tolerance=1e-6,  # where the penalty is weak, less would be another classifier
            max_iterations=max_iterations,
        )
        return solutions[C]

    return solve


_PENALTIES = {"norm": _norm, "squared": _squared}
