"""L2-regularized logistic regression with scikit-learn's objective.

The objective is `0.5 |W|^2 + C * sum_i w_i * loss_i` with an unregularized bias, divided by
`C * sum_i w_i` so that tolerances do not depend on the number of examples.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.evals.probes import lbfgs, line_search
from mmjax.evals.probes.linear import Linear, matmul, transposed_product

Activation = Literal["softmax", "sigmoid"]

_MEMORY = 20  # pairs that L-BFGS keeps
_FIRST = 12  # iterations from zeros before the Hessian is computed again


@dataclasses.dataclass(frozen=True)
class Solution(Linear):
    """The classifier that `fit` returns.

    Attributes:
      iterations: Number of L-BFGS iterations.
      gradient: Largest entry of the gradient at the solution, relative to that at zero.
    """

    iterations: int
    gradient: float


def _inverse_hessian(x: jax.Array, weight: jax.Array, penalty: jax.Array) -> jax.Array:
    """Returns approximately the inverse of the Hessian of one class, [D + 1, D + 1].

    Features of a trained encoder are correlated: they vary 10^5 times as much along one direction
    as along another. With a weak penalty, L-BFGS would need thousands of iterations from the
    identity; from this matrix it needs tens or hundreds.

    Args:
      x: Features [N, D].
      weight: Weight of each example times p (1 - p) averaged over the classes, [N].
      penalty: Diagonal term of the regularization.
    """
    x = jnp.pad(x, ((0, 0), (0, 1)), constant_values=1.0)  # for the bias
    hessian = matmul(x.T, weight[:, None] * x)
    size = len(hessian)
    diagonal = jnp.maximum(jnp.diag(hessian) + penalty, 1e-30)
    scale = jax.lax.rsqrt(diagonal)
    hessian = scale[:, None] * hessian * scale
    # Rounding makes the matrix slightly indefinite if features are linearly dependent.
    ridge = penalty * scale * scale + size * jnp.finfo(x.dtype).eps
    factor = jnp.linalg.cholesky(hessian + jnp.diag(ridge))
    factor = jnp.where(jnp.isfinite(factor).all(), factor, jnp.eye(size, dtype=x.dtype))
    root = jax.scipy.linalg.solve_triangular(factor, jnp.eye(size, dtype=x.dtype), lower=True)
    root = root * scale
    return matmul(root.T, root)


def _probabilities(logits: jax.Array, activation: Activation) -> jax.Array:
    return jax.nn.softmax(logits) if activation == "softmax" else jax.nn.sigmoid(logits)


@functools.partial(jax.jit, static_argnames="activation")
def _solve(
    x, targets, weight, penalty, theta, tolerance, max_iterations, *, activation: Activation
):
    """Returns `(theta, iterations, relative gradient)`."""
    weight = (weight / weight.sum())[:, None]  # [N, 1]
    decay = jnp.full((theta.shape[0], 1), penalty).at[-1].set(0.0)  # the bias is not regularized

    def logits_of(theta):
        return matmul(x, theta[:-1]) + theta[-1]

    def gradient_at(theta, logits):
        residual = weight * (_probabilities(logits, activation) - targets)
        data = jnp.concatenate([transposed_product(x, residual), residual.sum(0, keepdims=True)])
        return data + decay * theta

    def search(state, change):
        slope_of_decay = lbfgs.dot(decay * state.theta, state.direction)
        curvature_of_decay = lbfgs.dot(decay * state.direction, state.direction)

        def slope_and_curvature(t):
            p = _probabilities(state.logits + t * change, activation)
            slope = lbfgs.dot(weight * (p - targets), change)
            curvature = p * change * change
            if activation == "softmax":
                curvature = curvature.sum(1) - (p * change).sum(1) ** 2
            else:
                curvature = (curvature * (1 - p)).sum(1)
            curvature = lbfgs.dot(weight[:, 0], curvature)
            return (
                slope + slope_of_decay + t * curvature_of_decay,
                curvature + curvature_of_decay,
            )

        slope = lbfgs.dot(state.gradient, state.direction)
        return line_search.newton(slope_and_curvature, slope), jnp.int32(1)

    def unfinished(state):
        large = jnp.max(jnp.abs(state.gradient)) > goal
        return large & (state.iteration < max_iterations)

    zero = jnp.zeros_like(theta)
    reference = jnp.max(jnp.abs(gradient_at(zero, logits_of(zero))))
    goal = tolerance * reference
    p = _probabilities(logits_of(theta), activation)
    curvature = weight[:, 0] * jnp.mean(p * (1 - p), axis=1)
    objective = lbfgs.Objective(
        logits=logits_of,
        value=lambda theta, logits: jnp.float32(0),  # neither the search nor the goal uses it
        gradient=gradient_at,
        search=search,
        unfinished=unfinished,
        inverse_hessian=functools.partial(matmul, _inverse_hessian(x, curvature, penalty)),
    )
    state = lbfgs.minimize(objective, theta, memory=_MEMORY, min_curvature=0.0)
    gradient = jnp.max(jnp.abs(state.gradient)) / jnp.maximum(reference, 1e-30)
    return state.theta, state.iteration, gradient


def fit(
    x: np.ndarray | jax.Array,
    targets: np.ndarray | jax.Array,
    *,
    C: float,
    activation: Activation = "softmax",
    weight: np.ndarray | None = None,
    start: Solution | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> Solution:
    """Minimizes `0.5 |W|^2 + C * sum_i w_i * loss_i`.

    Args:
      x: Features [N, D].
      targets: [N, C]. One-hot or soft labels for softmax; 0 or 1 for sigmoid, which fits one binary
        problem per class.
      C: Inverse regularization strength, as in scikit-learn.
      activation: Maps logits to probabilities: 'softmax' (multinomial) or 'sigmoid' (multi-label).
      weight: Weights of the examples [N]; 0 excludes an example. None weights all by 1.
      start: Initial classifier, for example the solution for another C. None starts from zeros.
      tolerance: Bound on the largest entry of the gradient, relative to that at zero.
      max_iterations: Maximum number of L-BFGS iterations.

    Raises:
      FloatingPointError: Features or targets are not finite, or too large for float32.
    """
    x, targets = jnp.asarray(x, jnp.float32), jnp.asarray(targets, jnp.float32)
    weight = np.ones(len(x)) if weight is None else np.asarray(weight, np.float64)
    if start is None:
        theta = np.zeros((x.shape[1] + 1, targets.shape[1]), np.float32)
    else:
        theta = np.concatenate([start.kernel, start.bias[None]])
    solve = functools.partial(
        _solve,
        x,
        targets,
        jnp.asarray(weight, jnp.float32),
        jnp.float32(1.0 / (C * weight.sum())),
        tolerance=jnp.float32(tolerance),
        activation=activation,
    )
    # At zero all classes have the same probability. A few iterations later the Hessian is smaller,
    # and from there half as many iterations remain.
    first = min(_FIRST, max_iterations) if start is None else max_iterations
    theta, iterations, gradient = solve(theta=jnp.asarray(theta), max_iterations=first)
    if first < max_iterations and gradient > tolerance:
        rest = max_iterations - first
        theta, more, gradient = solve(theta=theta, max_iterations=rest)
        iterations += more
    if not np.isfinite(gradient):
        raise FloatingPointError(
            f"Logistic regression on features of shape {x.shape} with C={C:g} has a gradient of "
            f"{gradient}. Check that features and targets are finite, and scale features that are "
            "too large for float32."
        )
    theta = np.asarray(theta)
    return Solution(theta[:-1], theta[-1], int(iterations), float(gradient))
