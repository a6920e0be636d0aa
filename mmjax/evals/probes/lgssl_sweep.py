"""The linear probe of LGSSL (El Banani et al. 2023, arXiv 2302.12248).

Logistic regression. C is searched from coarse to fine by validation accuracy, and the classifier is
then fitted to the training and validation examples together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mmjax.evals import metrics
from mmjax.evals.probes import classifiers, lgssl_logistic, linear, logistic

COARSE = tuple(10.0**e for e in range(-6, 7, 2))
_DECADES = 2  # range of the fine grid on either side of the best coarse value
_PER_DECADE = 7


def fine_grid(best: float) -> list[float]:
    """Returns 29 values around the best of `COARSE` on a log scale; 15 values at its ends."""
    low = max(math.log10(best) - _DECADES, math.log10(COARSE[0]))
    high = min(math.log10(best) + _DECADES, math.log10(COARSE[-1]))
    size = round((high - low) * _PER_DECADE) + 1
    return np.logspace(low, high, size).astype(np.float32).tolist()


def search(score: Callable[[float], float]) -> tuple[float, float]:
    """Returns the best C and its score.

    First all values of `COARSE` are evaluated. Then `fine_grid` is bisected: the values at one
    quarter, one half and three quarters of the remaining grid are evaluated, and the half (or the
    middle) around the best of them remains. Of equal scores, the one that was evaluated first wins.

    Args:
      score: Returns the validation score of a value of C; called once per value.
    """
    coarse = [score(C) for C in COARSE]
    best = COARSE[int(np.argmax(coarse))]
    known = {float(np.float32(c)): value for c, value in zip(COARSE, coarse, strict=True)}
    result = (best, max(coarse))
    grid = fine_grid(best)
    while len(grid) > 1:
        size = len(grid)
        positions = (size // 4, size // 2, size + -size // 4)
        for position in positions:
            if grid[position] not in known:
                known[grid[position]] = score(grid[position])
            if known[grid[position]] > result[1]:
                result = (grid[position], known[grid[position]])
        values = [known[grid[position]] for position in positions]
        if values[0] == max(values):
            grid = grid[: size // 2]
        elif values[2] == max(values):
            grid = grid[size // 2 :]
        else:
            grid = grid[positions[0] : positions[2]]
    return result


def mean_per_class(logits: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Returns the sum of the classes' accuracies / `num_classes`; absent classes count as 0."""
    accuracy = metrics.mean_class_accuracy(logits, labels)
    return accuracy * len(np.unique(labels)) / num_classes


def fit_sweep(
    x: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    held_out: np.ndarray | None = None,
    validation: float = 0.2,
    penalty: Literal["norm", "squared"] = "norm",
    metric: Literal["top1", "mean_per_class"] = "top1",
    standardize: bool = False,
    seed: int = 0,
    max_iterations: int = 1000,
) -> classifiers.Fitted:
    """Fits logistic regression with LGSSL's search for C; see `search`.

    Args:
      x: Features [N, V, D]. Each of V views has the weight 1 / V; their probabilities are averaged.
      labels: int [N].
      num_classes: Number of classes.
      held_out: bool [N], the validation examples. None samples a part of each class.
      validation: Fraction of the examples that is sampled.
      penalty: 'norm' is the objective of LGSSL's published code, see `lgssl_logistic`. 'squared' is
        scikit-learn's objective for the same C, see `logistic`. Their best C differ by orders of
        magnitude.
      metric: Score of the search. 'mean_per_class' divides by the number of classes in the training
        part, so that a class without validation examples counts as 0.
      standardize: As in `classifiers.fit_logistic`.
      seed: Seed of the validation part.
      max_iterations: Maximum number of L-BFGS iterations of a fit.

    Raises:
      UserError: Multi-label data, or too few examples for a validation part.
    """
    classifiers.check_single_label(labels, "sweep")
    views = x.shape[1]
    prepare = classifiers.standardization(x) if standardize else classifiers.as_float32
    # On the device once for all fits, which have one shape and so one compilation.
    vectors = jnp.asarray(prepare(x).reshape(-1, x.shape[-1]))
    targets = np.repeat(labels, views)
    held_out = classifiers.selection_part(labels, validation, seed, held_out)
    make_solver = _norm_solver if penalty == "norm" else _squared_solver
    solve = make_solver(vectors, targets, num_classes, max_iterations)

    def weights(examples: np.ndarray) -> np.ndarray:
        return np.repeat(examples, views) / views

    def logits(solution: linear.Linear, x: np.ndarray) -> np.ndarray:
        return classifiers.average_views(solution.logits(prepare(x)), "probabilities", "softmax")

    validation_x, truth = x[held_out], labels[held_out]
    train_classes = len(np.unique(labels[~held_out]))

    def score(C: float) -> float:
        values = logits(solve(C, weights(~held_out)), validation_x)
        if metric == "top1":
            return metrics.top_k_accuracy(values, truth, 1)
        return mean_per_class(values, truth, train_classes)

    C, best = search(score)
    if C in (COARSE[0], COARSE[-1]):
        logging.warning(
            "Linear probe: the best C=%g is at the end of the search. standardize=True may help.", C
        )
    solution = solve(C, weights(np.ones(len(labels), bool)))
    return classifiers.Fitted(
        scores=lambda x: logits(solution, x),
        selection={"C": C, f"valid_{metric}": best},
    )


_Solver = Callable[[float, np.ndarray], linear.Linear]  # (C, weights of the examples) → classifier


def _norm_solver(
    x: jax.Array, targets: np.ndarray, num_classes: int, max_iterations: int
) -> _Solver:
    targets = jnp.asarray(targets)

    def solve(C: float, weight: np.ndarray) -> linear.Linear:
        # As published, every fit starts from zeros: the result depends on the start.
        return lgssl_logistic.fit(
            x, targets, num_classes=num_classes, C=C, weight=weight, max_iterations=max_iterations
        )

    return solve


def _squared_solver(
    x: jax.Array, targets: np.ndarray, num_classes: int, max_iterations: int
) -> _Solver:
    one_hot = jnp.asarray(np.eye(num_classes, dtype=np.float32)[targets])
    solutions: dict[float, logistic.Solution] = {}  # convex, so fits start from each other

    def solve(C: float, weight: np.ndarray) -> linear.Linear:
        nearest = min(solutions, key=lambda c: abs(math.log(c / C)), default=None)
        solutions[C] = logistic.fit(
            x,
            one_hot,
            C=C,
            weight=weight,
            start=solutions.get(nearest),
            tolerance=1e-6,  # with a weak penalty, a larger one gives another classifier
            max_iterations=max_iterations,
        )
        return solutions[C]

    return solve
