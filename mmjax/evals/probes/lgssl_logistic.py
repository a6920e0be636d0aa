"""Logistic regression with the linear probe's objective of LGSSL's published code:

    mean cross-entropy + (1 / C) * 0.5 * |W|

with the Frobenius norm of the kernel *not* squared and a free bias. Above some penalty its optimum
is W = 0, and there it has no gradient (taken as 0), so what is found depends on the way: zeros at
the start, then torch's L-BFGS with its line search and its reasons to stop, as that code calls it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.evals.probes import line_search
from mmjax.evals.probes.logistic import Linear, transposed_product

_HISTORY = 100  # pairs that L-BFGS keeps
_GRADIENT = 1e-7  # stops when no entry of the gradient is larger,
_CHANGE = 1e-9  # when no entry moves by more, or the objective changes by less
_CURVED = 1e-10  # a pair with less curvature is not kept


@dataclasses.dataclass(frozen=True)
class Solution(Linear):
    """What `fit` found.

    Attributes:
      objective: its value there.
      iterations: of L-BFGS.
      evaluations: of the objective.
    """

    objective: float
    iterations: int
    evaluations: int


class _State(NamedTuple):
    theta: jax.Array  # [D + 1, C], the bias last
    logits: jax.Array  # [N, C]
    value: jax.Array
    gradient: jax.Array  # [D + 1, C]
    direction: jax.Array  # [D + 1, C]
    steps: jax.Array  # [M, D + 1, C], pair n at place n % M
    changes: jax.Array  # [M, D + 1, C], of the gradient
    pairs: jax.Array  # how many were put there
    scale: jax.Array  # of the first guess of the inverse Hessian
    iteration: jax.Array
    evaluations: jax.Array
    going: jax.Array


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a * b)


def _direction(state: _State) -> jax.Array:
    """Minus the inverse Hessian times the gradient, by the two-loop recursion."""
    kept = jnp.minimum(state.pairs, _HISTORY)

    def pair(age):
        place = (state.pairs - 1 - age) % _HISTORY
        step, change = state.steps[place], state.changes[place]
        return step, change, 1.0 / _dot(step, change)

    def back(age, carry):
        q, alphas = carry
        step, change, rho = pair(age)
        alpha = rho * _dot(step, q)
        return q - alpha * change, alphas.at[age].set(alpha)

    def forth(number, carry):
        age = kept - 1 - number
        step, change, rho = pair(age)
        return carry + step * (alphas[age] - rho * _dot(change, carry))

    alphas = jnp.zeros(_HISTORY)
    q, alphas = jax.lax.fori_loop(0, kept, back, (-state.gradient, alphas))
    return jax.lax.fori_loop(0, kept, forth, q * state.scale)


def _push(history: jax.Array, pairs: jax.Array, new: jax.Array, keep: jax.Array) -> jax.Array:
    place = pairs % _HISTORY
    return history.at[place].set(jnp.where(keep, new, history[place]))


@functools.partial(jax.jit, static_argnames=("num_classes", "max_iterations"))
def _solve(x, labels, weight, penalty, *, num_classes: int, max_iterations: int):
    # Accelerators would round the factors of products to TF32 or bfloat16.
    matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    weight = weight / weight.sum()

    def apply(theta):
        return matmul(x, theta[:-1]) + theta[-1]

    def of_label(values):  # [N, C] → [N]
        return jnp.take_along_axis(values, labels[:, None], axis=1)[:, 0]

    def value_at(theta, logits):
        losses = jax.nn.logsumexp(logits, axis=1) - of_label(logits)
        return _dot(weight, losses) + penalty * jnp.sqrt(jnp.sum(theta[:-1] ** 2))

    def gradient_at(theta, logits):
        residual = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[1])
        residual = weight[:, None] * residual
        norm = jnp.sqrt(jnp.sum(theta[:-1] ** 2))
        pull = jnp.where(norm > 0, penalty / jnp.where(norm > 0, norm, 1.0), 0.0)
        kernel = transposed_product(x, residual) + pull * theta[:-1]
        return jnp.concatenate([kernel, residual.sum(0, keepdims=True)])

    def iterate(state: _State) -> _State:
        direction, theta = state.direction, state.theta
        change = apply(direction)  # logits are linear in theta: one product for the whole search
        of_change = of_label(change)
        slope = _dot(state.gradient, direction)

        def line(step):
            logits, moved = state.logits + step * change, theta + step * direction
            rise = jnp.sum(jax.nn.softmax(logits) * change, axis=1) - of_change
            norm = jnp.sqrt(jnp.sum(moved[:-1] ** 2))
            inner = _dot(moved[:-1], direction[:-1])
            pull = jnp.where(norm > 0, penalty * inner / jnp.where(norm > 0, norm, 1.0), 0.0)
            return value_at(moved, logits), _dot(weight, rise) + pull

        first = jnp.minimum(1.0, 1.0 / jnp.sum(jnp.abs(state.gradient)))
        step, calls = line_search.search(
            line,
            line_search.Point(jnp.float32(0), state.value, slope),
            jnp.where(state.iteration == 0, first, 1.0),
            length=jnp.max(jnp.abs(direction)),
            tolerance=_CHANGE,
        )
        theta, logits = theta + step * direction, state.logits + step * change
        value, gradient = value_at(theta, logits), gradient_at(theta, logits)
        difference = gradient - state.gradient
        curvature = _dot(step * direction, difference)
        keep = curvature > _CURVED
        scale = curvature / jnp.maximum(_dot(difference, difference), 1e-30)
        evaluations = state.evaluations + calls
        state = state._replace(
            theta=theta,
            logits=logits,
            gradient=gradient,
            value=value,
            steps=_push(state.steps, state.pairs, step * direction, keep),
            changes=_push(state.changes, state.pairs, difference, keep),
            pairs=state.pairs + keep,
            scale=jnp.where(keep, scale, state.scale),
            iteration=state.iteration + 1,
            evaluations=evaluations,
            going=(evaluations < max_iterations * 5 // 4)
            & (state.iteration + 1 < max_iterations)
            & (jnp.max(jnp.abs(gradient)) > _GRADIENT)
            & (jnp.max(jnp.abs(step * direction)) > _CHANGE)
            & (jnp.abs(value - state.value) >= _CHANGE),
        )
        return state._replace(direction=_direction(state))

    def going(state: _State) -> jax.Array:
        return state.going & (_dot(state.gradient, state.direction) <= -_CHANGE)

    theta = jnp.zeros((x.shape[1] + 1, num_classes))
    logits = apply(theta)
    gradient = gradient_at(theta, logits)
    history = jnp.zeros((_HISTORY, *theta.shape))
    state = _State(
        theta=theta,
        logits=logits,
        value=value_at(theta, logits),
        gradient=gradient,
        direction=-gradient,
        steps=history,
        changes=history,
        pairs=jnp.int32(0),
        scale=jnp.float32(1),
        iteration=jnp.int32(0),
        evaluations=jnp.int32(1),
        going=jnp.max(jnp.abs(gradient)) > _GRADIENT,
    )
    state = jax.lax.while_loop(going, iterate, state)
    return state.theta, state.value, state.iteration, state.evaluations


def fit(
    x: np.ndarray | jax.Array,
    labels: np.ndarray | jax.Array,
    *,
    num_classes: int,
    C: float,
    weight: np.ndarray | None = None,
    max_iterations: int = 1000,
) -> Solution:
    """Minimize `mean cross-entropy + 0.5 / C * |W|`, from zeros.

    Args:
      x: [N, D] features.
      labels: int [N].
      num_classes: of the classifier.
      strength: C.
      weight: [N] of the examples in the mean, 0 to leave one out; default equal ones.
      max_iterations: bound on the iterations of L-BFGS; the objective is evaluated at most 5 / 4
        as often.
    """
    x = jnp.asarray(x, jnp.float32)
    weight = jnp.ones(len(x)) if weight is None else jnp.asarray(weight, jnp.float32)
    theta, objective, iterations, evaluations = _solve(
        x,
        jnp.asarray(labels, jnp.int32),
        weight,
        jnp.float32(0.5 / C),
        num_classes=num_classes,
        max_iterations=max_iterations,
    )
    theta = np.asarray(theta)
    if not np.isfinite(theta).all():
        raise FloatingPointError(
            f"Logistic regression on {x.shape} features, C={C:g}, gives parameters that are "
            "not finite: the features are not, or are too large for float32."
        )
    return Solution(theta[:-1], theta[-1], float(objective), int(iterations), int(evaluations))
