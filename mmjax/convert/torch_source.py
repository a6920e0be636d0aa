"""Reads PyTorch files and matches their entries with mmjax's arrays."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmjax.convert.matching import format_mismatches, state_path
from mmjax.errors import UserError
from mmjax.formats import torch_reader
from mmjax.formats.name_rules import Leaf, Rule, Rules, keys_of, match_keys, with_prefix

# Reasons why an entry is unused.
UNKNOWN = "unknown, in the model"
DUPLICATE = "duplicate of an earlier file"
OPTIMIZER = "optimizer state"
_OPTIMIZER = re.compile(r"(^|\.)optimizer(_states|_state_dict)?\.")
_STEP = re.compile(r"optimizer(_states\.\d+|_state_dict)?\.state\.\d+\.step|global_step")


@dataclasses.dataclass(frozen=True)
class NamingScheme:
    """How a file names the arrays of a model.

    Attributes:
      components: {component of the model: its type}, for example {'touch': 'vit'}.
      rules: Names of the arrays of all components.
      unused_reason: Function from the name of an array without a rule to the reason why it is
        unused; `UNKNOWN` if it belongs to the model.
    """

    components: dict[str, str]
    rules: Rules
    unused_reason: Callable[[str], str]


@dataclasses.dataclass
class TorchSource:
    """The entries of one or several PyTorch files, matched with mmjax's arrays.

    A key is the name of an entry. With several files, the file name and a colon precede it. In
    paths, BatchNorm statistics have no `extra/` in front.

    Attributes:
      entries: {key: array or other value} of everything in the files.
      components: {component of the model: its type}.
      leaves: {path: leaf}.
      unused_keys: {key: reason} of the keys that no leaf uses.
      mismatches: {key: description}.
      step: Training step; 0 if the files do not contain it.
      rules: Names of the arrays, with the prefixes of the keys.
      added: {key: why} of keys that the files lack and that have a default value.
    """

    entries: dict[str, Any]
    components: dict[str, str]
    leaves: dict[str, Leaf]
    unused_keys: dict[str, str]
    mismatches: dict[str, str]
    step: int
    rules: list[Rule] = dataclasses.field(default_factory=list)
    added: dict[str, str] = dataclasses.field(default_factory=dict)

    def keys_of(self, path: str, shape: Sequence[int]) -> list[str]:
        """Returns the keys of an array; the path itself if no rule has it."""
        return keys_of(path, shape[0] if shape else 1, self.rules) or [path]

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns {key: array} of the entries that are arrays."""
        return {k: x for k, x in self.entries.items() if isinstance(x, np.ndarray)}

    def unknown_keys(self) -> list[str]:
        """Returns the keys of arrays in the model that mmjax does not support."""
        return [key for key, reason in self.unused_keys.items() if reason == UNKNOWN]

    def params(self, name: str) -> dict[str, np.ndarray]:
        """Returns {path: array} with statistics below `extra/`.

        Arrays in the model that mmjax does not support keep their keys.

        Args:
          name: Name of the source, for error messages.

        Raises:
          UserError: There are mismatches, for example a missing layer.
        """
        if self.mismatches:
            raise UserError(
                f"{name} is not a complete model:\n{format_mismatches(self.mismatches)}"
            )
        arrays = self.arrays()
        leaves = {state_path(path): leaf.read(arrays) for path, leaf in self.leaves.items()}
        return leaves | {key: arrays[key] for key in self.unknown_keys()}


def read_file(
    source: str, find_scheme: Callable[[Sequence[str]], NamingScheme | None], *, expected: str
) -> TorchSource:
    """Returns the entries of one file.

    Args:
      source: The file.
      find_scheme: Function from the names of the arrays to their naming scheme; None if the file
        contains no supported model.
      expected: Supported models, for the error message.

    Raises:
      UserError: The file cannot be read or contains no supported model.
    """
    entries = torch_reader.entries(source)
    arrays = {name: x for name, x in entries.items() if isinstance(x, np.ndarray)}
    try:
        scheme = find_scheme(list(arrays))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    if scheme is None:
        names = ", ".join(list(arrays)[:4]) or "none"
        raise UserError(
            f"{source} contains no supported model. Its arrays are {names} …; expected {expected}"
        )
    shapes = {name: array.shape for name, array in arrays.items()}
    leaves, mismatches, rest = match_keys(shapes, scheme.rules)
    unused_keys = {
        name: OPTIMIZER if _OPTIMIZER.search(name) else scheme.unused_reason(name) for name in rest
    }
    unused_keys |= {k: f"value: {_shortened(v)}" for k, v in entries.items() if k not in arrays}
    steps = [
        int(value)
        for name, value in entries.items()
        if _STEP.fullmatch(name) and isinstance(value, int | np.ndarray) and np.size(value) == 1
    ]
    return TorchSource(
        entries=entries,
        components=scheme.components,
        leaves=leaves,
        unused_keys=unused_keys,
        mismatches=mismatches,
        step=max(steps, default=0),
        rules=list(scheme.rules),
    )


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def read_files(
    sources: Sequence[str], read: Callable[[str], TorchSource], *, shared: Sequence[str] = ()
) -> TorchSource:
    """Returns the entries of several files that make up one model.

    Args:
      sources: The files.
      read: Function that reads one file.
      shared: Components that several files may contain; the first file is used.

    Raises:
      UserError: A file cannot be read, or two files contain the same component.
    """
    result = TorchSource({}, {}, {}, {}, {}, 0)
    names = [pathlib.Path(source).name for source in sources]
    labels = names if len(set(names)) == len(names) else list(sources)
    file_of: dict[str, str] = {}
    for source, label in zip(sources, labels, strict=True):
        file = read(source)
        prefix = f"{label}: " if len(sources) > 1 else ""
        for component, type_ in file.components.items():
            if component in file_of and component not in shared:
                raise UserError(
                    f"{file_of[component]} and {source} both contain a {component} tower. Pass "
                    "only one of them."
                )
            file_of.setdefault(component, source)
            result.components.setdefault(component, type_)
        for path, leaf in file.leaves.items():
            keys = tuple(prefix + key for key in leaf.keys)
            if path in result.leaves:
                result.unused_keys |= dict.fromkeys(keys, DUPLICATE)
            else:
                result.leaves[path] = dataclasses.replace(leaf, keys=keys)
        result.entries |= {prefix + key: value for key, value in file.entries.items()}
        result.unused_keys |= {prefix + key: text for key, text in file.unused_keys.items()}
        result.mismatches |= {prefix + key: text for key, text in file.mismatches.items()}
        result.step = max(result.step, file.step)
        result.rules += with_prefix(file.rules, key=prefix)
    return result
