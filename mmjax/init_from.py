"""Starting from somebody else's parameters: matched by name, resized where that makes sense."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from mmjax import tree
from mmjax.checkpoints import manager as checkpoint
from mmjax.convert.clip import load as clip_load
from mmjax.convert.vatt import load as vatt_load
from mmjax.convert.vision import load as vision_load
from mmjax.errors import UserError
from mmjax.formats import tf_checkpoint, torch_reader, word_vectors
from mmjax.models.blocks.positions import resize_table

# Tables whose rows are positions along one axis; another length is met by interpolation.
_POSITIONS = re.compile(r"positions/(temporal|vertical|horizontal|spectral)(/embedding)?$")
# Tables of a class token's position and those of a square of patches.
_SQUARES = re.compile(r"^(touch|image)/positions$")
# Arrays whose shape the labels decide; of another shape they may start fresh.
_OF_LABELS = re.compile(r"^classifier/")
WORDS = "text/word_embedding"


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
    """`({path: array}, words for the log)` of one source.

    Args:
      source: `<run>` (its newest checkpoint) or `<run>/checkpoints/<step>`, where a moving average
        of the parameters is what is read if there is one; a TensorFlow checkpoint of VATT, by its
        prefix (`…/ckpt-500000`); a file of PyTorch's (.pth, .safetensors, …) with TVL's touch
        encoder, OpenCLIP's towers, a backbone of images (ResNet, MobileNetV2) or what LGSSL's
        trainings save; or a file of word embeddings (.npz, .npy, .pkl).

    Raises:
      UserError: it is none of these, or cannot be read.
    """
    if word_vectors.is_word_vectors(source):
        return {WORDS: word_vectors.load(source)}, f"the word embeddings {source}"
    if prefix := tf_checkpoint.find(source):
        return vatt_load.load(prefix)
    if torch_reader.is_file(source):
        return vision_load.load(source) if vision_load.fits(source) else clip_load.load(source)
    path, step = checkpoint.find(source)
    saved = checkpoint.Checkpoints(path, read_only=True)
    parts = {p.split("/")[0] for p in saved.shapes(step)}
    read = saved.read(step, [p for p in ("params", "ema", "extra") if p in parts])
    saved.close()
    leaves = tree.flatten(read["params"]) | tree.flatten(read.get("ema", {}))
    leaves |= {f"extra/{k}": v for k, v in tree.flatten(read.get("extra", {})).items()}
    return leaves, f"step {step} of {path}"


def load_sources(sources: Sequence[str]) -> tuple[dict[str, np.ndarray], str]:
    """`load_params` of several: each fills what those before it lack."""
    leaves: dict[str, np.ndarray] = {}
    described = []
    for source in sources:
        arrays, what = load_params(source)
        leaves = arrays | leaves
        described.append(what)
    return leaves, " and ".join(described)


def target_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """{path: leaf} of the `params` and, below `extra/`, of the `extra` of a state."""
    return tree.flatten(state["params"]) | {
        f"extra/{path}": leaf for path, leaf in tree.flatten(state["extra"]).items()
    }


def replaced(state: Mapping[str, Any], put: Callable[[str, Any], Any]) -> dict[str, Any]:
    """The `params` and `extra` of a state with `put(path, leaf)` for each leaf, by the paths of
    `target_of`."""
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
    renamed = clip_load.with_scale_of_clip(vision_load.of_tower(renamed, target), target)
    renamed = _share_encoder(renamed, target)
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
        elif _SQUARES.search(path) and value.shape[1:] == tuple(leaf.shape)[1:]:
            values[path] = _resize_square(value, leaf.shape[0])
            report.resized.append(f"{path} {value.shape} → {tuple(leaf.shape)}")
        else:
            report.mismatched.append(f"{path} {value.shape} ≠ {tuple(leaf.shape)}")
    report.unexpected = [path for path in renamed if path not in target]
    return values, report


def _resize_square(table: np.ndarray, length: int) -> np.ndarray:
    """A table [1 + n², D] for a class token and a square of patches as one of `length` rows.

    The square is resized as timm and OpenCLIP do it: bicubic, antialiased.
    """
    old, new = math.isqrt(len(table) - 1), math.isqrt(length - 1)
    square = np.reshape(table[1:], (old, old, -1))
    square = jax.image.resize(square, (new, new, table.shape[1]), "cubic", antialias=True)
    return np.concatenate([table[:1], np.asarray(square).reshape(new * new, -1)])


def _share_encoder(
    source: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The source with its one encoder for all modalities as that of each tower of the target.

    The towers that take it have the layers that a modality of a unified model has for itself.

    Raises:
      UserError: the target has no such tower.
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
        at = "backbone" if "classifier/kernel" in target else tower
        path = f"{tower}/post_projection/kernel"
        width = source[path].shape[1] if path in source else 1024
        raise UserError(
            "These parameters are of a unified model: one encoder for all modalities, between two "
            f"projections. A single tower takes them if it has both: set config.model.{at}."
            f"pre_projection=True and config.model.{at}.post_projection={width}, and its size as "
            "there. config.model.name=ut_fac, or the backbone ut_*, takes them as they are."
        )
    rest = {path: value for path, value in source.items() if path not in shared}
    return rest | {f"{tower}/{path}": source[path] for tower in fitting for path in shared}


def from_source(
    state: dict,
    source: str | Sequence[str],
    *,
    allow: Sequence[str] = (),
    names: Sequence[tuple[str, str]] = (),
) -> dict:
    """The fresh `state` with the parameters (and statistics) that `source` has for it.

    Args:
      source: see `load_params`; of several, each fills what those before it lack. Word embeddings
        alone leave everything else fresh.
      allow: patterns of paths that may be on one side only: missing in the source (a new
        classifier) or unused here (the towers of other modalities). A classifier for other labels
        may also have another shape.

    Raises:
      UserError: a leaf is on one side only and not allowed to be, or of another shape, or nothing
        fits.
    """
    sources = (source,) if isinstance(source, str) else tuple(source)
    leaves, where = load_sources(sources)
    if all(map(word_vectors.is_word_vectors, sources)):
        allow = (f"^(?!{WORDS}$)",)
    target = target_of(state)
    values, report = match(target, leaves, names=names)
    of_labels = [line for line in report.mismatched if _OF_LABELS.search(line)]
    new = tree.first_match(allow, of_labels, what="config.init_allow", every_pattern=False)
    report.mismatched = [line for line in report.mismatched if new.get(line) is None]
    report.missing += [line for line in of_labels if new[line] is not None]
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

    def put(path: str, leaf: Any) -> Any:
        if path not in values:
            return leaf
        return jax.device_put(np.asarray(values[path], leaf.dtype), leaf.sharding)

    state = dict(state, **replaced(state, put))
    if "ema" in state:
        state["ema"] = jax.tree.map(
            lambda average, value: None if average is None else value.copy(),
            state["ema"],
            state["params"],
            is_leaf=lambda leaf: leaf is None,
        )
    return state
