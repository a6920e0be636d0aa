"""Groups of parameters, each with its own optimizer and schedule.

    optimizer = dict(
        groups=dict(
            backbone=dict(
                pattern="^backbone/", name="adam", schedule=dict(name="constant", base=1e-5),
            ),
            head=dict(pattern="^head/", name="sgd", schedule=dict(name="poly", base=0.1)),
        ),
        clip_norm=1.0,
    )

Every trainable parameter belongs to exactly one group. Updates are those of a run that trains only
this group. Gradients are clipped before they are divided: `clip_norm` limits all of them together,
and `clip_groups` can limit those of a group.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from mmjax import tree
from mmjax.errors import UserError
from mmjax.optim.schedules import Schedule

# (section, parameters, key of the section) -> (rules to chain, schedule).
MakeRule = Callable[
    [Mapping[str, Any], Any, str], tuple[list[optax.GradientTransformation], Schedule]
]


def make_groups(
    sections: Any, params: Any, make: MakeRule, *, clipping: Sequence[str]
) -> tuple[list[optax.GradientTransformation], Schedule]:
    """Returns an optimizer that updates each group with its own rule, and the first schedule.

    Groups are ordered by name, because configs do not keep the order of keys.

    Args:
      sections: {name of a group: its section}: `pattern`, a regular expression of parameter paths,
        and the keys of an optimizer.
      params: Tree of arrays or shapes; None for frozen parameters.
      make: Builds the rule of one group.
      clipping: Keys that are not allowed in a group.

    Raises:
      UserError: No group, a group without `pattern` or with a key of clipping, a pattern that
        matches no trainable parameter, or a parameter that does not belong to exactly one group.
    """
    if not isinstance(sections, Mapping) or not sections:
        raise UserError(
            "config.optimizer.groups must be {name: section}, for example dict(head=dict(pattern="
            f"'^head/', name='adam', schedule=dict(name='constant', base=1e-4))); got {sections!r}."
        )
    patterns = {name: _pattern(name, sections[name], clipping) for name in sorted(sections)}
    group_of = _assign(patterns, list(tree.flatten(params)))
    rules, schedules = {}, []
    for name in patterns:
        section = {key: value for key, value in sections[name].items() if key != "pattern"}
        own = tree.map_named(
            lambda path, leaf, name=name: leaf if group_of[path] == name else None, params
        )
        chain, schedule = make(section, own, f"optimizer.groups.{name}")
        rules[name] = optax.chain(*chain)
        schedules.append(schedule)
    labels = tree.map_named(lambda path, _: group_of[path], params)
    return [optax.partition(rules, labels)], schedules[0]


def _pattern(name: str, section: Any, clipping: Sequence[str]) -> str:
    """Returns the pattern of a group, after checks of its section."""
    where = f"config.optimizer.groups.{name}"
    pattern = section.get("pattern") if isinstance(section, Mapping) else None
    if not isinstance(pattern, str):
        raise UserError(
            f"{where} must be a section with pattern, a regular expression of parameter paths such "
            f"as '^head/'; got {section!r}."
        )
    for key in clipping:
        if key in section:
            raise UserError(
                f"{where}.{key}: a group cannot clip by itself. Set config.optimizer.{key} for all "
                "parameters, or config.optimizer.clip_groups=((pattern, norm), …) for some."
            )
    return pattern


def _assign(patterns: Mapping[str, str], paths: Sequence[str]) -> dict[str, str]:
    """Returns {path: name of its group}."""
    for name, pattern in patterns.items():  # valid, and used
        tree.first_match([pattern], paths, what=f"config.optimizer.groups.{name}.pattern")
    result = {}
    for path in paths:
        names = [name for name, pattern in patterns.items() if re.search(pattern, path)]
        if len(names) != 1:
            belongs = f"both {' and '.join(names)}" if names else "none of them"
            listed = ", ".join(f"{name} ({pattern!r})" for name, pattern in patterns.items())
            raise UserError(
                f"config.optimizer.groups: the trainable parameter {path} must belong to exactly "
                f"one of the groups {listed}, but belongs to {belongs}. Change the patterns, or "
                "freeze the parameter with config.optimizer.frozen."
            )
        result[path] = names[0]
    return result
