"""Line searches of L-BFGS inside a jitted program.

`newton` is for smooth convex functions and uses only derivatives. `strong_wolfe` is the bracketing
and zooming search of Nocedal & Wright, Numerical Optimization, section 3.5, with the constants and
safeguards of torch's L-BFGS; published results depend on it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

DECREASE = 1e-4  # a step must achieve this part of the decrease that the slope at 0 predicts,
CURVATURE = 0.9  # and leave at most this part of the slope
MAX_STEPS = 25
_NEWTON_STEPS = 12  # each costs no matrix product
_NEWTON_TOLERANCE = 0.1  # of the slope at 0


def newton(
    slope_and_curvature: Callable[[jax.Array], tuple[jax.Array, jax.Array]], slope: jax.Array
) -> jax.Array:
    """Returns the step that approximately minimizes a smooth convex function along a line.

    It uses only derivatives, which are precise in float32 near the minimum, where differences of
    values are rounding noise.

    Args:
      slope_and_curvature: Maps a step to the first and second derivative.
      slope: First derivative at step 0.
    """

    def refine(carry):
        low, high, t, _, count = carry
        first, second = slope_and_curvature(t)
        low, high = jnp.where(first < 0, t, low), jnp.where(first < 0, high, t)
        proposal = t - first / jnp.maximum(second, 1e-30)
        proposal = jnp.minimum(proposal, 10.0 * t)
        middle = jnp.where(jnp.isinf(high), 2.0 * t, 0.5 * (low + high))
        done = jnp.abs(first) <= _NEWTON_TOLERANCE * jnp.abs(slope)
        inside = (proposal > low) & (proposal < high)
        t = jnp.where(done, t, jnp.where(inside, proposal, middle))
        return low, high, t, done, count + 1

    def unfinished(carry):
        *_, done, count = carry
        return ~done & (count < _NEWTON_STEPS)

    start = (0.0 * slope, jnp.inf + 0.0 * slope, 1.0 + 0.0 * slope, slope >= 0, 0)
    return jax.lax.while_loop(unfinished, refine, start)[2]


class Point(NamedTuple):
    """A step along the line, and the value and slope of the function there."""

    step: jax.Array
    value: jax.Array
    slope: jax.Array


class _Bracketing(NamedTuple):
    before: Point
    now: Point
    count: jax.Array


class _Zooming(NamedTuple):
    low: Point  # the end of the bracket with the smaller value
    high: Point
    low_is_first: jax.Array  # which end counts as the lower one if both have the same value
    stalled: jax.Array  # whether the last trial was too near to an end
    done: jax.Array
    count: jax.Array


def strong_wolfe(
    line: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    start: Point,
    first_step: jax.Array,
    *,
    length: jax.Array,
    tolerance: float,
) -> tuple[jax.Array, jax.Array]:
    """Returns a step that meets the strong Wolfe conditions, or the best end of the last bracket.

    Args:
      line: Maps a step to the value and slope there.
      start: The point at step 0; its slope is negative.
      first_step: The first step to try.
      length: Largest entry of the direction.
      tolerance: The search ends if the bracket moves no entry by more than this.

    Returns:
      The step, and the number of calls of `line`.
    """
    line = _Line(line, start)

    def unfinished(s: _Zooming) -> jax.Array:
        wide_enough = jnp.abs(s.high.step - s.low.step) * length >= tolerance
        return ~s.done & (s.count < MAX_STEPS) & wide_enough

    bracket = _bracket(line, first_step)
    bracket = jax.lax.while_loop(unfinished, functools.partial(_zoom, line), bracket)
    return bracket.low.step, bracket.count + 1


@dataclasses.dataclass(frozen=True)
class _Line:
    """A function along a line, and the Wolfe conditions at its points."""

    function: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    start: Point

    def at(self, step: jax.Array) -> Point:
        return Point(step, *self.function(step))

    def too_high(self, point: Point) -> jax.Array:
        return point.value > self.start.value + DECREASE * point.step * self.start.slope

    def is_flat(self, point: Point) -> jax.Array:
        return jnp.abs(point.slope) <= -CURVATURE * self.start.slope


def _bracket(line: _Line, first_step: jax.Array) -> _Zooming:
    """Returns a bracket that contains a minimum: steps grow until one is too far.

    If a step meets the conditions before, it is both ends of the bracket.
    """

    def rose(s: _Bracketing) -> jax.Array:
        return line.too_high(s.now) | ((s.count > 1) & (s.now.value >= s.before.value))

    def open_ended(s: _Bracketing) -> jax.Array:
        return ~(rose(s) | line.is_flat(s.now) | (s.now.slope >= 0)) & (s.count < MAX_STEPS)

    def widen(s: _Bracketing) -> _Bracketing:
        step = s.now.step
        least, most = step + 0.01 * (step - s.before.step), 10.0 * step
        return _Bracketing(s.now, line.at(_cubic(s.before, s.now, least, most)), s.count + 1)

    wide = _Bracketing(line.start, line.at(first_step), jnp.int32(0))
    wide = jax.lax.while_loop(open_ended, widen, wide)
    exhausted = wide.count == MAX_STEPS
    done = ~exhausted & ~rose(wide) & line.is_flat(wide.now)
    before = _select(exhausted, line.start, wide.before)
    before = _select(done, wide.now, before)
    first = before.value <= wide.now.value
    return _Zooming(
        low=_select(first, before, wide.now),
        high=_select(first, wide.now, before),
        low_is_first=first,
        stalled=jnp.bool_(False),
        done=done,
        count=wide.count,
    )


def _zoom(line: _Line, s: _Zooming) -> _Zooming:
    """Returns a smaller bracket."""
    step, stalled = _inner_step(s)
    new = line.at(step)
    worse = line.too_high(new) | (new.value >= s.low.value)
    # A worse point becomes the high end, unless it is lower than the low end.
    swap = (new.value < s.low.value) | ((new.value == s.low.value) & ~s.low_is_first)
    shrunk = (_select(swap, new, s.low), _select(swap, s.low, new), s.low_is_first ^ swap)
    # A better point becomes the low end. The old low end becomes the high end if the minimum is
    # between them.
    turned = new.slope * (s.high.step - s.low.step) >= 0
    moved = (new, _select(turned, s.low, s.high), s.low_is_first)
    low, high, low_is_first = _select(worse, shrunk, moved)
    return _Zooming(low, high, low_is_first, stalled, ~worse & line.is_flat(new), s.count + 1)


def _inner_step(s: _Zooming) -> tuple[jax.Array, jax.Array]:
    """Returns the next trial, away from the ends if the previous one was too near to them, too."""
    least = jnp.minimum(s.low.step, s.high.step)
    most = jnp.maximum(s.low.step, s.high.step)
    step = _cubic(s.low, s.high, least, most)
    margin = 0.1 * (most - least)
    near = jnp.minimum(most - step, step - least) < margin
    push = near & (s.stalled | (step >= most) | (step <= least))
    inside = jnp.where(most - step < step - least, most - margin, least + margin)
    return jnp.where(push, inside, step), near & ~push


def _cubic(a: Point, b: Point, least: jax.Array, most: jax.Array) -> jax.Array:
    """Returns the minimum of the cubic through two points with their slopes, within bounds.

    If the cubic has no minimum, returns the middle of the bounds.
    """
    a, b = _select(a.step <= b.step, a, b), _select(a.step <= b.step, b, a)
    width = b.step - a.step
    mean = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = mean**2 - a.slope * b.slope
    root = jnp.sqrt(jnp.maximum(square, 0))
    lowest = b.step - width * (b.slope + root - mean) / (b.slope - a.slope + 2 * root)
    return jnp.where(square >= 0, jnp.clip(lowest, least, most), 0.5 * (least + most))


def _select(condition: jax.Array, yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
