"""Compares the keys of a source with the arrays of a model, for all formats of checkpoints."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmjax import tree
from mmjax.state import ModelDef

_STATISTIC = re.compile(r"norm(/\d+)?/(mean|var)$")


def is_statistic(path: str) -> bool:
    """Returns whether an array is a BatchNorm statistic, which is part of `extra` in a state."""
    return _STATISTIC.search(path) is not None


def state_path(path: str) -> str:
    """Returns the path of an array in a state: statistics are below `extra/`."""
    return f"extra/{path}" if is_statistic(path) else path


def format_mismatches(mismatches: Mapping[str, str], limit: int = 12) -> str:
    """Returns one line for each of the first `limit` mismatches, {key or path: description}."""
    lines = [f"  {name} {text}" for name, text in list(mismatches.items())[:limit]]
    more = [f"  … and {len(mismatches) - limit} more"] if len(mismatches) > limit else []
    return "\n".join(lines + more)


def model_shapes(model: ModelDef) -> dict[str, tuple[int, ...]]:
    """Returns {path: shape} of a model's arrays; statistics have no `extra/` in front."""
    leaves = tree.flatten(model.params) | tree.flatten(model.extra)
    return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def targets_of_keys(leaves: Mapping[str, Any], unused_keys: Mapping[str, str]) -> dict[str, str]:
    """Returns the target of each key: a path with the layer in brackets, or why it is unused.

    Args:
      leaves: {path: leaf}, where a leaf has `keys` and `stacked`.
      unused_keys: {key: reason}.
    """
    paths: dict[str, list[str]] = collections.defaultdict(list)
    for path, leaf in leaves.items():
        for layer, key in enumerate(leaf.keys):
            paths[key].append(f"{path}[{layer}]" if leaf.stacked else path)
    return {key: _joined(names) for key, names in paths.items()} | dict(unused_keys)


def _joined(paths: Sequence[str]) -> str:
    """Returns one name for several paths of the same length: 'a/{b,c}/d'."""
    if len(paths) == 1:
        return paths[0]
    parts = [path.split("/") for path in paths]
    columns = [set(column) for column in zip(*parts, strict=True)]
    return "/".join(
        part if len(names) == 1 else "{" + ",".join(p[i] for p in parts) + "}"
        for i, (part, names) in enumerate(zip(parts[0], columns, strict=True))
    )


def compare(
    model: ModelDef,
    leaves: Mapping[str, Any],
    mismatches: Mapping[str, str],
    keys_of: Callable[[str, tuple[int, ...]], Sequence[str]],
) -> tuple[dict[str, str], list[str]]:
    """Compares the arrays of a source with those of a model.

    Args:
      model: The model that the source should fill.
      leaves: {path: leaf}, where a leaf has `keys` and `shape`.
      mismatches: {key: description} of known mismatches.
      keys_of: Function from a path and shape to the keys of that array.

    Returns:
      All mismatches, and the paths of the model's arrays that the source does not fill.
    """
    mismatches, unfilled = dict(mismatches), []
    target = model_shapes(model)
    for path, shape in target.items():
        leaf, keys = leaves.get(path), keys_of(path, shape)
        if leaf is None:
            text = f"is missing; required for {path} {shape}"
            mismatches = dict.fromkeys(keys, text) | mismatches
        elif leaf.shape != shape:
            text = f"gives {path} the shape {leaf.shape}; expected {shape}"
            mismatches.setdefault(leaf.keys[0], text)
        if leaf is None or leaf.shape != shape or any(key in mismatches for key in keys):
            unfilled.append(path)
    for path, leaf in leaves.items():
        if path not in target:
            text = f"belongs to {path}, which the model does not have"
            mismatches |= dict.fromkeys(leaf.keys, text)
    return mismatches, unfilled
