"""L2-regularized logistic regression by L-BFGS, the whole optimization inside one jitted program.

The objective is scikit-learn's, `0.5 |W|^2 + C * sum_i w_i * loss_i` with a free bias, divided by
`C * sum_i w_i` so that tolerances do not depend on the number of examples.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Kind = Literal["softmax", "sigmoid"]

_MEMORY = 20  # pairs that L-BFGS keeps
_FIRST = 12  # iterations from zeros before the Hessian is looked at again
_BLOCK = 512  # rows of `transposed_product`
_LINE_STEPS = 12  # Newton steps of a line search; each costs no matrix product
_LINE_TOLERANCE = 0.1  # of the slope at the start


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear classifier: `kernel` [D, C] and `bias` [C]."""

    kernel: np.ndarray
    bias: np.ndarray

    def logits(self, x: np.ndarray) -> np.ndarray:
        """[..., C] for features x [..., D]."""
        return np.asarray(x, np.float32) @ self.kernel + self.bias


@dataclasses.dataclass(frozen=True)
class Solution(Linear):
    """What `fit` found.

    Attributes:
      iterations: L-BFGS iterations taken.
      gradient: largest entry of the gradient at the solution, relative to that at zero.
    """

    iterations: int
    gradient: float


class _State(NamedTuple):
    theta: jax.Array  # [D + 1, C], the bias last
    logits: jax.Array  # [N, C]
    gradient: jax.Array  # [D + 1, C]
    steps: jax.Array  # [M, D + 1, C]; that of iteration i is at i modulo M
    changes: jax.Array  # [M, D + 1, C], of the gradient
    products: jax.Array  # [M], of a step and its change
    iteration: jax.Array


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a * b)


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    # Accelerators would round the factors to TF32 or bfloat16.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def transposed_product(x: jax.Array, rows: jax.Array) -> jax.Array:
    """xᵀ rows, [D, C], of [N, D] and [N, C].

    On CPUs the library cuts this product badly, whose inner dimension is by far the longest: in
    blocks with the narrow matrix first it takes 40 % of the time.
    """
    size = len(x)
    if jax.default_backend() != "cpu" or size <= _BLOCK:
        return _matmul(x.T, rows)

    def add(number, total):
        first = jnp.minimum(number * _BLOCK, size - _BLOCK)  # the last block may reach back
        new = first + jnp.arange(_BLOCK) >= number * _BLOCK
        part = jax.lax.dynamic_slice_in_dim(rows, first, _BLOCK)
        part = jnp.where(new[:, None], part, 0.0)
        return total + _matmul(part.T, jax.lax.dynamic_slice_in_dim(x, first, _BLOCK))

    zeros = jnp.zeros((rows.shape[1], x.shape[1]), x.dtype)
    return jax.lax.fori_loop(0, -(-size // _BLOCK), add, zeros).T


def _inverse_hessian(x: jax.Array, weight: jax.Array, penalty: jax.Array) -> jax.Array:
    """About the inverse of the Hessian of one class, [D + 1, D + 1].

    Features of a trained encoder are correlated: they vary 10^5 times as much along one direction
    as along another. From the identity, L-BFGS would need thousands of iterations where the penalty
    is weak; from this matrix it needs tens or hundreds.

    Args:
      x: [N, D].
      weight: [N], weight of each example times p (1 - p) of its classes.
      penalty: what the regularization adds to the diagonal.
    """
    x = jnp.pad(x, ((0, 0), (0, 1)), constant_values=1.0)  # with the bias
    hessian = _matmul(x.T, weight[:, None] * x)
    size = len(hessian)
    diagonal = jnp.maximum(jnp.diag(hessian) + penalty, 1e-30)
    scale = jax.lax.rsqrt(diagonal)
    hessian = scale[:, None] * hessian * scale
    # Rounding makes the matrix slightly indefinite where features depend on each other.
    ridge = penalty * scale * scale + size * jnp.finfo(x.dtype).eps
    factor = jnp.linalg.cholesky(hessian + jnp.diag(ridge))
    factor = jnp.where(jnp.isfinite(factor).all(), factor, jnp.eye(size, dtype=x.dtype))
    root = jax.scipy.linalg.solve_triangular(factor, jnp.eye(size, dtype=x.dtype), lower=True)
    root = root * scale
    return _matmul(root.T, root)


def _direction(state: _State, first_guess: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """-H * gradient by the two-loop recursion; unused pairs are zero and drop out.

    Args:
      state: gradient and history.
      first_guess: a product with a positive definite matrix, with which the recursion begins.
    """
    products = state.products
    rho = jnp.where(products > 0, 1.0 / jnp.where(products > 0, products, 1.0), 0.0)
    newest = state.iteration + _MEMORY - 1

    def back(number, carry):
        q, alphas = carry
        at = (newest - number) % _MEMORY
        alpha = rho[at] * _dot(state.steps[at], q)
        return q - alpha * state.changes[at], alphas.at[at].set(alpha)

    def forth(number, r):
        at = (newest + 1 + number) % _MEMORY
        return r + state.steps[at] * (alphas[at] - rho[at] * _dot(state.changes[at], r))

    count = jnp.minimum(state.iteration, _MEMORY)
    q, alphas = jax.lax.fori_loop(0, count, back, (state.gradient, jnp.zeros_like(rho)))
    r = jax.lax.fori_loop(_MEMORY - count, _MEMORY, forth, first_guess(q))
    descends = _dot(r, state.gradient) > 0
    return -jnp.where(descends, r, first_guess(state.gradient))


def _probabilities(logits: jax.Array, kind: Kind) -> jax.Array:
    return jax.nn.softmax(logits) if kind == "softmax" else jax.nn.sigmoid(logits)


def _line_search(slope_and_curvature, slope: jax.Array) -> jax.Array:
    """The step that (nearly) minimizes a convex function along a direction.

    Works on derivatives, which keep their digits in float32 where differences of losses have none
    left.
    """

    def refine(carry):
        low, high, t, _, count = carry
        first, second = slope_and_curvature(t)
        low, high = jnp.where(first < 0, t, low), jnp.where(first < 0, high, t)
        newton = t - first / jnp.maximum(second, 1e-30)
        newton = jnp.minimum(newton, 10.0 * t)
        middle = jnp.where(jnp.isinf(high), 2.0 * t, 0.5 * (low + high))
        good = jnp.abs(first) <= _LINE_TOLERANCE * jnp.abs(slope)
        inside = (newton > low) & (newton < high)
        t = jnp.where(good, t, jnp.where(inside, newton, middle))
        return low, high, t, good, count + 1

    start = (0.0 * slope, jnp.inf + 0.0 * slope, 1.0 + 0.0 * slope, slope >= 0, 0)
    going = lambda carry: ~carry[3] & (carry[4] < _LINE_STEPS)  # noqa: E731
    return jax.lax.while_loop(going, refine, start)[2]


@functools.partial(jax.jit, static_argnames="kind")
def _solve(x, targets, weight, penalty, theta, tolerance, max_iterations, *, kind: Kind):
    weight = (weight / weight.sum())[:, None]  # [N, 1]

    decay = jnp.full((theta.shape[0], 1), penalty).at[-1].set(0.0)  # the bias is free

    def apply(theta):
        return _matmul(x, theta[:-1]) + theta[-1]

    def gradient_at(theta, logits):
        residual = weight * (_probabilities(logits, kind) - targets)
        data = jnp.concatenate([transposed_product(x, residual), residual.sum(0, keepdims=True)])
        return data + decay * theta

    def iterate(state):
        direction = _direction(state, first_guess)
        change = apply(direction)  # logits are linear in theta: one product for the whole search
        slope_of_decay = _dot(decay * state.theta, direction)
        curvature_of_decay = _dot(decay * direction, direction)

        def slope_and_curvature(t):
            p = _probabilities(state.logits + t * change, kind)
            first = _dot(weight * (p - targets), change)
            second = p * change * change
            if kind == "softmax":
                second = second.sum(1) - (p * change).sum(1) ** 2
            else:
                second = (second * (1 - p)).sum(1)
            second = _dot(weight[:, 0], second)
            return (
                first + slope_of_decay + t * curvature_of_decay,
                second + curvature_of_decay,
            )

        t = _line_search(slope_and_curvature, _dot(state.gradient, direction))
        theta = state.theta + t * direction
        logits = state.logits + t * change
        gradient = gradient_at(theta, logits)
        at, step, moved = state.iteration % _MEMORY, t * direction, gradient - state.gradient
        return _State(
            theta=theta,
            logits=logits,
            gradient=gradient,
            steps=state.steps.at[at].set(step),
            changes=state.changes.at[at].set(moved),
            products=state.products.at[at].set(_dot(step, moved)),
            iteration=state.iteration + 1,
        )

    def going(state):
        large = jnp.max(jnp.abs(state.gradient)) > goal
        return large & (state.iteration < max_iterations)

    zero = jnp.zeros_like(theta)
    reference = jnp.max(jnp.abs(gradient_at(zero, apply(zero))))
    goal = tolerance * reference
    logits = apply(theta)
    p = _probabilities(logits, kind)
    curvature = weight[:, 0] * jnp.mean(p * (1 - p), axis=1)
    first_guess = functools.partial(_matmul, _inverse_hessian(x, curvature, penalty))
    history = jnp.zeros((_MEMORY, *theta.shape), theta.dtype)
    none = jnp.zeros(_MEMORY, theta.dtype)
    state = _State(theta, logits, gradient_at(theta, logits), history, history, none, 0)
    state = jax.lax.while_loop(going, iterate, state)
    gradient = jnp.max(jnp.abs(state.gradient)) / jnp.maximum(reference, 1e-30)
    return state.theta, state.iteration, gradient


def fit(
    x: np.ndarray | jax.Array,
    targets: np.ndarray | jax.Array,
    *,
    C: float,
    kind: Kind = "softmax",
    weight: np.ndarray | None = None,
    start: Solution | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> Solution:
    """Minimize `0.5 |W|^2 + C * sum_i w_i * loss_i`.

    Args:
      x: [N, D] features.
      targets: [N, C], one-hot or soft for softmax, 0 or 1 for sigmoid (a problem for each class).
      strength: C, scikit-learn's inverse regularization.
      kind: 'softmax' (multinomial) or 'sigmoid' (multi-label).
      weight: [N] weights of the examples, 0 to leave one out; default 1.
      start: where to start from, e.g. the solution for another strength; default zeros.
      tolerance: on the largest gradient entry, relative to that at zero.
      max_iterations: bound on L-BFGS iterations.
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
        kind=kind,
    )
    # At zero every class has the same probability; a few iterations later the Hessian is smaller,
    # and from there half as many iterations are left.
    first = min(_FIRST, max_iterations) if start is None else max_iterations
    theta, iterations, gradient = solve(theta=jnp.asarray(theta), max_iterations=first)
    if first < max_iterations and gradient > tolerance:
        rest = max_iterations - first
        theta, more, gradient = solve(theta=theta, max_iterations=rest)
        iterations += more
    if not np.isfinite(gradient):
        raise FloatingPointError(
            f"Logistic regression on {x.shape} features has a gradient of {gradient}: features or "
            "targets are not finite, or too large for float32."
        )
    theta = np.asarray(theta)
    return Solution(theta[:-1], theta[-1], int(iterations), float(gradient))
