"""Starting from somebody else's parameters: matched by name, resized where that makes sense."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from mmjax import checkpoint, tree
from mmjax.errors import UserError
from mmjax.models.positions import resize_table

# Tables whose rows are positions along one axis; another length is met by interpolation.
_POSITIONS = re.compile(r"positions/(temporal|vertical|horizontal|spectral)(/embedding)?$")


@dataclasses.dataclass
class Report:
    """What became of each leaf: lists of paths."""

    loaded: list[str] = dataclasses.field(default_factory=list)
    resized: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)  # stay fresh
    unexpected: list[str] = dataclasses.field(default_factory=list)  # of the source, unused
    mismatched: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for field in dataclasses.fields(self):
            paths = getattr(self, field.name)
            shown = "" if field.name == "loaded" else ": " + ", ".join(paths[:12])
            more = f" … and {len(paths) - 12} more" if shown and len(paths) > 12 else ""
            lines.append(f"  {field.name:<11}{len(paths):>5}{shown if paths else ''}{more}")
        return "\n".join(lines)


def load_params(source: str) -> tuple[dict[str, np.ndarray], str]:
    """`({path: array}, words for the log)` of a run directory or one of its steps.

    Args:
      source: `<run>` (its newest checkpoint) or `<run>/checkpoints/<step>`. Where a moving average
        of the parameters is stored, it is what is read.

    Raises:
      UserError: there is no checkpoint.
    """
    path, step = checkpoint.find(source)
    saved = checkpoint.Checkpoints(path, read_only=True)
    parts = {p.split("/")[0] for p in saved.shapes(step)}
    read = saved.read(step, [p for p in ("params", "ema", "extra") if p in parts])
    saved.close()
    leaves = tree.flatten(read["params"]) | tree.flatten(read.get("ema", {}))
    leaves |= {f"extra/{k}": v for k, v in tree.flatten(read.get("extra", {})).items()}
    return leaves, f"step {step} of {path}"


def match(
    target: Mapping[str, Any],
    source: Mapping[str, np.ndarray],
    *,
    names: Sequence[tuple[str, str]] = (),
) -> tuple[dict[str, np.ndarray], Report]:
    """Values for the leaves of `target` (path → anything with a shape) out of `source`.

    Args:
      names: (pattern, replacement) pairs applied in turn to the source's paths.

    Raises:
      UserError: a pair that renames nothing or is not a regular expression, or two paths that get
        the same name.
    """
    current = {path: path for path in source}
    for pattern, replacement in names:
        tree.first_match([pattern], list(current.values()), what="config.init_map")
        current = {path: re.sub(pattern, replacement, name) for path, name in current.items()}
    renamed: dict[str, np.ndarray] = {}
    for path, name in current.items():
        if name in renamed:
            raise UserError(f"config.init_map: {path} and another path both become {name}.")
        renamed[name] = source[path]
    report, values = Report(), {}
    for path, leaf in target.items():
        value = renamed.get(path)
        if value is None:
            report.missing.append(path)
        elif value.shape == tuple(leaf.shape):
            values[path] = value
            report.loaded.append(path)
        elif _POSITIONS.search(path) and value.shape[1:] == tuple(leaf.shape)[1:]:
            values[path] = np.asarray(resize_table(value, leaf.shape[0]))
            report.resized.append(f"{path} {value.shape} → {tuple(leaf.shape)}")
        else:
            report.mismatched.append(f"{path} {value.shape} ≠ {tuple(leaf.shape)}")
    report.unexpected = [path for path in renamed if path not in target]
    return values, report


def from_source(
    state: dict, source: str, *, allow: Sequence[str] = (), names: Sequence[tuple[str, str]] = ()
) -> dict:
    """The fresh `state` with the parameters (and statistics) that `source` has for it.

    Args:
      allow: patterns of paths that may be on one side only: missing in the source (a new
        classifier) or unused here (the towers of other modalities).

    Raises:
      UserError: a leaf is on one side only and not allowed to be, or of another shape, or nothing
        fits.
    """
    leaves, where = load_params(source)
    target = tree.flatten(state["params"]) | {
        f"extra/{k}": v for k, v in tree.flatten(state["extra"]).items()
    }
    values, report = match(target, leaves, names=names)
    alone = report.missing + report.unexpected
    allowed = tree.first_match(allow, alone, what="config.init_allow", every_pattern=False)
    wrong = [path for path in alone if allowed[path] is None]
    nothing = all(path.startswith("extra/") for path in values)
    if report.mismatched or wrong or nothing:
        culprits = ", ".join(wrong[:8]) or ("nothing fits" if nothing else "other shapes")
        raise UserError(
            f"The parameters of {where} do not fit this model:\n{report}\nNot allowed by "
            f"config.init_allow: {culprits}. Allow them, rename with config.init_map, or change "
            "the model's config."
        )
    logging.info("Parameters from %s:\n%s", where, report)

    def put(prefix: str, part: dict) -> dict:
        return tree.map_named(
            lambda path, leaf: (
                jax.device_put(np.asarray(values[prefix + path], leaf.dtype), leaf.sharding)
                if prefix + path in values
                else leaf
            ),
            part,
        )

    state = dict(state, params=put("", state["params"]), extra=put("extra/", state["extra"]))
    if "ema" in state:
        state["ema"] = jax.tree.map(
            lambda average, value: None if average is None else value.copy(),
            state["ema"],
            state["params"],
            is_leaf=lambda leaf: leaf is None,
        )
    return state
