"""PyTorch's names and layouts of arrays for ours, from tables that are read in both directions.

Pure naming: nothing here reads a file. Where we have one array for all layers, PyTorch has one for
each; where we have three (query, key, value), it may have one with all their rows.
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
    """How an array of theirs lies: its axes, what makes it ours, and back."""

    ndim: int | None
    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


LAYOUTS: dict[str, Layout] = {
    "as it is": Layout(None, lambda x: x, lambda x: x),
    "dense": Layout(2, lambda x: x.T, lambda x: x.T),  # [out, in]
    "convolution": Layout(  # [out, in, rows, columns]
        4, lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
    ),
    "token": Layout(3, lambda x: x.reshape(x.shape[2:]), lambda x: x[None, None]),  # [1, 1, D]
    "table": Layout(3, lambda x: x.reshape(x.shape[1:]), lambda x: x[None]),  # [1, N, D]
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
      theirs: their name; {i} is a layer that is an axis of our arrays, {j} a number of both names.
      ours: our paths; several share the rows of theirs in equal parts, in this order.
      layout: key of `LAYOUTS`.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: str = "as it is"

    def piece(self, array: np.ndarray, part: int) -> np.ndarray:
        """What `ours[part]` gets of an array of theirs."""
        rows = len(array) // len(self.ours) if len(self.ours) > 1 else None
        if rows is not None:
            array = array[part * rows : (part + 1) * rows]
        return LAYOUTS[self.layout].to_ours(array)

    def problem(self, shape: Sequence[int]) -> str | None:
        """What is wrong with the shape of an array of theirs; None if nothing is."""
        ndim = LAYOUTS[self.layout].ndim
        if ndim is not None and len(shape) != ndim:
            return f"has shape {tuple(shape)}, not one of {ndim} axes"
        ones = {"token": 2, "table": 1}.get(self.layout, 0)
        if any(size != 1 for size in shape[:ones]):
            return f"has shape {tuple(shape)}, which should begin with {(1,) * ones}"
        if len(self.ours) > 1 and (not shape or shape[0] % len(self.ours)):
            return f"has shape {tuple(shape)}, not rows for {len(self.ours)} arrays alike"
        return None


Rules = Sequence[Rule]


def norm(theirs: str, ours: str) -> Rules:
    """The rules of a LayerNorm."""
    return [Rule(f"{theirs}.weight", (f"{ours}/scale",)), Rule(f"{theirs}.bias", (f"{ours}/bias",))]


def dense(theirs: str, *ours: str, weight: str = ".weight", bias: str = ".bias") -> Rules:
    """The rules of a dense layer, or of several whose rows theirs has together."""
    return [
        Rule(theirs + weight, tuple(f"{path}/kernel" for path in ours), "dense"),
        Rule(theirs + bias, tuple(f"{path}/bias" for path in ours)),
    ]


QKV = tuple(f"encoder/layers/attention/{name}" for name in ("query", "key", "value"))


def below(rules: Rules, *, theirs: str = "", ours: str = "") -> Rules:
    """The rules with these in front of the names and paths."""
    return [
        Rule(theirs + rule.theirs, tuple(ours + path for path in rule.ours), rule.layout)
        for rule in rules
    ]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our arrays: the names it is made of (one for each layer if `stacked`), its shape."""

    path: str
    keys: tuple[str, ...]
    stacked: bool
    shape: tuple[int, ...]
    rule: Rule
    part: int

    def read(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The array, float32."""
        pieces = [self.rule.piece(arrays[key], self.part) for key in self.keys]
        if self.stacked:
            return np.stack([np.asarray(piece, np.float32) for piece in pieces])
        return np.array(pieces[0], np.float32, order="C")


@functools.cache
def _pattern(template: str) -> re.Pattern:
    return re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(template)))


def _find(
    rules: Rules, key: str, names: Callable[[Rule], Sequence[str]]
) -> tuple[Rule, int, dict[str, str]] | None:
    """The rule one of whose `names` is `key`, which one, and the numbers in it."""
    for rule in rules:
        for part, template in enumerate(names(rule)):
            if match := _pattern(template).fullmatch(key):
                return rule, part, match.groupdict()
    return None


def sort(
    shapes: Mapping[str, tuple[int, ...]], rules: Rules
) -> tuple[dict[str, Leaf], dict[str, str], list[str]]:
    """Which of our arrays the names make up.

    Args:
      shapes: {name: shape}.
      rules: of the parts of the model.

    Returns:
      `({our path: leaf}, {name: what is wrong}, names that no rule knows)`.
    """
    found: dict[tuple[Rule, str], dict[int | None, str]] = collections.defaultdict(dict)
    unknown, problems = [], {}
    for key, shape in shapes.items():
        match = _find(rules, key, lambda rule: (rule.theirs,))
        if match is None:
            unknown.append(key)
            continue
        rule, _, numbers = match
        if problem := rule.problem(shape):
            problems[key] = problem
            continue
        layer = int(numbers["i"]) if "i" in numbers else None
        found[rule, numbers.get("j", "")][layer] = key
    depths: dict[str, int] = {}  # of the stacks of layers, by what stands before the layer
    for (rule, _), keys in found.items():
        if None not in keys:
            stack = rule.theirs.split("{i}")[0]
            depths[stack] = max(depths.get(stack, 0), 1 + max(keys))
    leaves = {}
    for (rule, number), keys in found.items():
        stacked = None not in keys
        layers = range(depths[rule.theirs.split("{i}")[0]]) if stacked else (None,)
        for layer in layers:
            if layer not in keys:
                problems.setdefault(rule.theirs.replace("{i}", str(layer)), "missing")
        ordered = tuple(keys[layer] for layer in layers if layer in keys)
        first = shapes[ordered[0]]
        for key in ordered:
            if shapes[key] != first:
                problems[key] = f"has shape {shapes[key]}, that of its first layer is {first}"
        for part, ours in enumerate(rule.ours):
            path = ours.replace("{j}", number)
            shape = rule.piece(np.broadcast_to(np.float32(0), first), part).shape
            shape = (len(layers), *shape) if stacked else shape
            leaves[path] = Leaf(path, ordered, stacked, shape, rule, part)
    return leaves, problems, unknown


def names_of(path: str, layers: int, rules: Rules) -> list[str]:
    """Their names for one of our paths, all layers' of a stacked array; [] if there is none."""
    match = _find(rules, path, lambda rule: rule.ours)
    if match is None:
        return []
    name = match[0].theirs.replace("{j}", match[2].get("j", ""))
    return [name.replace("{i}", str(i)) for i in range(layers)] if "{i}" in name else [name]


def export(arrays: Mapping[str, np.ndarray], rules: Rules) -> dict[str, np.ndarray]:
    """Arrays under their names, from ours by path.

    Raises:
      UserError: a path without a rule, or some but not all of the paths that share an array.
    """
    out: dict[str, np.ndarray] = {}
    done: set[str] = set()
    for path in arrays:
        if path in done:
            continue
        match = _find(rules, path, lambda rule: rule.ours)
        if match is None:
            raise UserError(f"PyTorch's model has no array for {path}.")
        rule, _, numbers = match
        together = [ours.replace("{j}", numbers.get("j", "")) for ours in rule.ours]
        if missing := [one for one in together if one not in arrays]:
            raise UserError(f"{path} cannot be written without {missing[0]}.")
        done.update(together)
        name = rule.theirs.replace("{j}", numbers.get("j", ""))
        whole = [np.asarray(arrays[one]) for one in together]
        for i in range(len(whole[0])) if "{i}" in name else (None,):
            layer = whole if i is None else [array[i] for array in whole]
            theirs = [LAYOUTS[rule.layout].to_theirs(array) for array in layer]
            joined = np.concatenate(theirs) if len(theirs) > 1 else theirs[0]
            out[name.replace("{i}", str(i))] = np.ascontiguousarray(joined).reshape(joined.shape)
    return out


def prefixes(names: Iterable[str], ending: str) -> list[str]:
    """What stands before `ending` in the names that end with it, from a dot on."""
    found = [name.removesuffix(ending) for name in names if name.endswith(ending)]
    return [prefix for prefix in found if not prefix or prefix.endswith(".")]
