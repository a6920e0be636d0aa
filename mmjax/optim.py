"""Optimizers and learning-rate schedules from a config: optax, and Keras rules where they differ.

A config section names an optimizer and its options (the keywords of a function in `OPTIMIZERS`), a
schedule (the keywords of a function in `SCHEDULES`), and options of every optimizer: clipping,
weight decay exclusions and learning-rate factors by parameter path.

    dict(
        name="adamw", weight_decay=0.05, weight_decay_exclude=("bias$", "norm"),
        schedule=dict(name="cosine", base=1e-3, warmup_steps=500),
        lr_multipliers=(("^video/", 0.1),),
        clip_norm=0.75, clip_groups=(("^classifier/", 0.0),),
    )

An update clips gradients, applies the rule of the optimizer with the learning rate of this step,
and multiplies by the learning-rate factors. Leaves that are None (frozen parameters) have no slots.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmjax import config, tree
from mmjax.errors import UserError, check_choice, choose

Schedule = Callable[[jax.Array | int], jax.Array]
# Parameters -> tree of bools: where weight decay applies.
Mask = Callable[[Any], Any]

_COMMON = (
    *("name", "schedule", "lr_multipliers", "clip_norm", "clip_groups", "clip_lookups"),
    "weight_decay_exclude",
)
LOOKUPS = ("summed", "separate")  # values of `clip_lookups`


def make_optimizer(
    cfg: Mapping[str, Any], params: Any, *, total_steps: int, batch_size: int, clip: bool = True
) -> tuple[optax.GradientTransformation, Schedule]:
    """Returns the optimizer of a config section and its schedule (step -> learning rate).

    Args:
      cfg: The section. `name`: A key of `OPTIMIZERS`; its keywords are further keys of the
        section. `schedule`: A dict of `name`, a key of `SCHEDULES`, and its keywords.
        `weight_decay_exclude`: Patterns of parameter paths without weight decay. `lr_multipliers`:
        (pattern, factor) pairs; the factor of the first pattern that matches a path multiplies its
        complete update, including weight decay. `clip_norm`, `clip_groups`,
        `clip_lookups`: See `make_clipping`.
      params: Tree of arrays or shapes, for its paths.
      total_steps: Number of updates, the default end of schedules.
      batch_size: Global batch size, for schedules in units of examples.
      clip: Whether to clip; False if the caller clips parts of a batch with `make_clipping`.

    Raises:
      UserError: An unknown or missing name or key, a value out of range, or a pattern that matches
        no path.
    """
    name = cfg.get("name")
    if name is None:
        raise UserError(
            f"config.optimizer.name is missing. Valid: {', '.join(sorted(OPTIMIZERS))}."
        )
    make = choose("config.optimizer.name", name, OPTIMIZERS)
    own = {key: value for key, value in cfg.items() if key not in _COMMON}
    if "schedule" not in cfg:
        raise UserError(
            "config.optimizer.schedule is missing. Set it to, for example, dict(name='constant', "
            f"base=1e-4). Valid names: {', '.join(sorted(SCHEDULES))}."
        )
    schedule = make_schedule(cfg["schedule"], total_steps=total_steps, batch_size=batch_size)
    paths = list(tree.flatten(params))

    exclude = cfg.get("weight_decay_exclude", ())
    decays = _takes(make, "weight_decay")
    if exclude and not decays:
        decaying = ", ".join(n for n, f in OPTIMIZERS.items() if _takes(f, "weight_decay"))
        raise UserError(
            f"config.optimizer.weight_decay_exclude: {name!r} has no weight decay. Remove the "
            f"patterns, or use one of {decaying}."
        )
    excluded = tree.first_match(exclude, paths, what="config.optimizer.weight_decay_exclude")
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
# Schedules. Steps count from 0: the first update uses schedule(0).


def make_schedule(cfg: Mapping[str, Any], *, total_steps: int, batch_size: int) -> Schedule:
    """Returns the schedule of a config section.

    Args:
      cfg: `name`, a key of `SCHEDULES`, and its keywords. Every schedule accepts two more, for
        recipes that do not depend on the batch size. `warmup_examples` replaces `warmup_steps`.
        `per_examples`: Learning rates are for this batch size and are scaled linearly to the actual
        one (Goyal et al. 2017; 256 in TVL); 0 does not scale.
      total_steps: Number of updates, the default end of the schedule.
      batch_size: Global batch size.

    Raises:
      UserError: An unknown or missing name or key, or a value out of range.
    """
    cfg = dict(cfg)
    name = cfg.pop("name", None)
    if name is None:
        raise UserError(
            f"config.optimizer.schedule.name is missing. Valid: {', '.join(sorted(SCHEDULES))}."
        )
    make = choose("config.optimizer.schedule.name", name, SCHEDULES)
    if _takes(make, "total_steps"):
        cfg.setdefault("total_steps", total_steps)
    if (examples := cfg.pop("warmup_examples", None)) is not None:
        if "warmup_steps" in cfg or not _takes(make, "warmup_steps"):
            raise UserError(
                "config.optimizer.schedule.warmup_examples replaces warmup_steps. Set one of them, "
                f"in a schedule with warm-up. Keys of {name!r}: "
                f"{', '.join(config.parameters(make))}."
            )
        cfg["warmup_steps"] = math.ceil(examples / batch_size)
    if per_examples := cfg.pop("per_examples", 0):
        if per_examples < 0:
            raise UserError(
                f"config.optimizer.schedule.per_examples must be at least 0; got {per_examples}."
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
    """Half-cosines between levels, as in VATT pretraining.

    The rate increases from `warmup_from` to levels[0] in boundaries[0] steps. From step
    boundaries[i] to boundaries[i + 1] it decreases from levels[i] to levels[i + 1], and in the last
    segment to 0 at `total_steps`. If the last boundary is `total_steps`, there is no last segment,
    and the rate ends at the last level (VATT's published code returns NaN there).
    """
    if not levels or len(levels) != len(boundaries):
        raise UserError(
            "config.optimizer.schedule: stepwise_cosine needs as many boundaries as levels; got "
            f"{len(boundaries)} boundaries and {len(levels)} levels."
        )
    ends = [*boundaries[1:], total_steps]
    if list(boundaries) != sorted(set(boundaries)) or boundaries[-1] > total_steps:
        raise UserError(
            f"config.optimizer.schedule.boundaries={tuple(boundaries)} of stepwise_cosine must "
            f"increase and not exceed the {total_steps} steps of the schedule."
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
        raise UserError(f"config.optimizer.schedule.timescale must be at least 1; got {timescale}.")

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
        raise UserError(f"config.optimizer.schedule.warmup_steps must be at least 0; got {steps}.")
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
            f"config.optimizer.schedule.{name}={value} exceeds the {total_steps} steps of the run. "
            f"Decrease it (--config.optimizer.schedule.{name}=…) or increase config.total_steps."
        )


# --------------------------------------------------------------------------------------------------
# Optimizers. Each returns the whole update: what is added to the parameters.


def adam(
    schedule: Schedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Returns Adam as in optax and PyTorch."""
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
    """Returns AdamW as in optax and PyTorch: the learning rate scales the decay."""
    return optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)


def momentum(
    schedule: Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Returns SGD with momentum as in optax and PyTorch. Weight decay is added to the gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )


def keras_adam(
    schedule: Schedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Returns Adam as in Keras: `eps` is added before the second moment is bias-corrected (ε̂)."""
    return optax.chain(
        _scale_by_keras_adam(b1, b2, eps),
        optax.scale_by_learning_rate(schedule),
    )


def keras_momentum(
    schedule: Schedule, *, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """Returns SGD with momentum as in Keras: v ← momentum · v − lr · g; w ← w + v.

    With a constant learning rate it equals `momentum`. After a change of the rate, past gradients
    keep the rate of their own step.
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
    """Returns `keras_adam` with the decay of TensorFlow Addons: w ← w − weight_decay · w.

    The learning rate does not scale the decay.
    """
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
    """Returns `keras_momentum` with the decay of TensorFlow Addons: w ← w − weight_decay · w.

    The learning rate does not scale the decay.
    """
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


def separates_lookups(cfg: Mapping[str, Any]) -> bool:
    """Returns whether `clip_lookups` is 'separate'; see `make_clipping`."""
    value = cfg.get("clip_lookups", LOOKUPS[0])
    check_choice("config.optimizer.clip_lookups", value, LOOKUPS)
    return value == "separate"


def make_clipping(cfg: Mapping[str, Any], params: Any) -> Callable[..., Any] | None:
    """Returns a function that clips gradients by global norm, per group of parameters.

    VATT's fine-tuning uses one norm for the backbone and one for the classifier.

    Args:
      cfg: The section `optimizer`. `clip_groups`: (pattern, norm) pairs; a parameter belongs to the
        first pattern that matches its path. `clip_norm`: Norm of all other parameters together. A
        norm of 0 does not clip. `clip_lookups`: Whether the gradients of rows of an embedding that
        were looked up with the same id are 'summed' before they count in a norm, or each counts
        'separate'ly, as in TensorFlow. The clipped gradients are sums in both cases.
      params: Tree of arrays or shapes, for its paths.

    Returns:
      `(gradients, squares={}) -> clipped gradients`; None if nothing is clipped. `squares` has
      the sums of squares that count instead of those of the gradients at the same paths; see
      `mmjax.lookups`.

    Raises:
      UserError: A negative norm, a pattern that matches no path, an unknown `clip_lookups`, or
        `clip_lookups='separate'` without a norm.
    """
    groups = _pairs(cfg, "clip_groups")
    norms = [*(norm for _, norm in groups), cfg.get("clip_norm", 0.0)]
    if any(norm < 0 for norm in norms):
        raise UserError(
            "config.optimizer.clip_norm and the norms of clip_groups must be at least 0 (no "
            f"clipping); got {norms}."
        )
    matched = tree.first_match(
        [pattern for pattern, _ in groups],
        list(tree.flatten(params)),
        what="config.optimizer.clip_groups",
    )

    separate = separates_lookups(cfg)
    if not any(norms):
        if separate:
            raise UserError(
                "config.optimizer.clip_lookups='separate' needs a norm to clip to. Set "
                "config.optimizer.clip_norm, or config.optimizer.clip_lookups='summed'."
            )
        return None

    def clip(grads, squares=types.MappingProxyType({})):
        named = tree.flatten(grads)
        scales = {}
        for number, limit in enumerate(norms):
            members = {
                path: leaf
                for path, leaf in named.items()
                if (len(groups) if matched[path] is None else matched[path]) == number
            }
            if limit and members:
                norm = _norm(members, squares)
                # 1 up to the limit, and no division by a norm of 0.
                scale = limit / jnp.maximum(norm, limit)
                scales |= dict.fromkeys(members, scale)
        return tree.map_named(
            lambda path, g: (g * scales[path]).astype(g.dtype) if path in scales else g, grads
        )

    return clip


def _norm(members: Mapping[str, jax.Array], squares: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the global norm; `squares` replaces the sums of squares of some members."""
    norm = optax.global_norm({path: leaf for path, leaf in members.items() if path not in squares})
    replaced = [squares[path] for path in members if path in squares]
    return jnp.sqrt(norm**2 + sum(replaced)) if replaced else norm


def _multiply_updates(
    multipliers: Sequence[tuple[str, float]], paths: Sequence[str]
) -> optax.GradientTransformation:
    matched = tree.first_match(
        [pattern for pattern, _ in multipliers], paths, what="config.optimizer.lr_multipliers"
    )
    factors = {path: multipliers[i][1] for path, i in matched.items() if i is not None}
    return optax.stateless(
        lambda updates, _: tree.map_named(lambda path, u: u * factors.get(path, 1.0), updates)
    )


def _pairs(cfg: Mapping[str, Any], key: str) -> list[tuple[str, float]]:
    """Returns (pattern, number) pairs of a section."""
    pairs = cfg.get(key, ())
    for pair in pairs if isinstance(pairs, list | tuple) else [pairs]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise UserError(
                f"config.optimizer.{key} must be (pattern, number) pairs, for example "
                f"(('^video/', 0.1),); got {pair!r} in {pairs!r}."
            )
    return [(pattern, float(number)) for pattern, number in pairs]


def _takes(function: Callable[..., Any], keyword: str) -> bool:
    return keyword in config.parameters(function)
