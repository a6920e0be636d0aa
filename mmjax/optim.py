"""Optimizers and learning-rate schedules from a config: optax, and Keras' rules where they differ.

A config section names an optimizer, its own options (the keywords of one function in `OPTIMIZERS`),
a schedule (the keywords of one function in `SCHEDULES`), and what applies to any optimizer:
clipping, weight decay exclusions and learning-rate factors by parameter path.

    dict(
        name="adamw", weight_decay=0.05, weight_decay_exclude=("bias$", "norm"),
        schedule=dict(name="cosine", base=1e-3, warmup_steps=500),
        lr_multipliers=(("^video/", 0.1),),
        clip_norm=0.75, clip_groups=(("^classifier/", 0.0),),
    )

Every update is: clip → the optimizer's rule, with the learning rate of the step that is about to be
taken → learning-rate factors. Leaves that are None (frozen elsewhere) have no slots.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmjax import config, tree
from mmjax.errors import UserError, choose

Schedule = Callable[[jax.Array | int], jax.Array]
# Parameters → where weight decay applies, a tree of bools.
Mask = Callable[[Any], Any]

_COMMON = ("name", "schedule", "lr_multipliers", "clip_norm", "clip_groups", "weight_decay_exclude")


def make_optimizer(
    cfg: Mapping[str, Any], params: Any, *, total_steps: int, batch_size: int, clip: bool = True
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer of a config section, and its schedule `step -> learning rate` (before factors).

    Args:
      cfg: `name`: a key of `OPTIMIZERS`, whose keywords are further keys of this section.
        `schedule`: dict of `name`, a key of `SCHEDULES`, and its keywords. `weight_decay_exclude`:
        patterns of parameter paths that do not decay. `lr_multipliers`: (pattern, factor) pairs; a
        path's whole update, decay included, is multiplied by the factor of the first pattern that
        matches it. `clip_norm`, `clip_groups`: see `make_clipping`.
      params: tree of arrays or shapes, whose paths the patterns are about.
      total_steps: of the run; where schedules end that do not say so.
      batch_size: of the run, for what a schedule says by examples.
      clip: False leaves clipping to the caller, who clips parts of a batch with `make_clipping`.

    Raises:
      UserError: an unknown name or key, a missing one, a value out of range, or a pattern that
        matches nothing.
    """
    name = cfg.get("name")
    if name is None:
        raise UserError(f"The optimizer has no name. Valid: {', '.join(sorted(OPTIMIZERS))}.")
    make = choose("optimizer", name, OPTIMIZERS)
    own = {key: value for key, value in cfg.items() if key not in _COMMON}
    if "schedule" not in cfg:
        raise UserError(
            "optimizer.schedule is missing: give for example dict(name='constant', base=1e-4). "
            f"Names: {', '.join(sorted(SCHEDULES))}."
        )
    schedule = make_schedule(cfg["schedule"], total_steps=total_steps, batch_size=batch_size)
    paths = list(tree.flatten(params))

    exclude = cfg.get("weight_decay_exclude", ())
    decays = _takes(make, "weight_decay")
    if exclude and not decays:
        decaying = ", ".join(n for n, f in OPTIMIZERS.items() if _takes(f, "weight_decay"))
        raise UserError(
            f"optimizer.weight_decay_exclude: {name!r} has no weight decay. "
            f"Remove the patterns, or use one of {decaying}."
        )
    excluded = tree.first_match(exclude, paths, what="optimizer.weight_decay_exclude")
    keywords = config.keywords(
        make, own, "optimizer", provided=("schedule", "mask"), also=_COMMON, owner=name
    )
    if exclude:
        keywords["mask"] = lambda tree_: tree.map_named(lambda p, _: excluded[p] is None, tree_)
    clipping = make_clipping(cfg, params)
    chain = [optax.stateless(lambda grads, _: clipping(grads))] if clip and clipping else []
    chain.append(make(schedule, **keywords))
    multipliers = _pairs(cfg, "lr_multipliers")
    if multipliers:
        chain.append(_multiply_updates(multipliers, paths))
    return optax.chain(*chain), schedule


# --------------------------------------------------------------------------------------------------
# Schedules. Each counts steps from 0: the first update is made with schedule(0).


def make_schedule(cfg: Mapping[str, Any], *, total_steps: int, batch_size: int) -> Schedule:
    """The schedule of a config section: `name` and the keywords of that function in `SCHEDULES`.

    Any schedule takes besides, for recipes that hold whatever the batch is:

      warmup_examples: in place of warmup_steps.
      per_examples: the rates are for batches of so many examples; another batch scales them in
        proportion (the linear rule of Goyal et al. 2017, with TVL's 256). 0: rates as they are.

    Raises:
      UserError: an unknown name or key, a missing one, or a value out of range.
    """
    cfg = dict(cfg)
    name = cfg.pop("name", None)
    if name is None:
        raise UserError(f"optimizer.schedule has no name. Valid: {', '.join(sorted(SCHEDULES))}.")
    make = choose("optimizer.schedule", name, SCHEDULES)
    if _takes(make, "total_steps"):
        cfg.setdefault("total_steps", total_steps)
    if (examples := cfg.pop("warmup_examples", None)) is not None:
        if "warmup_steps" in cfg or not _takes(make, "warmup_steps"):
            raise UserError(
                "optimizer.schedule.warmup_examples takes the place of warmup_steps: give one of "
                f"them ({name!r} takes: {', '.join(inspect.signature(make).parameters)})."
            )
        cfg["warmup_steps"] = math.ceil(examples / batch_size)
    if per_examples := cfg.pop("per_examples", 0):
        if per_examples < 0:
            raise UserError(
                f"optimizer.schedule.per_examples={per_examples} must be at least 0 (off)."
            )
        factor = batch_size / per_examples
        for key in _RATES & cfg.keys():
            rates = cfg[key]
            scaled = rates * factor if isinstance(rates, int | float) else None
            cfg[key] = tuple(rate * factor for rate in rates) if scaled is None else scaled
    return make(
        **config.keywords(make, cfg, "optimizer.schedule", also=(*_SHARED, "name"), owner=name)
    )


# Keywords of schedules that any of them takes, and those that are learning rates to scale.
_SHARED = ("warmup_examples", "per_examples")
_RATES = {"base", "levels"}


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
    """VATT's pretraining schedule: half-cosines from level to level.

    Warm-up from `warmup_from` to levels[0] takes boundaries[0] steps. From boundaries[i] on the
    rate falls from levels[i] to levels[i + 1] at boundaries[i + 1]; the last segment falls to 0 at
    `total_steps`. A last boundary at `total_steps` leaves that segment out: the rate ends at the
    last level (where VATT's published code gives NaN).
    """
    if not levels or len(levels) != len(boundaries):
        raise UserError(
            f"stepwise_cosine needs as many boundaries as levels, not {len(boundaries)} and "
            f"{len(levels)}."
        )
    ends = [*boundaries[1:], total_steps]
    if list(boundaries) != sorted(set(boundaries)) or boundaries[-1] > total_steps:
        raise UserError(
            f"stepwise_cosine: boundaries {tuple(boundaries)} must rise and not exceed the "
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
    """Linear warm-up to `base`, then base · sqrt(t / (t + steps since)) with t = `timescale`."""
    if timescale < 1:
        raise UserError(f"rsqrt: timescale must be at least 1, not {timescale}.")

    def schedule(step):
        since = jnp.maximum(step - warmup_steps, 0)
        return base * jnp.sqrt(timescale / (timescale + since))

    return _with_warmup(schedule, base, warmup_steps, warmup_from)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "stepwise_cosine": stepwise_cosine,
    "rsqrt": rsqrt,
}


def _with_warmup(schedule: Schedule, base: float, steps: int, start: float) -> Schedule:
    if steps < 0:
        raise UserError(f"warmup_steps must not be negative, not {steps}.")
    if steps == 0:
        return lambda step: jnp.float32(schedule(step))

    def warmed(step):
        step = jnp.asarray(step)
        return jnp.where(step < steps, start + step / steps * (base - start), schedule(step))

    return warmed


def _half_cosine(step: jax.Array | int, duration: int) -> jax.Array:
    """From 1 at 0 to 0 at `duration` and after."""
    if duration <= 0:
        return jnp.where(jnp.asarray(step) < 0, 1.0, 0.0)
    fraction = jnp.clip(jnp.asarray(step) / duration, 0.0, 1.0)
    return 0.5 * (1.0 + jnp.cos(math.pi * fraction))


def _check_steps(name: str, value: int, total_steps: int) -> None:
    if value > total_steps:
        raise UserError(
            f"config.optimizer.schedule: {name}={value} is more than the {total_steps} steps of "
            f"the run. Lower it (--config.optimizer.schedule.{name}=…) or raise config.total_steps."
        )


# --------------------------------------------------------------------------------------------------
# Optimizers. Each returns the whole update: what is added to the parameters.


def adam(
    schedule: Schedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam as in optax and PyTorch."""
    return optax.adam(schedule, b1=b1, b2=b2, eps=eps)


def adamw(
    schedule: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """AdamW as in optax and PyTorch: the decay is scaled by the learning rate."""
    return optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)


def momentum(
    schedule: Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum as in optax and PyTorch; weight decay is added to the gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )


def keras_adam(
    schedule: Schedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as in Keras: `eps` joins before the bias of the second moment is corrected (ε̂)."""
    return optax.chain(
        _scale_by_keras_adam(b1, b2, eps),
        optax.scale_by_learning_rate(schedule),
    )


def keras_momentum(
    schedule: Schedule, *, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """SGD with momentum as in Keras: the buffer holds steps, v ← momentum · v − lr · g; w ← w + v.

    With a constant learning rate this is `momentum`; where the rate changes, past gradients keep
    the rate they came with.
    """

    def init(params):
        return KerasMomentumState(
            count=jnp.zeros([], jnp.int32), velocity=jax.tree.map(jnp.zeros_like, params)
        )

    def update(grads, state, params=None):
        del params
        lr = schedule(state.count)
        velocity = jax.tree.map(
            lambda v, g: momentum * v - (lr * g).astype(v.dtype), state.velocity, grads
        )
        updates = velocity
        if nesterov:
            updates = jax.tree.map(
                lambda v, g: momentum * v - (lr * g).astype(v.dtype), velocity, grads
            )
        count = optax.safe_increment(state.count)
        return updates, KerasMomentumState(count=count, velocity=velocity)

    return optax.GradientTransformation(init, update)


def tfa_adamw(
    schedule: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-7,
    weight_decay: float = 5e-5,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """`keras_adam`, and TensorFlow Addons' decay: w ← w − weight_decay · w, whatever the rate."""
    return optax.chain(
        keras_adam(schedule, b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(-weight_decay, mask),
    )


def tfa_sgdw(
    schedule: Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 5e-5,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """`keras_momentum`, and TensorFlow Addons' decay: w ← w − weight_decay · w, at any rate."""
    return optax.chain(
        keras_momentum(schedule, momentum=momentum, nesterov=nesterov),
        optax.add_decayed_weights(-weight_decay, mask),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "momentum": momentum,
    "keras_adam": keras_adam,
    "keras_momentum": keras_momentum,
    "tfa_adamw": tfa_adamw,
    "tfa_sgdw": tfa_sgdw,
}


class KerasMomentumState(NamedTuple):
    count: jax.Array  # updates made
    velocity: Any  # like the parameters


def _scale_by_keras_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    def update(grads, state, params=None):
        del params
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        scale = jnp.sqrt(1.0 - b2**count) / (1.0 - b1**count)
        updates = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


# --------------------------------------------------------------------------------------------------
# What applies to any optimizer.


def make_clipping(cfg: Mapping[str, Any], params: Any) -> Callable[[Any], Any] | None:
    """What clips gradients by their global norm, each group of parameters on its own.

    `cfg['clip_groups']`: (pattern, norm) pairs; a parameter belongs to the first pattern that
    matches its path. `cfg['clip_norm']`: for all others together. A norm of 0 does not clip.
    Fine-tuning in VATT has one norm for the backbone and one for the classifier.

    Raises:
      UserError: a negative norm, or a pattern that matches nothing.
    """
    groups = _pairs(cfg, "clip_groups")
    norms = [*(norm for _, norm in groups), cfg.get("clip_norm", 0.0)]
    if any(norm < 0 for norm in norms):
        raise UserError(f"optimizer: a norm to clip to is negative: {norms}. 0 turns clipping off.")
    matched = tree.first_match(
        [pattern for pattern, _ in groups], list(tree.flatten(params)), what="optimizer.clip_groups"
    )

    if not any(norms):
        return None

    def clip(grads):
        named = tree.flatten(grads)
        scales = {}
        for number, limit in enumerate(norms):
            members = {
                path: leaf
                for path, leaf in named.items()
                if (len(groups) if matched[path] is None else matched[path]) == number
            }
            if limit and members:
                norm = optax.global_norm(members)
                # 1 up to the limit, and no division by a norm of 0.
                scale = limit / jnp.maximum(norm, limit)
                scales |= dict.fromkeys(members, scale)
        return tree.map_named(
            lambda path, g: (g * scales[path]).astype(g.dtype) if path in scales else g, grads
        )

    return clip


def _multiply_updates(
    multipliers: Sequence[tuple[str, float]], paths: Sequence[str]
) -> optax.GradientTransformation:
    matched = tree.first_match(
        [pattern for pattern, _ in multipliers], paths, what="optimizer.lr_multipliers"
    )
    factors = {path: multipliers[i][1] for path, i in matched.items() if i is not None}
    return optax.stateless(
        lambda updates, _: tree.map_named(lambda path, u: u * factors.get(path, 1.0), updates)
    )


def _pairs(cfg: Mapping[str, Any], key: str) -> list[tuple[str, float]]:
    """(pattern, number) pairs of a section."""
    pairs = cfg.get(key, ())
    for pair in pairs if isinstance(pairs, list | tuple) else [pairs]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(
                f"optimizer.{key} must be pairs like (('^video/', 0.1),), not {pairs!r}: "
                f"{pair!r} is not a pair of a pattern and a number."
            )
    return [(pattern, float(number)) for pattern, number in pairs]


def _takes(function: Callable[..., Any], keyword: str) -> bool:
    return keyword in inspect.signature(function).parameters
