"""From the config section `optimizer` to an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from mmjax import config, tree
from mmjax.errors import UserError, choose
from mmjax.optim import groups
from mmjax.optim.clipping import make_clipping, pattern_pairs
from mmjax.optim.optimizers import OPTIMIZERS
from mmjax.optim.schedules import SCHEDULES, CyclingSchedule, Schedule, make_schedule, prefixed

_COMMON = ("name", "schedule", "lr_multipliers", "weight_decay_exclude")
_CLIPPING = ("clip_norm", "clip_groups", "clip_lookups")


def make_optimizer(
    cfg: Mapping[str, Any], params: Any, *, total_steps: int, batch_size: int, clip: bool = True
) -> tuple[optax.GradientTransformation, Schedule]:
    """Returns the optimizer of a config section and its schedule (update -> learning rate).

    Args:
      cfg: The section. `name`: A key of `OPTIMIZERS`; its keywords are further keys of the
        section. `schedule`: A dict of `name`, a key of `SCHEDULES`, and its keywords.
        `weight_decay_exclude`: Patterns of parameter paths without weight decay. `lr_multipliers`:
        (pattern, factor) pairs; the factor of the first pattern that matches a path multiplies its
        complete update, including weight decay. `clip_norm`, `clip_groups`,
        `clip_lookups`: See `make_clipping`. `groups`: {name: section of its own with `pattern`};
        replaces all keys except those of clipping. See `mmjax.optim.groups`.
      params: Tree of arrays or shapes, for its paths.
      total_steps: Number of updates, the default end of schedules.
      batch_size: Number of examples per update, for schedules in units of examples.
      clip: Whether to clip; False if the caller clips parts of a batch with `make_clipping`.

    Returns:
      The optimizer and its schedule; with groups, that of the first group by name.

    Raises:
      UserError: An unknown or missing name or key, a value out of range, a pattern that matches
        no path, or a parameter that does not belong to exactly one group.
    """

    def make(section, params, where):
        return _make_rule(
            section, params, where=where, total_steps=total_steps, batch_size=batch_size
        )

    if "groups" in cfg:
        config.check_keys(cfg, ("groups", *_CLIPPING), "optimizer", owner="groups")
        rule, schedule = groups.make_groups(cfg["groups"], params, make, clipping=_CLIPPING)
    else:
        own = {key: value for key, value in cfg.items() if key not in _CLIPPING}
        rule, schedule = make(own, params, "optimizer")
    clipping = make_clipping(cfg, params)
    chain = [optax.stateless(lambda grads, _: clipping(grads))] if clip and clipping else []
    return optax.chain(*chain, *rule), schedule


def _make_rule(
    cfg: Mapping[str, Any], params: Any, *, where: str, total_steps: int, batch_size: int
) -> tuple[list[optax.GradientTransformation], Schedule]:
    """Returns an update rule with its learning-rate factors, to chain, and its schedule.

    Args:
      cfg: A section as in `make_optimizer`, without clipping and groups.
      params: Tree of arrays or shapes, for its paths.
      where: Key of the section, for error messages.
      total_steps: Number of updates.
      batch_size: Number of examples per update.
    """
    name = cfg.get("name")
    if name is None:
        raise UserError(f"config.{where}.name is missing. Valid: {', '.join(sorted(OPTIMIZERS))}.")
    make = choose(f"config.{where}.name", name, OPTIMIZERS)
    if "schedule" not in cfg:
        raise UserError(
            f"config.{where}.schedule is missing. Set it to, for example, dict(name='constant', "
            f"base=1e-4). Valid names: {', '.join(sorted(SCHEDULES))}."
        )
    schedule = make_schedule(
        cfg["schedule"],
        total_steps=total_steps,
        batch_size=batch_size,
        where=f"{where}.schedule",
    )
    own = {key: value for key, value in cfg.items() if key not in _COMMON}
    keywords = config.keywords(
        make,
        own,
        where,
        provided=("schedule", "mask", "cycle"),
        also=(*_COMMON, *(_CLIPPING if where == "optimizer" else ())),
        owner=name,
    )
    paths = list(tree.flatten(params))
    exclude = cfg.get("weight_decay_exclude", ())
    if exclude and not _takes(make, "weight_decay"):
        raise UserError(
            f"config.{where}.weight_decay_exclude: {name!r} has no weight decay. Remove the "
            f"patterns, or use one of {_which_take('weight_decay')}."
        )
    excluded = tree.first_match(exclude, paths, what=f"config.{where}.weight_decay_exclude")
    if exclude:
        keywords["mask"] = lambda tree_: tree.map_named(lambda p, _: excluded[p] is None, tree_)
    if isinstance(schedule, CyclingSchedule):
        _check_cycle(make, name, cfg, where)
        keywords["cycle"] = schedule.momentum
    with prefixed(f"config.{where}."):
        rule = make(schedule, **keywords)
    multipliers = pattern_pairs(cfg, "lr_multipliers", where)
    factors = [_multiply_updates(multipliers, paths, where)] if multipliers else []
    return [rule, *factors], schedule


def _check_cycle(make: Callable[..., Any], name: str, cfg: Mapping[str, Any], where: str) -> None:
    """Raises UserError unless the momentum of an optimizer can be left to the schedule."""
    off = f"config.{where}.schedule.cycle_momentum=False"
    if not _takes(make, "cycle"):
        raise UserError(
            f"config.{where}.schedule changes the momentum of each update, which {name!r} does not "
            f"support. Use one of {_which_take('cycle')}, or set {off}."
        )
    for key in ("momentum", "b1"):
        if key in cfg:
            raise UserError(
                f"config.{where}.{key}={cfg[key]} has no effect: config.{where}.schedule "
                f"determines it. Remove it, or set {off}."
            )


def _multiply_updates(
    multipliers: Sequence[tuple[str, float]], paths: Sequence[str], where: str
) -> optax.GradientTransformation:
    matched = tree.first_match(
        [pattern for pattern, _ in multipliers], paths, what=f"config.{where}.lr_multipliers"
    )
    factors = {path: multipliers[i][1] for path, i in matched.items() if i is not None}
    return optax.stateless(
        lambda updates, _: tree.map_named(lambda path, u: u * factors.get(path, 1.0), updates)
    )


def _takes(function: Callable[..., Any], keyword: str) -> bool:
    return keyword in config.parameters(function)


def _which_take(keyword: str) -> str:
    return ", ".join(name for name, make in OPTIMIZERS.items() if _takes(make, keyword))
