"""Reads VATT's published checkpoints and accounts for every key."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from mmjax.convert.matching import format_mismatches, state_path
from mmjax.convert.vatt import names as vatt_names
from mmjax.errors import UserError
from mmjax.formats import tf_checkpoint

# {category: pattern} of keys that are not part of the model.
_OTHER = {
    "optimizer slot": r"/\.OPTIMIZER_SLOT/",
    "optimizer scalar": r"^optimizer/",
    "save counter": r"^save_counter$",
    "object graph": rf"^{tf_checkpoint.GRAPH}$",
}
UNKNOWN, OUTSIDE = "unknown, in the model", "unknown, outside the model"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An mmjax array that can be built from a checkpoint.

    Attributes:
      path: Path in mmjax.
      keys: Keys of the source arrays: one per layer if `stacked`, otherwise one.
      stacked: Whether the first axis is the layer.
      shape: Shape in mmjax.
    """

    path: str
    keys: tuple[str, ...]
    stacked: bool
    shape: tuple[int, ...]


@dataclasses.dataclass
class VattSource:
    """The keys of a checkpoint, matched with mmjax's arrays.

    In paths, BatchNorm statistics have no `extra/` in front.

    Attributes:
      components: The components of the model.
      leaves: {path: leaf}.
      unused_keys: {key: reason} of the keys that no leaf uses.
      mismatches: {key: description}: a missing layer, or one with another shape than the first.
      step: Training step.
    """

    components: vatt_names.Components
    leaves: dict[str, Leaf]
    unused_keys: dict[str, str]
    mismatches: dict[str, str]
    step: int

    @property
    def types(self) -> dict[str, str]:
        """{path of a component, '' for the whole model: its type}."""
        return {component.path: component.type for component in self.components}

    def unknown_keys(self) -> list[str]:
        """Returns the keys in the model that mmjax does not support."""
        return [key for key, reason in self.unused_keys.items() if reason == UNKNOWN]


def match(
    shapes: Mapping[str, tuple[tuple[int, ...], str]], *, prefix: str, step: int
) -> VattSource:
    """Matches the keys of a checkpoint with mmjax's arrays.

    Args:
      shapes: {key: (shape, dtype)}.
      prefix: Prefix of the checkpoint's files, for error messages.
      step: Training step of the checkpoint.

    Raises:
      UserError: It is not a checkpoint of VATT.
    """
    components = vatt_names.find_components(shapes)
    if not components:
        some = ", ".join([key for key in shapes if key != tf_checkpoint.GRAPH][:4]) or "none"
        raise UserError(
            f"{prefix} is a TensorFlow checkpoint, but not of a VATT model. Its keys are {some} …; "
            f"expected keys that start with {vatt_names.ROOT}/."
        )
    matched: dict[str, dict[int | None, str]] = collections.defaultdict(dict)
    unused_keys: dict[str, str] = {}
    for key in shapes:
        category = next((c for c, pattern in _OTHER.items() if re.search(pattern, key)), None)
        result = None if category else vatt_names.path_of(key, components)
        if result and (result[1] or 0) < len(shapes):
            path, layer = result
            matched[path][layer] = key
        else:
            unused_keys[key] = category or (UNKNOWN if key.startswith("model/") else OUTSIDE)
    leaves, mismatches = _leaves(matched, shapes, components)
    return VattSource(components, leaves, unused_keys, mismatches, step)


def _leaves(
    matched: Mapping[str, Mapping[int | None, str]],
    shapes: Mapping[str, tuple[tuple[int, ...], str]],
    components: vatt_names.Components,
) -> tuple[dict[str, Leaf], dict[str, str]]:
    """Returns leaves and mismatches from {path: {layer or None: key}}."""
    depths: dict[str, int] = {}  # number of layers, by the path of the encoder
    for path, keys in matched.items():
        if None not in keys:
            stack = path.split("/layers/")[0]
            depths[stack] = max(depths.get(stack, 0), 1 + max(keys))
    leaves, mismatches = {}, {}
    for path, keys in matched.items():
        stacked = None not in keys
        layers = range(depths[path.split("/layers/")[0]]) if stacked else (None,)
        template = vatt_names.key_of(path, components)
        for layer in layers:
            if layer not in keys:
                mismatches[template.replace("{i}", str(layer))] = "is missing"
        ordered = tuple(keys[layer] for layer in layers if layer in keys)
        first = shapes[ordered[0]][0]
        for key in ordered:
            if shapes[key][0] != first:
                mismatches[key] = f"has shape {shapes[key][0]}; the first layer has {first}"
        # The shape of a complete array, even if layers are missing.
        shape = (len(layers), *first) if stacked else first
        complete = vatt_names.without_unit_axes(path, np.broadcast_to(np.float32(0), shape))
        leaves[path] = Leaf(path, ordered, stacked, complete.shape)
    return leaves, mismatches


def match_reader(reader: tf_checkpoint.Reader) -> VattSource:
    """Matches the keys of an open checkpoint.

    The step is the optimizer's, or the one in the file name.
    """
    step = 0
    if "optimizer/iter" in reader.shapes:
        step = int(reader.read("optimizer/iter"))
    elif result := re.search(r"-(\d+)$", reader.prefix):
        step = int(result[1])
    return match(reader.shapes, prefix=reader.prefix, step=step)


def read_leaf(reader: tf_checkpoint.Reader, leaf: Leaf) -> np.ndarray:
    """Returns the array of a leaf in float32."""
    arrays = [np.asarray(reader.read(key), np.float32) for key in leaf.keys]
    return vatt_names.assemble(leaf.path, arrays, stacked=leaf.stacked)


def load(prefix: str) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays of a checkpoint for `mmjax.convert.load.load_params`.

    Arrays in the model that mmjax does not support keep their keys.

    Returns:
      `(arrays, description)`: {path: array}, and a description for the log.

    Raises:
      UserError: The checkpoint cannot be read, is not VATT's, or is incomplete.
    """
    reader = tf_checkpoint.Reader(prefix)
    source = match_reader(reader)
    if source.mismatches:
        raise UserError(
            f"{prefix} is not a complete model:\n{format_mismatches(source.mismatches)}"
        )
    arrays = {state_path(path): read_leaf(reader, leaf) for path, leaf in source.leaves.items()}
    arrays |= {key: reader.read(key) for key in source.unknown_keys()}
    return arrays, f"step {source.step} of the TensorFlow checkpoint {prefix}"
