"""L-BFGS for linear classifiers, the whole optimization inside one jitted program.

The parameters of a linear classifier determine its logits linearly, so a line search needs no
matrix product: the solver stores the logits as well as the parameters and updates both along the
search direction. An `Objective` supplies the gradient, the line search and the stopping rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class State(NamedTuple):
    """State of the solver.

    Attributes:
      theta: Parameters [D + 1, C]; `theta[-1]` is the bias.
      logits: [N, C] at `theta`.
      value: Objective at `theta`.
      gradient: [D + 1, C] at `theta`.
      direction: Search direction of the next iteration, [D + 1, C].
      steps: The latest M steps, [M, D + 1, C]; pair n is at index n % M.
      changes: The changes of the gradient in these steps, [M, D + 1, C].
      curvatures: Inner products of steps and changes, [M].
      pairs: Number of pairs stored so far.
      scale: Scale of the initial inverse Hessian, if the objective does not supply one.
      iteration: Number of iterations.
      evaluations: Number of evaluations of the objective.
      largest_step: Largest entry of the last step.
      decrease: Absolute change of the objective in the last step.
    """

    theta: jax.Array
    logits: jax.Array
    value: jax.Array
    gradient: jax.Array
    direction: jax.Array
    steps: jax.Array
    changes: jax.Array
    curvatures: jax.Array
    pairs: jax.Array
    scale: jax.Array
    iteration: jax.Array
    evaluations: jax.Array
    largest_step: jax.Array
    decrease: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A function of a linear classifier, and how to minimize it.

    Attributes:
      logits: theta [D + 1, C] → logits [N, C]; linear.
      value: (theta, logits) → value. It may return 0 if the search and the stopping rule do not use
        values.
      gradient: (theta, logits) → gradient [D + 1, C].
      search: (state, logits of the direction) → (step size, number of evaluations).
      unfinished: state → whether to do another iteration.
      inverse_hessian: Product of a gradient with an approximate inverse Hessian, where the
        two-loop recursion starts. None starts with the identity, scaled by the latest pair.
    """

    logits: Callable[[jax.Array], jax.Array]
    value: Callable[[jax.Array, jax.Array], jax.Array]
    gradient: Callable[[jax.Array, jax.Array], jax.Array]
    search: Callable[[State, jax.Array], tuple[jax.Array, jax.Array]]
    unfinished: Callable[[State], jax.Array]
    inverse_hessian: Callable[[jax.Array], jax.Array] | None = None


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the inner product of two arrays of one shape."""
    return jnp.sum(a * b)


def minimize(objective: Objective, theta: jax.Array, *, memory: int, min_curvature: float) -> State:
    """Returns the final state of L-BFGS; called inside `jax.jit`.

    Args:
      objective: The function, its line search and its stopping rule.
      theta: Initial parameters [D + 1, C].
      memory: Number of pairs M to keep.
      min_curvature: Pairs with a curvature of at most this are discarded.
    """

    def iterate(state: State) -> State:
        change = objective.logits(state.direction)
        size, evaluations = objective.search(state, change)
        step = size * state.direction
        theta, logits = state.theta + step, state.logits + size * change
        value, gradient = objective.value(theta, logits), objective.gradient(theta, logits)
        difference = gradient - state.gradient
        curvature = dot(step, difference)
        keep = curvature > min_curvature
        scale = curvature / jnp.maximum(dot(difference, difference), 1e-30)
        index = state.pairs % memory

        def store(history: jax.Array, new: jax.Array) -> jax.Array:
            return history.at[index].set(jnp.where(keep, new, history[index]))

        state = state._replace(
            theta=theta,
            logits=logits,
            value=value,
            gradient=gradient,
            steps=store(state.steps, step),
            changes=store(state.changes, difference),
            curvatures=store(state.curvatures, curvature),
            pairs=state.pairs + keep,
            scale=jnp.where(keep, scale, state.scale),
            iteration=state.iteration + 1,
            evaluations=state.evaluations + evaluations,
            largest_step=jnp.max(jnp.abs(step)),
            decrease=jnp.abs(value - state.value),
        )
        return state._replace(direction=_direction(state, objective.inverse_hessian))

    return jax.lax.while_loop(objective.unfinished, iterate, _start(objective, theta, memory))


def _start(objective: Objective, theta: jax.Array, memory: int) -> State:
    """Returns the initial state with an empty history."""
    logits = objective.logits(theta)
    gradient = objective.gradient(theta, logits)
    history = jnp.zeros((memory, *theta.shape), theta.dtype)
    state = State(
        theta=theta,
        logits=logits,
        value=objective.value(theta, logits),
        gradient=gradient,
        direction=gradient,
        steps=history,
        changes=history,
        curvatures=jnp.zeros(memory, theta.dtype),
        pairs=jnp.int32(0),
        scale=jnp.float32(1),
        iteration=jnp.int32(0),
        evaluations=jnp.int32(1),
        largest_step=jnp.float32(jnp.inf),
        decrease=jnp.float32(jnp.inf),
    )
    return state._replace(direction=_direction(state, objective.inverse_hessian))


def _direction(state: State, inverse_hessian: Callable[[jax.Array], jax.Array] | None) -> jax.Array:
    """Returns minus the inverse Hessian times the gradient, by the two-loop recursion."""
    memory = len(state.curvatures)
    count = jnp.minimum(state.pairs, memory)
    initial = inverse_hessian or (lambda q: q * state.scale)

    def pair(age):
        index = (state.pairs - 1 - age) % memory
        return state.steps[index], state.changes[index], 1.0 / state.curvatures[index]

    def backward(age, carry):
        q, alphas = carry
        step, change, rho = pair(age)
        alpha = rho * dot(step, q)
        return q - alpha * change, alphas.at[age].set(alpha)

    def forward(n, r):
        age = count - 1 - n
        step, change, rho = pair(age)
        return r + step * (alphas[age] - rho * dot(change, r))

    alphas = jnp.zeros(memory, state.gradient.dtype)
    q, alphas = jax.lax.fori_loop(0, count, backward, (-state.gradient, alphas))
    direction = jax.lax.fori_loop(0, count, forward, initial(q))
    if inverse_hessian is None:
        return direction
    # Rounding can turn the direction uphill. Then the history is ignored.
    downhill = dot(direction, state.gradient) < 0
    return jnp.where(downhill, direction, -inverse_hessian(state.gradient))
