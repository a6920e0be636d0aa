"""Renames arrays between PyTorch's names and mmjax's paths, with tables that work both ways.

This module only handles names and array layouts; it reads no files. mmjax stacks the arrays of all
layers, where PyTorch has one array per layer. PyTorch may store query, key and value in one array,
where mmjax has three.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layout:
    """An array layout in PyTorch.

    Attributes:
      ndim: Number of axes in PyTorch; None for any.
      to_jax: Function from PyTorch's array to mmjax's.
      to_torch: Its inverse.
      leading_ones: Number of leading axes of size 1 in PyTorch.
    """

    ndim: int | None
    to_jax: Callable[[np.ndarray], np.ndarray]
    to_torch: Callable[[np.ndarray], np.ndarray]
    leading_ones: int = 0


LAYOUTS: dict[str, Layout] = {
    "same": Layout(None, lambda x: x, lambda x: x),
    "dense": Layout(2, lambda x: x.T, lambda x: x.T),  # [out, in]
    "convolution": Layout(  # [out, in, height, width]
        4, lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
    ),
    "class_token": Layout(  # [1, 1, D]
        3, lambda x: x.reshape(x.shape[2:]), lambda x: x[None, None], leading_ones=2
    ),
    "positions": Layout(  # [1, N, D]
        3, lambda x: x.reshape(x.shape[1:]), lambda x: x[None], leading_ones=1
    ),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table of names.

    Attributes:
      key: PyTorch's name. {i} is the index of a layer, which is an axis of mmjax's array. {j} is an
        index that is part of both names.
      paths: Paths in mmjax. If there are several, PyTorch's array is their concatenation, in this
        order and in equal parts.
      layout: Key of `LAYOUTS`.
    """

    key: str
    paths: tuple[str, ...]
    layout: str = "same"

    def extract(self, array: np.ndarray, index: int) -> np.ndarray:
        """Returns the array of `paths[index]` from PyTorch's array."""
        if len(self.paths) > 1:
            size = len(array) // len(self.paths)
            array = array[index * size : (index + 1) * size]
        return LAYOUTS[self.layout].to_jax(array)

    def check_shape(self, shape: Sequence[int]) -> str | None:
        """Returns why PyTorch's array cannot have this shape, or None if it can."""
        layout, shape = LAYOUTS[self.layout], tuple(shape)
        if layout.ndim is not None and len(shape) != layout.ndim:
            return f"has shape {shape}; expected {layout.ndim} axes"
        if any(size != 1 for size in shape[: layout.leading_ones]):
            return f"has shape {shape}; expected it to start with {(1,) * layout.leading_ones}"
        count = len(self.paths)
        if count > 1 and (not shape or shape[0] % count):
            return f"has shape {shape}; expected a first axis that is divisible by {count}"
        return None


Rules = Sequence[Rule]


def norm(key: str, path: str) -> Rules:
    """Returns the rules of a normalization layer with scale and bias."""
    return [Rule(f"{key}.weight", (f"{path}/scale",)), Rule(f"{key}.bias", (f"{path}/bias",))]


def dense(key: str, *paths: str, weight: str = ".weight", bias: str = ".bias") -> Rules:
    """Returns the rules of a dense layer, or of several that PyTorch stores as one."""
    return [
        Rule(key + weight, tuple(f"{path}/kernel" for path in paths), "dense"),
        Rule(key + bias, tuple(f"{path}/bias" for path in paths)),
    ]


QKV = tuple(f"encoder/layers/attention/{name}" for name in ("query", "key", "value"))


def with_prefix(rules: Rules, *, key: str = "", path: str = "") -> Rules:
    """Returns the rules with prefixes for all keys and paths."""
    return [
        Rule(key + rule.key, tuple(path + each for each in rule.paths), rule.layout)
        for rule in rules
    ]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An mmjax array that can be built from PyTorch's arrays.

    Attributes:
      path: Path in mmjax.
      keys: Names of the source arrays: one per layer if `stacked`, otherwise one.
      stacked: Whether the first axis is the layer.
      shape: Shape in mmjax.
      rule: The rule that matches the keys.
      index: Index of the path in `rule.paths`.
    """

    path: str
    keys: tuple[str, ...]
    stacked: bool
    shape: tuple[int, ...]
    rule: Rule
    index: int

    def read(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the array in float32, from PyTorch's arrays by name."""
        parts = [self.rule.extract(arrays[key], self.index) for key in self.keys]
        if self.stacked:
            return np.stack([np.asarray(part, np.float32) for part in parts])
        return np.array(parts[0], np.float32, order="C")


@functools.cache
def template_pattern(template: str) -> re.Pattern:
    """Returns the pattern of a name in which {i}, {j} and {g} stand for numbers."""
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d{1,6})", re.escape(template)))


def _find(
    rules: Rules, name: str, templates: Callable[[Rule], Sequence[str]]
) -> tuple[Rule, int, dict[str, str]] | None:
    """Returns the rule with a template that `name` matches, its index, and the numbers in it."""
    for rule in rules:
        for index, template in enumerate(templates(rule)):
            if match := template_pattern(template).fullmatch(name):
                return rule, index, match.groupdict()
    return None


def match_keys(
    shapes: Mapping[str, tuple[int, ...]], rules: Rules
) -> tuple[dict[str, Leaf], dict[str, str], list[str]]:
    """Matches the names of a file with mmjax's paths.

    Args:
      shapes: {name: shape} of the file's arrays.
      rules: Names of the model's arrays.

    Returns:
      `(leaves, mismatches, unknown)`: {path: leaf}, {name: why it does not fit}, and the names
      without a rule.
    """
    matched: dict[tuple[Rule, str], dict[int | None, str]] = collections.defaultdict(dict)
    unknown, mismatches = [], {}
    for key, shape in shapes.items():
        match = _find(rules, key, lambda rule: (rule.key,))
        if match is None:
            unknown.append(key)
            continue
        rule, _, numbers = match
        if reason := rule.check_shape(shape):
            mismatches[key] = reason
            continue
        layer = int(numbers["i"]) if "i" in numbers else None
        if layer is not None and layer >= len(shapes):
            mismatches[key] = f"is layer {layer} of a file with {len(shapes)} arrays"
            continue
        matched[rule, numbers.get("j", "")][layer] = key
    depths: dict[str, int] = {}  # number of layers of each stack, by the prefix of the layer
    for (rule, _), keys in matched.items():
        if None not in keys:
            stack = rule.key.split("{i}")[0]
            depths[stack] = max(depths.get(stack, 0), 1 + max(keys))
    leaves = {}
    for (rule, number), keys in matched.items():
        stacked = None not in keys
        layers = range(depths[rule.key.split("{i}")[0]]) if stacked else (None,)
        for layer in layers:
            if layer not in keys:
                mismatches.setdefault(rule.key.replace("{i}", str(layer)), "is missing")
        ordered = tuple(keys[layer] for layer in layers if layer in keys)
        first = shapes[ordered[0]]
        for key in ordered:
            if shapes[key] != first:
                mismatches[key] = f"has shape {shapes[key]}; the first layer has {first}"
        for index, template in enumerate(rule.paths):
            path = template.replace("{j}", number)
            shape = rule.extract(np.broadcast_to(np.float32(0), first), index).shape
            shape = (len(layers), *shape) if stacked else shape
            leaves[path] = Leaf(path, ordered, stacked, shape, rule, index)
    return leaves, mismatches, unknown


def keys_of(path: str, num_layers: int, rules: Rules) -> list[str]:
    """Returns PyTorch's names for a path, one per layer of a stacked array; [] without a rule."""
    match = _find(rules, path, lambda rule: rule.paths)
    if match is None:
        return []
    key = match[0].key.replace("{j}", match[2].get("j", ""))
    return [key.replace("{i}", str(i)) for i in range(num_layers)] if "{i}" in key else [key]


def to_torch(arrays: Mapping[str, np.ndarray], rules: Rules) -> dict[str, np.ndarray]:
    """Returns {PyTorch's name: array} from {path: array}.

    Raises:
      UserError: A path has no rule, or one of several arrays that PyTorch stores as one is missing.
    """
    result: dict[str, np.ndarray] = {}
    done: set[str] = set()
    for path in arrays:
        if path in done:
            continue
        match = _find(rules, path, lambda rule: rule.paths)
        if match is None:
            raise UserError(f"Cannot export {path}: the PyTorch model has no such array.")
        rule, _, numbers = match
        group = [each.replace("{j}", numbers.get("j", "")) for each in rule.paths]
        if missing := [each for each in group if each not in arrays]:
            raise UserError(
                f"Cannot export {path} without {missing[0]}: PyTorch stores them as one array."
            )
        done.update(group)
        key = rule.key.replace("{j}", numbers.get("j", ""))
        values = [np.asarray(arrays[each]) for each in group]
        for i in range(len(values[0])) if "{i}" in key else (None,):
            layer = values if i is None else [array[i] for array in values]
            parts = [LAYOUTS[rule.layout].to_torch(array) for array in layer]
            joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
            result[key.replace("{i}", str(i))] = np.ascontiguousarray(joined).reshape(joined.shape)
    return result


def prefixes(names: Iterable[str], ending: str) -> list[str]:
    """Returns the prefixes of the names that end with `ending`: '' or ending with a dot."""
    starts = [name.removesuffix(ending) for name in names if name.endswith(ending)]
    return [prefix for prefix in starts if not prefix or prefix.endswith(".")]
