"""The classifiers of the linear probe: `fit(x, labels, num_classes=…, options) -> Fitted`.

Each function's keywords are the options that `linear_probe` takes with its name (`held_out` is its
valid_split). Features x are [N, V, D], V views of every example; labels int [N], or [N, C] for
multi-label data. The classifier 'sweep' is in `sweep`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from scipy import special

from mmjax.errors import UserError
from mmjax.evals import metrics
from mmjax.evals.probes import logistic, vatt_head

DEFAULT_CS = tuple(10.0**e for e in range(-4, 3))
_CHOICE_TOLERANCE = 1e-4  # enough to rank strengths; the chosen one is then solved to the end
_NEVER = -1e9  # the score of a class that no training example has


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained classifier.

    Attributes:
      scores: features [N, V, D] → scores [N, C]; how views are averaged is the classifier's affair.
      facts: what is reported beside the metrics, such as the chosen C.
      probabilistic: softmax (multi-label: sigmoid) of the scores is a probability.
    """

    scores: Callable[[np.ndarray], np.ndarray]
    facts: Mapping[str, float] = dataclasses.field(default_factory=dict)
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
    average: str = "probabilities",
    seed: int = 0,
    max_iterations: int = 1000,
) -> Fitted:
    """Multinomial logistic regression; with several labels, one binary problem for each class.

    Args:
      x, labels, num_classes: see above; each of V views counts 1 / V.
      held_out: bool [N], the examples to choose C on; default a part that is drawn.
      strengths: values of scikit-learn's C to choose from, see `choose_C`.
      validation: fraction of the examples in that part.
      standardize: subtract the training mean and divide by the training deviation of each feature.
      average: 'probabilities' or 'logits' of the views of an example are averaged.
      seed: of the validation part.
      max_iterations: bound on the iterations of L-BFGS.
    """
    views, kind = x.shape[1], "softmax" if labels.ndim == 1 else "sigmoid"
    prepare = standardization(x) if standardize else as_float32
    targets = np.eye(num_classes, dtype=np.float32)[labels] if labels.ndim == 1 else labels
    # On the device once, for all fits; they have one shape and so one compilation.
    rows = jnp.asarray(prepare(x).reshape(-1, x.shape[-1]))
    targets = jnp.asarray(np.repeat(targets, views, axis=0))

    def solve(C, examples, start, tolerance=_CHOICE_TOLERANCE):
        return logistic.fit(
            rows,
            targets,
            C=C,
            kind=kind,
            weight=np.repeat(examples, views) / views,
            start=start,
            tolerance=tolerance,
            max_iterations=max_iterations,
        )

    part = functools.partial(part_to_choose_on, labels, validation, seed, held_out)
    C, start = choose_C(prepare, x, labels, Cs, part, solve)
    solution = solve(C, np.ones(len(labels), bool), start, tolerance=1e-6)
    if solution.iterations >= max_iterations:
        logging.warning(
            "Linear probe: not converged after %d iterations (gradient %.1e of the first).",
            max_iterations,
            solution.gradient,
        )
    return Fitted(
        scores=lambda x: average_views(solution.logits(prepare(x)), average, kind),
        facts={"C": C},
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
    """Linear SVMs, one against the rest with squared hinge loss: scikit-learn's LinearSVC.

    The default C is the one in a comment of VATT's code, which does not scale features. MMV, whose
    protocol VATT's paper follows, publishes `standardize=True, Cs=(1e-3,)`. Both average the
    decision function over the views of a test example.

    Args:
      x, labels, num_classes, held_out, strengths, validation, standardize, seed: as in
        `fit_logistic`, labels int [N].

    Raises:
      UserError: multi-label data, or fewer than two classes.
    """
    # Imported here: a second that other evaluations need not wait for.
    from sklearn.svm import LinearSVC

    check_single(labels, "svm")
    if len(np.unique(labels)) < 2:
        raise UserError("classifier='svm' needs training examples of at least two classes.")
    views = x.shape[1]
    prepare = standardization(x) if standardize else as_float32
    rows, targets = prepare(x).reshape(-1, x.shape[-1]), np.repeat(labels, views)

    def solve(C, examples, _):
        chosen = np.repeat(examples, views)
        weight = None if views == 1 else np.full(chosen.sum(), 1.0 / views)
        machine = LinearSVC(C=C, random_state=seed)
        machine.fit(rows[chosen], targets[chosen], sample_weight=weight)
        kernel = np.zeros((rows.shape[1], num_classes), np.float32)
        bias = np.full(num_classes, _NEVER, np.float32)
        two = len(machine.classes_) == 2  # then it has one column, for the second class
        kernel[:, machine.classes_] = _both(machine.coef_.T) if two else machine.coef_.T
        bias[machine.classes_] = _both(machine.intercept_) if two else machine.intercept_
        return logistic.Linear(kernel, bias)

    part = functools.partial(part_to_choose_on, labels, validation, seed, held_out)
    C, _ = choose_C(prepare, x, labels, Cs, part, solve)
    machine = solve(C, np.ones(len(labels), bool), None)
    return Fitted(
        scores=lambda x: machine.logits(prepare(x)).mean(axis=1),
        facts={"C": C},
        probabilistic=False,
    )


def fit_vatt(
    x: np.ndarray,
    labels: np.ndarray,
    *,
    num_classes: int,
    epochs: int = 1000,
    seed: int = 1,
) -> Fitted:
    """What VATT's published code trains: a bottleneck of 128 units with a dropout of 0.9.

    See `vatt_head`. Features are not scaled; the probabilities of views are averaged.

    Args:
      x, labels, num_classes: see above, labels int [N]; every view is an example of its own.
      epochs: passes over the examples.
      seed: of initialization, order and dropout.

    Raises:
      UserError: multi-label data.
    """
    check_single(labels, "vatt")
    rows, targets = as_float32(x).reshape(-1, x.shape[-1]), np.repeat(labels, x.shape[1])
    head = vatt_head.fit(rows, targets, num_classes=num_classes, epochs=epochs, seed=seed)
    return Fitted(scores=lambda x: average_views(head.logits(x), "probabilities", "softmax"))


def validation_part(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """bool [N]: which examples are for validation, a `fraction` of each class (of all, if
    multi-label).

    Examples in a random order, sorted by class, of which evenly spaced ones are taken: classes too
    small for one of their own share.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.ndim == 1:
        order = order[np.argsort(labels[order], kind="stable")]
    number = np.arange(len(labels))
    taken = np.floor((number + 1) * fraction + 0.5) > np.floor(number * fraction + 0.5)
    chosen = np.zeros(len(labels), bool)
    chosen[order[taken]] = True
    return chosen


def part_to_choose_on(
    labels: np.ndarray, fraction: float, seed: int, given: np.ndarray | None
) -> np.ndarray:
    """bool [N]: the examples to choose options on, `given` or else `validation_part`.

    Raises:
      UserError: all or none of the examples would be in it.
    """
    held_out = validation_part(labels, fraction, seed) if given is None else given
    if not held_out.any() or held_out.all():
        raise UserError(
            f"{len(labels)} examples cannot be split with validation={fraction}; give one value "
            "in Cs=(C,) of classifier='logistic' or 'svm' to skip the choice."
        )
    return held_out


def choose_C(
    prepare: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    labels: np.ndarray,
    Cs: Sequence[float],
    part: Callable[[], np.ndarray],
    solve: Callable[[float, np.ndarray, Any], Any],
) -> tuple[float, Any]:
    """The strength that is best on the validation part, and its solution (None if it is the only).

    Best is the top-1 accuracy, then the lower loss, then the smaller C; multi-label: the loss.

    Args:
      prepare: what makes of features [..., D] what `solve` works on.
      x, labels: all training examples.
      strengths: values of C.
      part: gives bool [N], the validation part, if there is a choice.
      solve: (strength, bool [N] which examples, solution of the strength before) → solution.

    Raises:
      UserError: several strengths, but too few examples for a validation part.
    """
    if len(Cs) == 1:
        return float(Cs[0]), None
    held_out = part()
    best, solution = None, None
    x, right = prepare(x[held_out]), labels[held_out]
    for C in sorted(Cs):
        solution = solve(C, ~held_out, solution)
        logits = solution.logits(x).mean(axis=1)
        if right.ndim == 1:
            loss = metrics.softmax_cross_entropy(logits, right)
            score = (metrics.top_k_accuracy(logits, right, 1), -loss)
        else:
            score = (-metrics.sigmoid_cross_entropy(logits, right),)
        if best is None or score > best[0]:
            best = (score, float(C), solution)
    return best[1:]


def standardization(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The function that takes the mean of features x [..., D] off and divides by their deviation.

    The features of its argument are scaled with the mean and deviation of x.
    """
    rows = as_float32(x).reshape(-1, x.shape[-1])
    deviation = rows.std(axis=0, dtype=np.float64)
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    # A constant feature is rounding noise after its mean is taken off: leave it so small.
    constant = deviation <= 1e-6 * np.maximum(np.abs(mean), 1e-30)
    scale = np.where(constant, 1.0, deviation).astype(np.float32)
    return lambda x: (as_float32(x) - mean) / scale


def average_views(logits: np.ndarray, average: str, kind: logistic.Kind) -> np.ndarray:
    """Logits [N, C] of logits [N, V, C]: their mean over V, or what has the mean probability.

    The latter is the log of the averaged probabilities (softmax), or their logit (sigmoid).
    """
    if average == "logits" or logits.shape[1] == 1:
        return logits.mean(axis=1)
    logits = logits.astype(np.float64)
    if kind == "softmax":
        return special.logsumexp(
            special.log_softmax(logits, axis=-1), axis=1, b=1.0 / logits.shape[1]
        )
    yes = special.logsumexp(special.log_expit(logits), axis=1)
    return yes - special.logsumexp(special.log_expit(-logits), axis=1)


def as_float32(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float32)


def _both(second: np.ndarray) -> np.ndarray:
    """Columns of two classes from the one of the second."""
    return np.concatenate([-second, second], axis=-1)


def check_single(labels: np.ndarray, name: str) -> None:
    if labels.ndim > 1:
        raise UserError(
            f"classifier={name!r} is for single labels; the data have several for each example: "
            "use classifier='logistic'."
        )
