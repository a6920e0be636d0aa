"""Initializes the parameters of a model from another source, matched by name.

Position embeddings are resized, and everything else must have the same shape. A report lists what
was loaded. Parameters that only the model or only the source has must be allowed by a pattern.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mmjax import tree
from mmjax.convert.clip.load import with_clip_scalars
from mmjax.convert.load import load_sources
from mmjax.convert.vatt.names import WORD_EMBEDDING
from mmjax.convert.vision.load import place_backbone
from mmjax.errors import UserError
from mmjax.formats import word_vectors
from mmjax.models.blocks.positions import resize_grid, resize_table

# Position embeddings along one axis, which are resized to another length by interpolation.
_AXIS_POSITIONS = re.compile(r"positions/(temporal|vertical|horizontal|spectral)(/embedding)?$")
# Position embeddings of a class token and a square grid of patches.
_GRID_POSITIONS = re.compile(r"^(touch|image)/positions$")
# Arrays whose shape depends on the number of classes.
_CLASSIFIER = re.compile(r"^classifier/|^(aux_)?head/(classifier|low|high)/")


@dataclasses.dataclass
class Report:
    """The outcome of matching, by array.

    Attributes:
      loaded: Paths that are set to the source's array.
      resized: Paths that are set to a resized array, with both shapes.
      missing: Paths of the model that the source lacks; they keep their values.
      unexpected: Paths of the source that the model lacks.
      mismatched: Paths with different shapes, with both shapes.
    """

    loaded: list[str] = dataclasses.field(default_factory=list)
    resized: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    unexpected: list[str] = dataclasses.field(default_factory=list)
    mismatched: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for field in dataclasses.fields(self):
            paths = getattr(self, field.name)
            shown = "" if field.name == "loaded" else ": " + ", ".join(paths[:12])
            more = f" … and {len(paths) - 12} more" if shown and len(paths) > 12 else ""
            lines.append(f"  {field.name:<11}{len(paths):>5}{shown if paths else ''}{more}")
        return "\n".join(lines)


def target_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {path: leaf} of the `params` of a state and, below `extra/`, of its `extra`."""
    return tree.flatten(state["params"]) | {
        f"extra/{path}": leaf for path, leaf in tree.flatten(state["extra"]).items()
    }


def replaced(state: Mapping[str, Any], put: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Returns the `params` and `extra` of a state with new leaves.

    Args:
      state: A dict with `params` and `extra`.
      put: Function from a path of `target_of` and a leaf to the new leaf.
    """
    return {
        "params": tree.map_named(put, state["params"]),
        "extra": tree.map_named(lambda path, leaf: put(f"extra/{path}", leaf), state["extra"]),
    }


def match(
    target: Mapping[str, Any],
    source: Mapping[str, np.ndarray],
    *,
    names: Sequence[tuple[str, str]] = (),
) -> tuple[dict[str, np.ndarray], Report]:
    """Returns the values that a source has for a model, and a report.

    Args:
      target: {path: leaf} of the model; a leaf has a shape.
      source: {path: array}; see `mmjax.convert.load.load_params`.
      names: (pattern, replacement) pairs that rename the source's paths, applied in order.

    Raises:
      UserError: A pair matches no path or is not a regular expression, or two paths get the same
        name.
    """
    source = with_clip_scalars(place_backbone(_renamed(source, names), target), target)
    source = _share_encoder(source, target)
    report, values = Report(), {}
    for path, leaf in target.items():
        value, shape = source.get(path), tuple(leaf.shape)
        if value is None:
            report.missing.append(path)
        elif value.shape == shape:
            values[path] = value
            report.loaded.append(path)
        elif (resized := _resize_positions(path, value, shape)) is not None:
            values[path] = resized
            report.resized.append(f"{path} {value.shape} → {shape}")
        else:
            report.mismatched.append(f"{path} {value.shape} ≠ {shape}")
    report.unexpected = [path for path in source if path not in target]
    return values, report


def _renamed(
    source: Mapping[str, np.ndarray], names: Sequence[tuple[str, str]]
) -> dict[str, np.ndarray]:
    """Returns the source with the renaming of config.init_map."""
    current = {path: path for path in source}
    for pattern, replacement in names:
        tree.first_match([pattern], list(current.values()), what="config.init_map")
        current = {path: re.sub(pattern, replacement, name) for path, name in current.items()}
    result: dict[str, np.ndarray] = {}
    for path, name in current.items():
        if name in result:
            raise UserError(
                f"config.init_map renames {path} and another path to {name}. Change the patterns "
                "so that all names differ."
            )
        result[name] = source[path]
    return result


def _resize_positions(path: str, table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns resized position embeddings; None for other arrays or another width."""
    if table.shape[1:] != shape[1:]:
        return None
    if _AXIS_POSITIONS.search(path):
        return np.asarray(resize_table(table, shape[0]))
    if _GRID_POSITIONS.search(path):
        side = math.isqrt(shape[0] - 1)
        return np.asarray(resize_grid(table, (side, side)))
    return None


def _share_encoder(
    source: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns the source with the encoder of a unified model copied to each tower that fits.

    A tower fits if it has the two projections that each modality of a unified model has.

    Raises:
      UserError: No tower of the model fits.
    """
    shared = {path for path in source if path.startswith("encoder/")}
    if not shared or any(path.startswith("encoder/") for path in target):
        return dict(source)
    towers = sorted({path.split("/")[0] for path in target if "/encoder/" in path})
    fitting = [
        tower
        for tower in towers
        if {f"{tower}/{layer}_projection/kernel" for layer in ("pre", "post")} <= set(target)
    ]
    if towers and not fitting:
        tower = "video" if "video" in towers else towers[0]
        key = "backbone" if "classifier/kernel" in target else tower
        path = f"{tower}/post_projection/kernel"
        width = source[path].shape[1] if path in source else 1024
        raise UserError(
            "The source is a unified model, with one encoder between two projections for all "
            f"modalities. The {tower} tower needs both projections to load it: set config.model."
            f"{key}.pre_projection=True and config.model.{key}.post_projection={width}, and the "
            "sizes of the source. Alternatively, use config.model.name=ut_fac or a backbone ut_*."
        )
    rest = {path: value for path, value in source.items() if path not in shared}
    return rest | {f"{tower}/{path}": source[path] for tower in fitting for path in shared}


def fill(task: Any, leaves: Mapping[str, np.ndarray], where: str) -> tuple[dict, dict]:
    """Returns `(params, extra)` of a task from {path: array}, on the device.

    Raises:
      UserError: Arrays are missing or have another shape.
    """
    params, extra = jax.eval_shape(task.init, jax.random.key(0))
    parts = {"params": params, "extra": extra}
    values, report = match(target_of(parts), leaves)
    if report.missing or report.mismatched:
        raise UserError(
            f"The parameters of {where} do not match the model of the config:\n{report}\nUse the "
            "config that they were trained with."
        )
    filled = replaced(parts, lambda path, leaf: jnp.asarray(values[path], leaf.dtype))
    return filled["params"], filled["extra"]


def from_source(
    state: dict,
    source: str | Sequence[str],
    *,
    allow: Sequence[str] = (),
    names: Sequence[tuple[str, str]] = (),
    prefix: str = "",
) -> dict:
    """Returns a state with the parameters and statistics of a source.

    Args:
      state: The randomly initialized train state.
      source: One or several sources; see `mmjax.convert.load.load_params`. The first source that
        has a path is used. If all are word vectors, everything else stays randomly initialized.
      allow: Patterns of paths that only one side may have: missing in the source (a new
        classifier) or unused (towers for other modalities). A classifier for other classes may
        also have another shape.
      names: (pattern, replacement) pairs that rename the source's paths.
      prefix: If not '', only this part of the parameters is filled: from the same part of the
        source, or from the whole source if it has none, of which the rest is left out. Patterns
        apply to paths without the prefix.

    Raises:
      UserError: A path that only one side has is not allowed, a shape differs, or nothing matches.
    """
    sources = (source,) if isinstance(source, str) else tuple(source)
    leaves, description = load_sources(sources)
    if all(map(word_vectors.is_word_vectors, sources)):
        allow = (f"^(?!{WORD_EMBEDDING}$)",)
    parts = {name: state[name] for name in ("params", "extra")}
    if prefix:
        leaves = part_of(leaves, prefix) or leaves
        parts = {name: part.get(prefix, {}) for name, part in parts.items()}
    values, report = match(target_of(parts), leaves, names=names)
    if prefix:
        report.unexpected = []
    _check(report, values, allow, description)
    logging.info("Parameters from %s:\n%s", description, report)

    def put(path: str, leaf: Any) -> Any:
        if path not in values:
            return leaf
        return jax.device_put(np.asarray(values[path], leaf.dtype), leaf.sharding)

    parts = replaced(parts, put)
    if prefix:
        parts = {name: {**state[name], prefix: part} for name, part in parts.items() if part}
    return with_parts(state, **parts)


def part_of(leaves: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns the parameters and statistics of a part of a model, without its prefix."""
    pattern = re.compile(f"^(extra/)?{re.escape(prefix)}/")
    return {pattern.sub(r"\1", path): x for path, x in leaves.items() if pattern.match(path)}


def with_parts(state: dict, **parts: dict) -> dict:
    """Returns a state with other `params` or `extra`; averages start at the parameters."""
    state = {**state, **parts}
    if "ema" in state:
        state["ema"] = jax.tree.map(
            lambda average, value: None if average is None else value.copy(),
            state["ema"],
            state["params"],
            is_leaf=lambda leaf: leaf is None,
        )
    return state


def _check(
    report: Report, values: Mapping[str, Any], allow: Sequence[str], description: str
) -> None:
    """Raises UserError unless all differences are allowed.

    Classifiers of another shape that are allowed move from `mismatched` to `missing`.
    """
    classifiers = [line for line in report.mismatched if _CLASSIFIER.search(line)]
    new = tree.first_match(allow, classifiers, what="config.init_allow", every_pattern=False)
    report.mismatched = [line for line in report.mismatched if new.get(line) is None]
    report.missing += [line for line in classifiers if new[line] is not None]
    one_sided = report.missing + report.unexpected
    allowed = tree.first_match(allow, one_sided, what="config.init_allow", every_pattern=False)
    refused = [path for path in one_sided if allowed[path] is None]
    nothing = all(path.startswith("extra/") for path in values)
    if report.mismatched or refused or nothing:
        reason = ", ".join(refused[:8]) or ("no parameter matches" if nothing else "other shapes")
        more = f" and {len(refused) - 8} more" if len(refused) > 8 else ""
        raise UserError(
            f"The parameters of {description} do not fit this model:\n{report}\n"
            f"Not allowed by config.init_allow: {reason}{more}.\n"
            "Allow more patterns, rename paths with config.init_map, or change the config of the "
            "model."
        )
