"""Classifiers of the linear probe: `fit(x, labels, num_classes=…, **options) -> Fitted`.

The keyword arguments of each function are the options that `linear_probe` accepts with its name;
`held_out` is its `valid_split`. Features x are [N, V, D], V views of every example. Labels are
int [N], or [N, C] for multi-label data. The classifier 'sweep' is in `lgssl_sweep`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from absl import logging
from scipy import special

from mmjax.errors import UserError
from mmjax.evals import metrics
from mmjax.evals.probes import linear, logistic, vatt_head

DEFAULT_CS = tuple(10.0**e for e in range(-4, 3))
_SELECTION_TOLERANCE = 1e-4  # enough to rank values of C; the final fit has a smaller tolerance
_NEVER = -1e9  # score of a class without training examples


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained classifier.

    Attributes:
      scores: Maps features [N, V, D] to scores [N, C]. The classifier determines how views are
        averaged.
      selection: The selected hyperparameters and their validation score, for example {'C': 1.0}.
      probabilistic: Whether the softmax (multi-label: sigmoid) of the scores is a probability.
    """

    scores: Callable[[np.ndarray], np.ndarray]
    selection: Mapping[str, float] = dataclasses.field(default_factory=dict)
    probabilistic: bool = True


def fit_logistic(
    x: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    held_out: np.ndarray | None = None,
    Cs: Sequence[float] = DEFAULT_CS,
    validation: float = 0.2,
    standardize: bool = True,
    average: Literal["probabilities", "logits"] = "probabilities",
    seed: int = 0,
    max_iterations: int = 1000,
) -> Fitted:
    """Fits multinomial logistic regression, or one binary problem per class for multi-label data.

    Args:
      x: Features [N, V, D]. Each of V views has the weight 1 / V.
      labels: int [N], or [N, C].
      num_classes: Number of classes C.
      held_out: bool [N], the examples to select C on. None samples a part of each class.
      Cs: Values of scikit-learn's C to select from; see `select_C`.
      validation: Fraction of the examples that is sampled.
      standardize: Whether to subtract the training mean of each feature and divide by its standard
        deviation.
      average: Whether probabilities or logits are averaged over the views of an example.
      seed: Seed of the validation part.
      max_iterations: Maximum number of L-BFGS iterations.
    """
    views, activation = x.shape[1], "softmax" if labels.ndim == 1 else "sigmoid"
    prepare = standardization(x) if standardize else as_float32
    targets = np.eye(num_classes, dtype=np.float32)[labels] if labels.ndim == 1 else labels
    # On the device once for all fits, which have one shape and so one compilation.
    vectors = jnp.asarray(prepare(x).reshape(-1, x.shape[-1]))
    targets = jnp.asarray(np.repeat(targets, views, axis=0))

    def solve(C, examples, start, tolerance=_SELECTION_TOLERANCE):
        return logistic.fit(
            vectors,
            targets,
            C=C,
            activation=activation,
            weight=np.repeat(examples, views) / views,
            start=start,
            tolerance=tolerance,
            max_iterations=max_iterations,
        )

    part = functools.partial(selection_part, labels, validation, seed, held_out)
    C, start = select_C(prepare, x, labels, Cs, part, solve)
    solution = solve(C, np.ones(len(labels), bool), start, tolerance=1e-6)
    if solution.iterations >= max_iterations:
        logging.warning(
            "Linear probe: not converged after max_iterations=%d (the gradient is %.1e of the "
            "initial one).",
            max_iterations,
            solution.gradient,
        )
    return Fitted(
        scores=lambda x: average_views(solution.logits(prepare(x)), average, activation),
        selection={"C": C},
    )


def fit_svm(
    x: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    held_out: np.ndarray | None = None,
    Cs: Sequence[float] = (6e-5,),
    validation: float = 0.2,
    standardize: bool = False,
    seed: int = 0,
) -> Fitted:
    """Fits one-vs-rest linear SVMs with squared hinge loss: scikit-learn's LinearSVC.

    The default C is from a comment in VATT's code, which does not scale features. VATT's paper
    follows the protocol of MMV, which uses `standardize=True, Cs=(1e-3,)`. Both average the
    decision function over the views of a test example.

    Args:
      x: Features [N, V, D].
      labels: int [N].
      num_classes: Number of classes.
      held_out, Cs, validation, standardize, seed: As in `fit_logistic`.

    Raises:
      UserError: Multi-label data, or fewer than two classes.
    """
    # Imported here because it takes a second.
    from sklearn.svm import LinearSVC

    check_single_label(labels, "svm")
    present = np.unique(labels)
    if len(present) < 2:
        raise UserError(
            f"classifier='svm' needs training examples of at least two classes; the {len(labels)} "
            f"examples have only 1 class (label {present[0]}). Use more training examples "
            "(train_limit=0) or another split."
        )
    views = x.shape[1]
    prepare = standardization(x) if standardize else as_float32
    vectors, targets = prepare(x).reshape(-1, x.shape[-1]), np.repeat(labels, views)

    def solve(C, examples, _):
        chosen = np.repeat(examples, views)
        weight = None if views == 1 else np.full(chosen.sum(), 1.0 / views)
        machine = LinearSVC(C=C, random_state=seed)
        machine.fit(vectors[chosen], targets[chosen], sample_weight=weight)
        return _linear_of_svm(machine, num_classes)

    part = functools.partial(selection_part, labels, validation, seed, held_out)
    C, _ = select_C(prepare, x, labels, Cs, part, solve)
    machine = solve(C, np.ones(len(labels), bool), None)
    return Fitted(
        scores=lambda x: machine.logits(prepare(x)).mean(axis=1),
        selection={"C": C},
        probabilistic=False,
    )


def _linear_of_svm(machine: Any, num_classes: int) -> linear.Linear:
    """Returns the decision function of a LinearSVC for all classes, with or without examples."""
    kernel = np.zeros((machine.coef_.shape[1], num_classes), np.float32)
    bias = np.full(num_classes, _NEVER, np.float32)
    coef, intercept = machine.coef_.T, machine.intercept_
    if len(machine.classes_) == 2:  # then LinearSVC has one column, for the second class
        coef, intercept = (np.concatenate([-x, x], axis=-1) for x in (coef, intercept))
    kernel[:, machine.classes_], bias[machine.classes_] = coef, intercept
    return linear.Linear(kernel, bias)


def fit_vatt(
    x: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    epochs: int = 1000,
    seed: int = 1,
) -> Fitted:
    """Trains the classifier of VATT's published code: 128 hidden units with a dropout of 0.9.

    See `vatt_head`. Features are not scaled; probabilities are averaged over views.

    Args:
      x: Features [N, V, D]. Every view is a training example.
      labels: int [N].
      num_classes: Number of classes.
      epochs: Number of passes over the examples.
      seed: Seed of initialization, order and dropout.

    Raises:
      UserError: Multi-label data.
    """
    check_single_label(labels, "vatt")
    vectors, targets = as_float32(x).reshape(-1, x.shape[-1]), np.repeat(labels, x.shape[1])
    head = vatt_head.fit(vectors, targets, num_classes=num_classes, epochs=epochs, seed=seed)
    return Fitted(scores=lambda x: average_views(head.logits(x), "probabilities", "softmax"))


def validation_part(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Returns which examples are for validation, bool [N].

    A `fraction` of each class is selected, or of all examples for multi-label data. The examples
    are shuffled and sorted by class, and evenly spaced ones are selected. Classes that are too
    small to contribute an example each therefore share one.

    Args:
      labels: int [N], or [N, C].
      fraction: Fraction of validation examples.
      seed: Seed of the order.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.ndim == 1:
        order = order[np.argsort(labels[order], kind="stable")]
    index = np.arange(len(labels))
    taken = np.floor((index + 1) * fraction + 0.5) > np.floor(index * fraction + 0.5)
    chosen = np.zeros(len(labels), bool)
    chosen[order[taken]] = True
    return chosen


def selection_part(
    labels: np.ndarray, fraction: float, seed: int, held_out: np.ndarray | None
) -> np.ndarray:
    """Returns the examples to select hyperparameters on: `held_out`, or a `validation_part`.

    Raises:
      UserError: It contains all examples or none.
    """
    part = validation_part(labels, fraction, seed) if held_out is None else held_out
    if not part.any() or part.all():
        raise UserError(
            f"The {len(labels)} training examples cannot be split into training and validation "
            f"parts with validation={fraction}: one of them would be empty. Use more examples, or "
            "skip the selection with a single value, Cs=(C,), of classifier='logistic' or 'svm'."
        )
    return part


def select_C(
    prepare: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    labels: np.ndarray,
    Cs: Sequence[float],
    part: Callable[[], np.ndarray],
    solve: Callable[[float, np.ndarray, Any], Any],
) -> tuple[float, Any]:
    """Returns the C that is best on the validation part, and its solution (None for a single C).

    The criterion is top-1 accuracy, then the lower loss, then the smaller C; for multi-label data
    the loss.

    Args:
      prepare: Maps features [..., D] to the input of the classifier.
      x: Features of all training examples [N, V, D].
      labels: Their labels.
      Cs: Values to select from.
      part: Returns the validation part, bool [N]. It is called only for several values.
      solve: Maps (C, examples to fit to as bool [N], solution for the previous C) to a solution.

    Raises:
      UserError: There are too few examples for a validation part.
    """
    if len(Cs) == 1:
        return float(Cs[0]), None
    held_out = part()
    best, solution = None, None
    x, truth = prepare(x[held_out]), labels[held_out]
    for C in sorted(Cs):
        solution = solve(C, ~held_out, solution)
        logits = solution.logits(x).mean(axis=1)
        if truth.ndim == 1:
            loss = metrics.softmax_cross_entropy(logits, truth)
            score = (metrics.top_k_accuracy(logits, truth, 1), -loss)
        else:
            score = (-metrics.sigmoid_cross_entropy(logits, truth),)
        if best is None or score > best[0]:
            best = (score, float(C), solution)
    return best[1:]


def standardization(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that subtracts the mean of x and divides by its standard deviation.

    Args:
      x: Features [..., D] that determine the mean and standard deviation of each feature.
    """
    vectors = as_float32(x).reshape(-1, x.shape[-1])
    deviation = vectors.std(axis=0, dtype=np.float64)
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    # After subtraction of its mean, a constant feature is rounding noise. Do not amplify it.
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
    scale = np.where(constant, 1.0, deviation).astype(np.float32)
    return lambda x: (as_float32(x) - mean) / scale


def average_views(
    logits: np.ndarray, average: Literal["probabilities", "logits"], activation: logistic.Activation
) -> np.ndarray:
    """Returns logits [N, C] from the logits of views [N, V, C].

    Args:
      logits: [N, V, C].
      average: 'logits' returns the mean logits. 'probabilities' returns the log of the mean
        probabilities (softmax), or their logit (sigmoid).
      activation: Maps logits to probabilities.
    """
    if average == "logits" or logits.shape[1] == 1:
        return logits.mean(axis=1)
    logits = logits.astype(np.float64)
    if activation == "softmax":
        return special.logsumexp(
            special.log_softmax(logits, axis=-1), axis=1, b=1.0 / logits.shape[1]
        )
    yes = special.logsumexp(special.log_expit(logits), axis=1)
    return yes - special.logsumexp(special.log_expit(-logits), axis=1)


def as_float32(x: np.ndarray) -> np.ndarray:
    """Returns features as float32."""
    return np.asarray(x, np.float32)


def check_single_label(labels: np.ndarray, classifier: str) -> None:
    """Raises UserError for multi-label data, which `classifier` does not support."""
    if labels.ndim > 1:
        raise UserError(
            f"classifier={classifier!r} needs a single label per example, but the data are "
            f"multi-label ({labels.shape[1]} classes). Use classifier='logistic'."
        )
