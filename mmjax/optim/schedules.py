"""Learning-rate schedules: functions from the number of an update to a learning rate.

Updates count from 0: the first one uses schedule(0). An invalid option raises a UserError that
starts with the option; `make_schedule` puts the key of the section in front of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import config
from mmjax.errors import UserError, choose

Schedule = Callable[[jax.Array | int], jax.Array]


@dataclasses.dataclass(frozen=True)
class CyclingSchedule:
    """A schedule that also determines the momentum (b1 in Adam) of each update.

    Attributes:
      rate: Update -> learning rate.
      momentum: Update -> momentum.
    """

    rate: Schedule
    momentum: Schedule

    def __call__(self, step: jax.Array | int) -> jax.Array:
        return self.rate(step)


def make_schedule(
    cfg: Mapping[str, Any], *, total_steps: int, batch_size: int, where: str = "optimizer.schedule"
) -> Schedule:
    """Returns the schedule of a config section.

    Args:
      cfg: `name`, a key of `SCHEDULES`, and its keywords. Every schedule accepts two more, for
        recipes that do not depend on the batch size. `warmup_examples` replaces `warmup_steps`.
        `per_examples`: Learning rates are for this batch size and are scaled linearly to the actual
        one (Goyal et al. 2017; 256 in TVL); 0 does not scale.
      total_steps: Number of updates, the default end of the schedule.
      batch_size: Number of examples per update.
      where: Key of the section, for error messages.

    Raises:
      UserError: An unknown or missing name or key, or a value out of range.
    """
    cfg = dict(cfg)
    name = cfg.pop("name", None)
    if name is None:
        raise UserError(f"config.{where}.name is missing. Valid: {', '.join(sorted(SCHEDULES))}.")
    make = choose(f"config.{where}.name", name, SCHEDULES)
    known = config.parameters(make)
    if "total_steps" in known:
        cfg.setdefault("total_steps", total_steps)
    if (examples := cfg.pop("warmup_examples", None)) is not None:
        if "warmup_steps" in cfg or "warmup_steps" not in known:
            raise UserError(
                f"config.{where}.warmup_examples replaces warmup_steps. Set one of them, in a "
                f"schedule with warm-up. Keys of {name!r}: {', '.join(known)}."
            )
        cfg["warmup_steps"] = math.ceil(examples / batch_size)
    if per_examples := cfg.pop("per_examples", 0):
        if per_examples < 0:
            raise UserError(f"config.{where}.per_examples must be at least 0; got {per_examples}.")
        factor = batch_size / per_examples
        for key in _RATES & cfg.keys():
            rates = cfg[key]
            scaled = rates * factor if isinstance(rates, int | float) else None
            cfg[key] = tuple(rate * factor for rate in rates) if scaled is None else scaled
    keywords = config.keywords(make, cfg, where, also=(*_SHARED, "name"), owner=name)
    with prefixed(f"config.{where}."):
        return make(**keywords)


# Keywords of schedules that any of them takes, and those that are learning rates to scale.
_SHARED = ("warmup_examples", "per_examples")
_RATES = {"base", "levels"}


@contextlib.contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Puts a prefix in front of the UserErrors of a block."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error


def constant(*, base: float, warmup_steps: int = 0, warmup_from: float = 0.0) -> Schedule:
    """`base`, after a linear warm-up from `warmup_from`."""

    def schedule(step):
        return jnp.float32(base)

    return _with_warmup(schedule, base, warmup_steps, warmup_from)


def cosine(
    *,
    base: float,
    warmup_steps: int = 0,
    warmup_from: float = 0.0,
    end: float = 0.0,
    hold_steps: int = 0,
    total_steps: int,
) -> Schedule:
    """Linear warm-up to `base`, `hold_steps` there, then half a cosine down to `end` at
    `total_steps`."""
    start = warmup_steps + hold_steps
    _check_steps("hold_steps" if hold_steps else "warmup_steps", start, total_steps)

    def schedule(step):
        return end + (base - end) * _half_cosine(step - start, total_steps - start)

    return _with_warmup(schedule, base, warmup_steps, warmup_from)


def stepwise_cosine(
    *,
    levels: Sequence[float],
    boundaries: Sequence[int],
    warmup_from: float = 0.0,
    total_steps: int,
) -> Schedule:
    """Half-cosines between levels, as in VATT pretraining.

    The rate increases from `warmup_from` to levels[0] in boundaries[0] steps. From step
    boundaries[i] to boundaries[i + 1] it decreases from levels[i] to levels[i + 1], and in the last
    segment to 0 at `total_steps`. If the last boundary is `total_steps`, there is no last segment,
    and the rate ends at the last level (VATT's published code returns NaN there).
    """
    if not levels or len(levels) != len(boundaries):
        raise UserError(
            "boundaries of stepwise_cosine must be as many as levels; got "
            f"{len(boundaries)} boundaries and {len(levels)} levels."
        )
    ends = [*boundaries[1:], total_steps]
    if list(boundaries) != sorted(set(boundaries)) or boundaries[-1] > total_steps:
        raise UserError(
            f"boundaries={tuple(boundaries)} of stepwise_cosine must increase and not exceed the "
            f"{total_steps} steps of the schedule."
        )
    segments = list(zip(boundaries, ends, levels, [*levels[1:], 0.0], strict=True))
    if len(segments) > 1 and boundaries[-1] == total_steps:
        segments.pop()

    def schedule(step):
        value = jnp.float32(levels[0])
        for start, end, high, low in segments:
            part = low + (high - low) * _half_cosine(step - start, end - start)
            value = jnp.where(step >= start, part, value)
        return value

    return _with_warmup(schedule, levels[0], boundaries[0], warmup_from)


def rsqrt(
    *, base: float, warmup_steps: int = 0, warmup_from: float = 0.0, timescale: int = 10_000
) -> Schedule:
    """Linear warm-up to `base`, then base · sqrt(timescale / (timescale + steps since then))."""
    if timescale < 1:
        raise UserError(f"timescale must be at least 1; got {timescale}.")

    def schedule(step):
        since = jnp.maximum(step - warmup_steps, 0)
        return base * jnp.sqrt(timescale / (timescale + since))

    return _with_warmup(schedule, base, warmup_steps, warmup_from)


def step_decay(
    *,
    base: float,
    step_size: int,
    gamma: float = 0.1,
    steps_per_epoch: int = 1,
    disabled: bool = False,
) -> Schedule:
    """`base`, multiplied by `gamma` after every `step_size` epochs, as in PyTorch's StepLR.

    An epoch has `steps_per_epoch` updates. `disabled`: Stay at the first value, like the schedules
    of pyVTAB's published code, which are never stepped.
    """
    _check_at_least(1, step_size=step_size, steps_per_epoch=steps_per_epoch)
    _check_positive(gamma=gamma)

    def schedule(step):
        epoch = jnp.asarray(step) // steps_per_epoch
        return jnp.float32(base) * jnp.float32(gamma) ** (epoch // step_size)

    return _at_start(schedule) if disabled else schedule


def one_cycle(
    *,
    base: float,
    total_steps: int,
    steps_per_epoch: int = 1,
    cycle_momentum: bool = True,
    disabled: bool = False,
) -> Schedule:
    """Linear from base / 25 to `base` and down to base / 250,000, as in PyTorch's OneCycleLR.

    The rate changes after every `steps_per_epoch` updates, and is highest after 30 % of the
    N = total_steps / steps_per_epoch values (rounded up). `cycle_momentum`: The momentum of the
    optimizer, b1 in Adam, changes in the opposite direction, from 0.95 to 0.85 and back.
    `disabled`: See `step_decay`.

    Source: Smith and Topin 2018, Super-Convergence, arXiv 1708.07120.
    """
    _check_at_least(1, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    last = math.ceil(total_steps / steps_per_epoch) - 1
    peak = 0.3 * (last + 1) - 1  # below 0 for fewer than 4 values: the first part is empty

    def between(first, middle, final):
        rise, fall = (middle - first) / max(peak, 1e-6), (middle - final) / (last - peak)

        def schedule(step):
            index = jnp.minimum(jnp.asarray(step) // steps_per_epoch, last)
            # From the ends inward, so that a small last value keeps its digits.
            down = jnp.float32(final) + fall * (last - index)
            return jnp.where(index <= peak, jnp.float32(first) + rise * index, down)

        return _at_start(schedule) if disabled else schedule

    rate = between(base / 25, base, base / 25 / 1e4)
    return CyclingSchedule(rate, between(0.95, 0.85, 0.95)) if cycle_momentum else rate


def poly(
    *, base: float, exponent: float = 0.9, total_steps: int, disabled: bool = False
) -> Schedule:
    """base · (1 − step / total_steps) ^ exponent, and 0 from `total_steps` on.

    `disabled`: See `step_decay`.
    """
    _check_at_least(1, total_steps=total_steps)
    _check_positive(exponent=exponent)

    def schedule(step):
        left = (total_steps - jnp.asarray(step)) / total_steps
        return jnp.float32(base) * jnp.maximum(left, 0.0) ** exponent

    return _at_start(schedule) if disabled else schedule


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "stepwise_cosine": stepwise_cosine,
    "rsqrt": rsqrt,
    "step": step_decay,
    "one_cycle": one_cycle,
    "poly": poly,
}


def _at_start(schedule: Schedule) -> Schedule:
    return lambda step: schedule(0)


def _with_warmup(schedule: Schedule, base: float, steps: int, start: float) -> Schedule:
    if steps < 0:
        raise UserError(f"warmup_steps must be at least 0; got {steps}.")
    if steps == 0:
        return lambda step: jnp.float32(schedule(step))

    def warmed(step):
        step = jnp.asarray(step)
        return jnp.where(step < steps, start + step / steps * (base - start), schedule(step))

    return warmed


def _half_cosine(step: jax.Array | int, duration: int) -> jax.Array:
    """Returns a half cosine from 1 at step 0 to 0 at `duration` and later."""
    if duration <= 0:
        return jnp.where(jnp.asarray(step) < 0, 1.0, 0.0)
    fraction = jnp.clip(jnp.asarray(step) / duration, 0.0, 1.0)
    return 0.5 * (1.0 + jnp.cos(math.pi * fraction))


def _check_steps(name: str, value: int, total_steps: int) -> None:
    if value > total_steps:
        raise UserError(
            f"{name}={value} exceeds the {total_steps} steps of the run. Decrease it, or increase "
            "config.total_steps."
        )


def _check_at_least(minimum: int, **values: int) -> None:
    for name, value in values.items():
        if value < minimum:
            raise UserError(f"{name} must be at least {minimum}; got {value}.")


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if value <= 0:
            raise UserError(f"{name} must be positive; got {value}.")
