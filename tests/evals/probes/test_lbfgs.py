"""The L-BFGS solver on least squares, whose solution is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.evals.probes import lbfgs


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(60, 7)) * np.geomspace(1, 0.1, 7), np.ones((60, 1))], 1)
    return x.astype(np.float32), rng.normal(size=(60, 3)).astype(np.float32)


def least_squares(x, y, *, inverse_hessian=None, max_iterations=100):
    def gradient(theta, logits):
        return x.T @ (logits - y)

    def search(state, change):  # exact for a quadratic function
        return -lbfgs.dot(state.gradient, state.direction) / lbfgs.dot(change, change), 1

    return lbfgs.Objective(
        logits=lambda theta: x @ theta,
        value=lambda theta, logits: 0.5 * jnp.sum((logits - y) ** 2),
        gradient=gradient,
        search=search,
        unfinished=lambda state: (
            (state.iteration < max_iterations) & (jnp.max(jnp.abs(state.gradient)) > 1e-4)
        ),
        inverse_hessian=inverse_hessian,
    )


def minimize(objective, memory=10):
    solve = jax.jit(
        lambda theta: lbfgs.minimize(objective, theta, memory=memory, min_curvature=0.0)
    )
    return solve(jnp.zeros((8, 3)))


@pytest.mark.parametrize("memory", [3, 40])
def test_the_minimum_of_least_squares_is_found(problem, memory):
    x, y = problem
    state = minimize(least_squares(x, y), memory)
    expected = np.linalg.lstsq(x.astype(np.float64), y, rcond=None)[0]
    np.testing.assert_allclose(state.theta, expected, atol=1e-3)
    assert state.value == pytest.approx(0.5 * np.sum((x @ expected - y) ** 2), rel=1e-5)
    assert 2 < state.iteration < 100 and state.evaluations == state.iteration + 1
    np.testing.assert_allclose(state.logits, x @ state.theta, atol=1e-4)


def test_the_exact_inverse_hessian_needs_one_iteration(problem):
    x, y = problem
    inverse = jnp.asarray(np.linalg.inv(x.T @ x))
    state = minimize(least_squares(x, y, inverse_hessian=lambda q: inverse @ q))
    assert state.iteration == 1


def test_iterations_are_limited(problem):
    state = minimize(least_squares(*problem, max_iterations=2))
    assert state.iteration == 2 and state.pairs == 2
