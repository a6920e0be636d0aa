"""A strong-Wolfe line search inside a jitted program: bracketing, then zooming (Nocedal & Wright,
Numerical Optimization, section 3.5), with the constants and safeguards of torch's L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

DECREASE = 1e-4  # a step must gain this part of what the slope at 0 promises …
CURVATURE = 0.9  # … and leave at most this part of the slope
MAX_STEPS = 25


class Point(NamedTuple):
    """Where a line was looked at: the step, and the function's value and slope there."""

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
    low_is_first: jax.Array  # of the two ends: it counts as the lower one if they tie
    stalled: jax.Array  # the last trial fell too near to an end
    done: jax.Array
    count: jax.Array


def search(
    line: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    start: Point,
    first_step: jax.Array,
    *,
    length: jax.Array,
    tolerance: float,
) -> tuple[jax.Array, jax.Array]:
    """A step that meets the strong Wolfe conditions, or the best end of the last bracket.

    Args:
      line: step → value and slope there.
      start: the line at step 0; its slope is negative.
      first_step: to try first.
      length: largest entry of the direction.
      tolerance: a bracket that moves no entry by more than this is left.

    Returns:
      The step, and how often `line` was called.
    """

    def at(step: jax.Array) -> Point:
        return Point(step, *line(step))

    def too_high(point: Point) -> jax.Array:
        return point.value > start.value + DECREASE * point.step * start.slope

    def is_flat(point: Point) -> jax.Array:
        return jnp.abs(point.slope) <= -CURVATURE * start.slope

    # Steps grow until a bracket holds a minimum, or the conditions are met.
    def rose(s: _Bracketing) -> jax.Array:
        return too_high(s.now) | ((s.count > 1) & (s.now.value >= s.before.value))

    def open_ended(s: _Bracketing) -> jax.Array:
        return ~(rose(s) | is_flat(s.now) | (s.now.slope >= 0)) & (s.count < MAX_STEPS)

    def widen(s: _Bracketing) -> _Bracketing:
        step = s.now.step
        least, most = step + 0.01 * (step - s.before.step), 10.0 * step
        return _Bracketing(s.now, at(_cubic(s.before, s.now, least, most)), s.count + 1)

    wide = _Bracketing(start, at(first_step), jnp.int32(0))
    wide = jax.lax.while_loop(open_ended, widen, wide)
    exhausted = wide.count == MAX_STEPS
    done = ~exhausted & ~rose(wide) & is_flat(wide.now)
    before = _select(exhausted, start, wide.before)
    before = _select(done, wide.now, before)  # then both ends are what was found

    # The bracket shrinks until one of its ends meets the conditions.
    def unfinished(s: _Zooming) -> jax.Array:
        wide_enough = jnp.abs(s.high.step - s.low.step) * length >= tolerance
        return ~s.done & (s.count < MAX_STEPS) & wide_enough

    def zoom(s: _Zooming) -> _Zooming:
        step, stalled = _inner_step(s)
        new = at(step)
        worse = too_high(new) | (new.value >= s.low.value)
        # A worse point becomes the high end (and might still be lower than the other one).
        swap = (new.value < s.low.value) | ((new.value == s.low.value) & ~s.low_is_first)
        shrunk = (_select(swap, new, s.low), _select(swap, s.low, new), s.low_is_first ^ swap)
        # A better one becomes the low end, whose place the high end takes if the minimum is there.
        turned = new.slope * (s.high.step - s.low.step) >= 0
        moved = (new, _select(turned, s.low, s.high), s.low_is_first)
        low, high, low_is_first = _select(worse, shrunk, moved)
        return _Zooming(low, high, low_is_first, stalled, ~worse & is_flat(new), s.count + 1)

    first = before.value <= wide.now.value
    narrow = _Zooming(
        low=_select(first, before, wide.now),
        high=_select(first, wide.now, before),
        low_is_first=first,
        stalled=jnp.bool_(False),
        done=done,
        count=wide.count,
    )
    narrow = jax.lax.while_loop(unfinished, zoom, narrow)
    return narrow.low.step, narrow.count + 1


def _inner_step(s: _Zooming) -> tuple[jax.Array, jax.Array]:
    """The next trial, kept away from the ends if the one before was near them too."""
    least = jnp.minimum(s.low.step, s.high.step)
    most = jnp.maximum(s.low.step, s.high.step)
    step = _cubic(s.low, s.high, least, most)
    margin = 0.1 * (most - least)
    near = jnp.minimum(most - step, step - least) < margin
    push = near & (s.stalled | (step >= most) | (step <= least))
    inside = jnp.where(most - step < step - least, most - margin, least + margin)
    return jnp.where(push, inside, step), near & ~push


def _cubic(a: Point, b: Point, least: jax.Array, most: jax.Array) -> jax.Array:
    """The minimum of the cubic through two points with their slopes, within bounds; their middle
    if it has none."""
    a, b = _select(a.step <= b.step, a, b), _select(a.step <= b.step, b, a)
    width = b.step - a.step
    mean = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = mean**2 - a.slope * b.slope
    root = jnp.sqrt(jnp.maximum(square, 0))
    lowest = b.step - width * (b.slope + root - mean) / (b.slope - a.slope + 2 * root)
    return jnp.where(square >= 0, jnp.clip(lowest, least, most), 0.5 * (least + most))


def _select(condition: jax.Array, yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
