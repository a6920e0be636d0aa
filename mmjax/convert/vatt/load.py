"""A published VATT checkpoint as arrays under our names, every key accounted for."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from mmjax.convert import problems as names
from mmjax.convert.vatt import names as vatt_names
from mmjax.errors import UserError
from mmjax.formats import tf_checkpoint

# Keys that hold no part of the model, by what they are.
_OTHER = {
    "optimizer slot": r"/\.OPTIMIZER_SLOT/",
    "optimizer scalar": r"^optimizer/",
    "save counter": r"^save_counter$",
    "object graph": rf"^{tf_checkpoint.GRAPH}$",
}
UNKNOWN, OUTSIDE = "unknown, in the model", "unknown, outside the model"


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One of our arrays: the keys it is made of (one for each layer if `stacked`) and its shape."""

    path: str
    keys: tuple[str, ...]
    stacked: bool
    shape: tuple[int, ...]


@dataclasses.dataclass
class Contents:
    """What a checkpoint holds.

    Attributes:
      layout: the parts of its model.
      leaves: {our path: what it is made of}; statistics of BatchNorm have no `extra/` here.
      leftovers: {key: what it is} for keys that no leaf is made of.
      problems: {key: what is wrong}: a layer is missing, or has another shape than the first.
      step: training steps.
    """

    layout: vatt_names.Layout
    leaves: dict[str, Leaf]
    unused_keys: dict[str, str]
    problems: dict[str, str]
    step: int

    @property
    def kinds(self) -> dict[str, str]:
        """{where it lies in our tree ('' for the top): kind of part}."""
        return {part.ours: part.kind for part in self.layout}

    def unknown(self) -> list[str]:
        """Keys in the tree of the model that mmjax has no array for."""
        return [key for key, kind in self.unused_keys.items() if kind == UNKNOWN]


def sort(shapes: Mapping[str, tuple[tuple[int, ...], str]], *, prefix: str, step: int) -> Contents:
    """Sorts the keys of a checkpoint.

    Args:
      shapes: {key: (shape, dtype)}.
      prefix: for errors.
      step: of the checkpoint.

    Raises:
      UserError: it is no checkpoint of VATT.
    """
    layout = vatt_names.layout_of(shapes)
    if not layout:
        some = ", ".join([key for key in shapes if key != tf_checkpoint.GRAPH][:4]) or "none"
        raise UserError(
            f"{prefix} is a TensorFlow checkpoint, but not of a VATT model: none of its keys is "
            f"below {vatt_names.ROOT}/… as in the published ones. Its keys: {some} …"
        )
    found: dict[str, dict[int | None, str]] = collections.defaultdict(dict)
    unused_keys = {}
    for key in shapes:
        kind = next((kind for kind, pattern in _OTHER.items() if re.search(pattern, key)), None)
        place = None if kind else vatt_names.path_of(key, layout)
        if place:
            found[place[0]][place[1]] = key
        else:
            unused_keys[key] = kind or (UNKNOWN if key.startswith("model/") else OUTSIDE)
    depths: dict[str, int] = {}  # of the encoders, by the path of their layers
    for path, keys in found.items():
        if None not in keys:
            stack = path.split("/layers/")[0]
            depths[stack] = max(depths.get(stack, 0), 1 + max(keys))
    leaves, problems = {}, {}
    for path, keys in found.items():
        stacked = None not in keys
        layers = range(depths[path.split("/layers/")[0]]) if stacked else (None,)
        template = vatt_names.key_of(path, layout)
        for layer in layers:
            if layer not in keys:
                problems[template.replace("{i}", str(layer))] = "missing"
        ordered = tuple(keys[layer] for layer in layers if layer in keys)
        first = shapes[ordered[0]][0]
        for key in ordered:
            if shapes[key][0] != first:
                problems[key] = f"has shape {shapes[key][0]}, that of its first layer is {first}"
        # An array's shape follows from how it is put together; layers that are missing count.
        whole = vatt_names.assemble(
            path, [np.broadcast_to(np.float32(0), first)] * len(layers), stacked=stacked
        )
        leaves[path] = Leaf(path, ordered, stacked, whole.shape)
    return Contents(layout, leaves, unused_keys, problems, step)


def contents_of(reader: tf_checkpoint.Reader) -> Contents:
    """`sort` of an open checkpoint; its step is the optimizer's, else that of the file's name."""
    step = 0
    if "optimizer/iter" in reader.shapes:
        step = int(reader.read("optimizer/iter"))
    elif match := re.search(r"-(\d+)$", reader.prefix):
        step = int(match[1])
    return sort(reader.shapes, prefix=reader.prefix, step=step)


def read_leaf(reader: tf_checkpoint.Reader, leaf: Leaf) -> np.ndarray:
    """The array of a leaf, float32."""
    arrays = [np.asarray(reader.read(key), np.float32) for key in leaf.keys]
    return vatt_names.assemble(leaf.path, arrays, stacked=leaf.stacked)


def load(prefix: str) -> tuple[dict[str, np.ndarray], str]:
    """`({path: array}, words for the log)`, as `mmjax.init_from.load_params` gives them.

    Keys in the tree of the model that have no name with us stand under their own.

    Raises:
      UserError: it cannot be read, is no checkpoint of VATT, or lacks the array of some layer.
    """
    reader = tf_checkpoint.Reader(prefix)
    contents = contents_of(reader)
    if contents.problems:
        raise UserError(f"{prefix}:\n{names.listing(contents.problems)}")
    arrays = {
        f"extra/{path}" if names.is_statistic(path) else path: read_leaf(reader, leaf)
        for path, leaf in contents.leaves.items()
    }
    arrays |= {key: reader.read(key) for key in contents.unknown()}
    return arrays, f"step {contents.step}, the TensorFlow checkpoint {prefix}"
