"""The line searches of L-BFGS."""

import jax
import jax.numpy as jnp
import pytest

from mmjax.evals.probes import line_search


@pytest.mark.parametrize("first", [1e-3, 1.0, 40.0])
def test_the_line_search_meets_the_wolfe_conditions(first):
    def value(t):  # decreases, with a bump, to a minimum near 8
        return (t - 8) ** 2 / 20 + jnp.sin(2 * t) / 2

    value_and_slope = jax.value_and_grad(value)
    line = lambda t: value_and_slope(t + 1.2)  # noqa: E731
    start = line_search.Point(jnp.float32(0), *line(jnp.float32(0)))
    assert start.slope < 0
    step, calls = line_search.strong_wolfe(
        line, start, jnp.float32(first), length=jnp.float32(1), tolerance=1e-9
    )
    end, slope = line(step)
    assert end <= start.value + line_search.DECREASE * step * start.slope
    assert abs(slope) <= -line_search.CURVATURE * start.slope
    assert 1 <= calls <= line_search.MAX_STEPS + 1


@pytest.mark.parametrize("minimum", [0.03, 1.0, 40.0])
def test_the_newton_search_reduces_the_slope_to_a_tenth(minimum):
    def value(t):  # convex, not quadratic
        return jnp.logaddexp(0.0, t - minimum) - 0.5 * t

    slope, curvature = jax.grad(value), jax.grad(jax.grad(value))
    step = line_search.newton(lambda t: (slope(t), curvature(t)), slope(0.0))
    assert step == pytest.approx(minimum, rel=0.3)
    assert abs(slope(step)) <= 0.1 * abs(slope(0.0))
