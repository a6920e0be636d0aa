"""Names for the leaves of nested dicts, and rules (regular expressions) over these names.

Sharding, freezing, weight decay, per-path learning rates, partial loading and reports all speak of
a leaf by its '/'-joined path, e.g. `params/video/encoder/layers/attention/query/kernel`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from mmjax.errors import UserError


def path_name(path: Sequence[Any]) -> str:
    """A key path of `jax.tree_util` as one '/'-joined name."""
    parts = []
    for key in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(key, attribute):
                parts.append(str(getattr(key, attribute)))
                break
    return "/".join(parts)


def flatten(tree: Any) -> dict[str, Any]:
    """{path: leaf} in the tree's own order."""
    return {path_name(p): leaf for p, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def unflatten(leaves: dict[str, Any]) -> dict:
    """Nested dicts from {path: leaf}; the inverse of `flatten` for trees of dicts."""
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function gets the leaf's path first."""
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
    """For each path the number of the first pattern found in it (`re.search`), or None.

    Args:
      patterns: regular expressions, in order of precedence.
      paths: names of leaves.
      what: how errors call these rules, e.g. 'optimizer.frozen'.
      every_path: fail if a path has no pattern.
      every_pattern: fail if a pattern is found in no path at all (one that only an earlier pattern
        shadows is accepted).

    Raises:
      UserError: an unmatched path, an unused pattern, or one that is not a regular expression.
    """
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise UserError(
            f"{what}: {error.pattern!r} is not a regular expression: {error}"
        ) from error
    result = {
        path: next((i for i, rule in enumerate(compiled) if rule.search(path)), None)
        for path in paths
    }
    if every_pattern:
        for rule in compiled:
            if not any(rule.search(path) for path in paths):
                some = ", ".join(list(paths)[:8])
                raise UserError(
                    f"{what}: the pattern {rule.pattern!r} matches nothing. Paths look like: "
                    f"{some} …"
                )
    missing = [path for path, rule in result.items() if rule is None]
    if every_path and missing:
        raise UserError(f"{what}: no pattern matches {', '.join(missing[:8])}.")
    return result
