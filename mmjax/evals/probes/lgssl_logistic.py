"""Logistic regression with the objective of the linear probe in LGSSL's published code.

The objective is `mean cross-entropy + (1 / C) * 0.5 * |W|` with the Frobenius norm of the kernel
*not* squared and an unregularized bias. Above some penalty its optimum is W = 0, where the norm has
no gradient (taken as 0), so the result depends on the path of the solver. It is that of the
published code: from zeros, by torch's L-BFGS with its strong-Wolfe line search and stopping rules.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.evals.probes import lbfgs, line_search
from mmjax.evals.probes.linear import Linear, matmul, transposed_product

_MEMORY = 100  # pairs that L-BFGS keeps
_MIN_GRADIENT = 1e-7  # stop if no entry of the gradient is larger
_MIN_CHANGE = 1e-9  # stop if no entry moves by more, or if the objective changes by less
_MIN_CURVATURE = 1e-10  # pairs with less are discarded


@dataclasses.dataclass(frozen=True)
class Solution(Linear):
    """The classifier that `fit` returns.

    Attributes:
      objective: Value of the objective.
      iterations: Number of L-BFGS iterations.
      evaluations: Number of evaluations of the objective.
    """

    objective: float
    iterations: int
    evaluations: int


@functools.partial(jax.jit, static_argnames=("num_classes", "max_iterations"))
def _solve(x, labels, weight, penalty, *, num_classes: int, max_iterations: int) -> lbfgs.State:
    weight = weight / weight.sum()

    def logits_of(theta):
        return matmul(x, theta[:-1]) + theta[-1]

    def of_label(values):  # [N, C] → [N]
        return jnp.take_along_axis(values, labels[:, None], axis=1)[:, 0]

    def value_at(theta, logits):
        losses = jax.nn.logsumexp(logits, axis=1) - of_label(logits)
        return lbfgs.dot(weight, losses) + penalty * jnp.sqrt(jnp.sum(theta[:-1] ** 2))

    def gradient_at(theta, logits):
        residual = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[1])
        residual = weight[:, None] * residual
        norm = jnp.sqrt(jnp.sum(theta[:-1] ** 2))
        pull = jnp.where(norm > 0, penalty / jnp.where(norm > 0, norm, 1.0), 0.0)
        kernel = transposed_product(x, residual) + pull * theta[:-1]
        return jnp.concatenate([kernel, residual.sum(0, keepdims=True)])

    def search(state, change):
        change_of_label = of_label(change)

        def line(step):
            logits, theta = state.logits + step * change, state.theta + step * state.direction
            rise = jnp.sum(jax.nn.softmax(logits) * change, axis=1) - change_of_label
            norm = jnp.sqrt(jnp.sum(theta[:-1] ** 2))
            inner = lbfgs.dot(theta[:-1], state.direction[:-1])
            pull = jnp.where(norm > 0, penalty * inner / jnp.where(norm > 0, norm, 1.0), 0.0)
            return value_at(theta, logits), lbfgs.dot(weight, rise) + pull

        slope = lbfgs.dot(state.gradient, state.direction)
        first = jnp.minimum(1.0, 1.0 / jnp.sum(jnp.abs(state.gradient)))
        return line_search.strong_wolfe(
            line,
            line_search.Point(jnp.float32(0), state.value, slope),
            jnp.where(state.iteration == 0, first, 1.0),
            length=jnp.max(jnp.abs(state.direction)),
            tolerance=_MIN_CHANGE,
        )

    def unfinished(state):
        return (
            (state.evaluations < max(2, max_iterations * 5 // 4))
            & (state.iteration < max_iterations)
            & (jnp.max(jnp.abs(state.gradient)) > _MIN_GRADIENT)
            & (state.largest_step > _MIN_CHANGE)
            & (state.decrease >= _MIN_CHANGE)
            & (lbfgs.dot(state.gradient, state.direction) <= -_MIN_CHANGE)
        )

    objective = lbfgs.Objective(
        logits=logits_of, value=value_at, gradient=gradient_at, search=search, unfinished=unfinished
    )
    theta = jnp.zeros((x.shape[1] + 1, num_classes))
    return lbfgs.minimize(objective, theta, memory=_MEMORY, min_curvature=_MIN_CURVATURE)


def fit(
    x: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    *,
    num_classes: int,
    C: float,
    weight: np.ndarray | None = None,
    max_iterations: int = 1000,
) -> Solution:
    """Minimizes `mean cross-entropy + 0.5 / C * |W|`, from zeros.

    Args:
      x: Features [N, D].
      labels: int [N].
      num_classes: Number of classes of the classifier.
      C: Inverse regularization strength.
      weight: Weights of the examples in the mean [N]; 0 excludes an example. None weights all
        equally.
      max_iterations: Maximum number of L-BFGS iterations. The objective is evaluated at most 5 / 4
        times as often.

    Raises:
      FloatingPointError: The features are not finite, or too large for float32.
    """
    x = jnp.asarray(x, jnp.float32)
    weight = jnp.ones(len(x)) if weight is None else jnp.asarray(weight, jnp.float32)
    state = _solve(
        x,
        jnp.asarray(labels, jnp.int32),
        weight,
        jnp.float32(0.5 / C),
        num_classes=num_classes,
        max_iterations=max_iterations,
    )
    theta = np.asarray(state.theta)
    if not np.isfinite(theta).all():
        raise FloatingPointError(
            f"Logistic regression on features of shape {x.shape} with C={C:g} gives parameters "
            "that are not finite. Check that the features are finite, and scale features that are "
            "too large for float32."
        )
    return Solution(
        theta[:-1], theta[-1], float(state.value), int(state.iteration), int(state.evaluations)
    )
