"""What PyTorch's files hold: what becomes our arrays, what is left over, and what is wrong."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmjax.convert.problems import is_statistic, listing
from mmjax.errors import UserError
from mmjax.formats import torch_reader
from mmjax.formats.name_rules import Leaf, Rule, Rules, keys_of, match_keys, with_prefix

UNKNOWN = "unknown, in the model"
EARLIER = "left out, an earlier file has it"
OPTIMIZER = "optimizer state"
_OPTIMIZER = re.compile(r"(^|\.)optimizer(_states)?\.")
_STEP = re.compile(r"optimizer(_states\.\d+)?\.state\.\d+\.step|global_step")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a file names the parts of a model.

    Attributes:
      parts: {part: its kind}.
      rules: of whole names and paths.
      what: what an array is that no rule knows: a class, `UNKNOWN` if it is of the model.
    """

    parts: dict[str, str]
    rules: Rules
    what: Callable[[str], str]


@dataclasses.dataclass
class Contents:
    """What one or several files hold.

    Attributes:
      entries: {key: array or other value}, all there are. A key is a name; of several files the
        file's, a colon and a name.
      parts: of the model, {part: its kind}.
      leaves: {our path: what it is made of}; statistics of BatchNorm have no `extra/` here.
      leftovers: {key: what it is} for keys that no leaf is made of.
      problems: {key: what is wrong}.
      step: training steps, as the file counts them; else 0.
      rules: of the keys.
    """

    entries: dict[str, Any]
    parts: dict[str, str]
    leaves: dict[str, Leaf]
    unused_keys: dict[str, str]
    problems: dict[str, str]
    step: int
    rules: list[Rule] = dataclasses.field(default_factory=list)

    def names(self, path: str, shape: Sequence[int]) -> list[str]:
        """The keys that make up our array of this path and shape; the path itself if none do."""
        return keys_of(path, shape[0] if shape else 1, self.rules) or [path]

    def arrays(self) -> dict[str, np.ndarray]:
        """{key: array} of the entries that are."""
        return {k: x for k, x in self.entries.items() if isinstance(x, np.ndarray)}

    def unknown(self) -> list[str]:
        """Keys of arrays in the model that mmjax has no array for."""
        return [key for key, what in self.unused_keys.items() if what == UNKNOWN]

    def values(self, source: str) -> dict[str, np.ndarray]:
        """{path: array} as `mmjax.init_from.load_params` gives them: statistics below `extra/`.

        Arrays in the model that have no name with us stand under their own.

        Args:
          source: the file, for messages.

        Raises:
          UserError: the array of some layer is missing or has another shape.
        """
        if self.problems:
            raise UserError(f"{source}:\n{listing(self.problems)}")
        arrays = self.arrays()
        leaves = {
            f"extra/{path}" if is_statistic(path) else path: leaf.read(arrays)
            for path, leaf in self.leaves.items()
        }
        return leaves | {key: arrays[key] for key in self.unknown()}


def read(
    source: str, find: Callable[[Sequence[str]], Layout | None], *, otherwise: str
) -> Contents:
    """Sorts the entries of one file.

    Args:
      source: the file.
      find: the layout of a file with arrays of these names; None if it is none.
      otherwise: what the file then holds not, and advice, with {names} for some that it has.

    Raises:
      UserError: it cannot be read, or there is no layout.
    """
    entries = torch_reader.entries(source)
    arrays = {name: x for name, x in entries.items() if isinstance(x, np.ndarray)}
    try:
        layout = find(list(arrays))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if layout is None:
        names = ", ".join(list(arrays)[:4]) or "none"
        raise UserError(f"{source} {otherwise.format(names=names)}")
    shapes = {name: array.shape for name, array in arrays.items()}
    leaves, problems, rest = match_keys(shapes, layout.rules)
    unused_keys = {
        name: OPTIMIZER if _OPTIMIZER.search(name) else layout.what(name) for name in rest
    }
    unused_keys |= {k: f"value: {_shown(v)}" for k, v in entries.items() if k not in arrays}
    steps = [
        int(value)
        for name, value in entries.items()
        if _STEP.fullmatch(name) and isinstance(value, int | np.ndarray) and np.size(value) == 1
    ]
    step = max(steps, default=0)
    return Contents(entries, layout.parts, leaves, unused_keys, problems, step, list(layout.rules))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def together(
    sources: Sequence[str], read_one: Callable[[str], Contents], *, shared: Sequence[str] = ()
) -> Contents:
    """Sorts the entries of several files.

    Args:
      sources: the files.
      read_one: sorts those of one.
      shared: parts that several may have; the first file's arrays count.

    Raises:
      UserError: what `read_one` raises; or two files have the same part.
    """
    whole = Contents({}, {}, {}, {}, {}, 0)
    names = [pathlib.Path(source).name for source in sources]
    labels = names if len(set(names)) == len(names) else list(sources)
    of: dict[str, str] = {}
    for source, label in zip(sources, labels, strict=True):
        one = read_one(source)
        prefix = f"{label}: " if len(sources) > 1 else ""
        for part, kind in one.parts.items():
            if part in of and part not in shared:
                raise UserError(f"{of[part]} and {source} both hold a tower for {part}. Give one.")
            of.setdefault(part, source)
            whole.parts.setdefault(part, kind)
        for path, leaf in one.leaves.items():
            keys = tuple(prefix + key for key in leaf.keys)
            if path in whole.leaves:
                whole.unused_keys |= dict.fromkeys(keys, EARLIER)
            else:
                whole.leaves[path] = dataclasses.replace(leaf, keys=keys)
        whole.entries |= {prefix + key: value for key, value in one.entries.items()}
        whole.unused_keys |= {prefix + key: what for key, what in one.unused_keys.items()}
        whole.problems |= {prefix + key: what for key, what in one.problems.items()}
        whole.step = max(whole.step, one.step)
        whole.rules += with_prefix(one.rules, key=prefix)
    return whole
