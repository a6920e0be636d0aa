"""Path names of the leaves of nested dicts, and regular-expression rules over them.

Sharding, freezing, weight decay, per-path learning rates, partial loading and reports refer to a
leaf by its '/'-joined path, for example `params/video/encoder/layers/attention/query/kernel`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mmjax.errors import UserError


def path_name(path: Sequence[Any]) -> str:
    """Returns a key path of `jax.tree_util` as a '/'-joined name."""
    parts = []
    for key in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
    return "/".join(parts)


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} in the order of the tree."""
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(leaves: dict[str, Any]) -> dict:
    """Returns nested dicts from {path: leaf}; the inverse of `flatten` for trees of dicts."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Like `jax.tree.map`, but the function receives the path of the leaf first."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_name(path), *leaves), tree, *rest
    )


def first_match(
    patterns: Sequence[str],
    paths: Sequence[str],
    *,
    what: str,
    every_path: bool = False,
    every_pattern: bool = True,
) -> dict[str, int | None]:
    """Returns {path: index of the first pattern that matches it (`re.search`), or None}.

    Args:
      patterns: Regular expressions, in order of precedence.
      paths: Paths of leaves.
      what: Name of these rules in error messages, for example 'config.optimizer.frozen'.
      every_path: Whether each path must match a pattern.
      every_pattern: Whether each pattern must match a path. A pattern whose paths all match an
        earlier one is accepted.

    Raises:
      UserError: An unmatched path, an unused pattern, or an invalid regular expression.
    """
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise UserError(
            f"{what}: {error.pattern!r} is not a valid regular expression: {error}."
        ) from error
    result = {
        path: next((i for i, rule in enumerate(compiled) if rule.search(path)), None)
        for path in paths
    }
    if every_pattern:
        for rule in compiled:
            if not any(rule.search(path) for path in paths):
                examples = ", ".join(list(paths)[:8])
                raise UserError(
                    f"{what}: the pattern {rule.pattern!r} matches no path. Example paths: "
                    f"{examples} …"
                )
    missing = [path for path, rule in result.items() if rule is None]
    if every_path and missing:
        raise UserError(f"{what}: no pattern matches {', '.join(missing[:8])}.")
    return result
