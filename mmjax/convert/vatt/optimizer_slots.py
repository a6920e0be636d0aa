"""What VATT's optimizer remembers, as the optimizer state of a run: so a training can go on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import jax
import ml_collections
import numpy as np

from mmjax import config, optim, step, tree
from mmjax.convert.vatt.load import Contents, Leaf

# {our name of a slot: Keras'}, of Adam and of SGD with momentum.
_SLOTS = {"mu": "m", "nu": "v", "velocity": "momentum"}
_PATH = re.compile(rf"(?:^|/)({'|'.join(_SLOTS)})/(.*)$")


def abstract(cfg: ml_collections.ConfigDict, params: dict) -> dict:
    """The optimizer state of a config for these parameters, as shapes."""
    settings = dict(config.resolve(cfg).optimizer)
    frozen = tree.first_match(
        settings.pop("frozen", ()), list(tree.flatten(params)), what="config.optimizer.frozen"
    )
    trainable, _ = step.split_params(params, {path: n is not None for path, n in frozen.items()})
    tx, _ = optim.make_optimizer(
        settings, trainable, total_steps=cfg.total_steps, batch_size=cfg.batch_size
    )
    return jax.eval_shape(tx.init, trainable)


def find(contents: Contents, shapes: Mapping[str, tuple], state: dict) -> dict[str, Leaf] | None:
    """{path in the optimizer state: the keys it is made of}; None if one of them is not there.

    Counters of steps are not in it.
    """
    found = {}
    for path, leaf in tree.flatten(state).items():
        if match := _PATH.search(path):
            source = contents.leaves.get(match[2])
            slot = f"/.OPTIMIZER_SLOT/optimizer/{_SLOTS[match[1]]}"
            keys = tuple(key + slot for key in source.keys) if source else ()
            if not source or source.shape != leaf.shape or any(k not in shapes for k in keys):
                return None
            found[path] = Leaf(match[2], keys, source.stacked, leaf.shape)
    return found or None


def fill(
    state: dict, found: Mapping[str, Leaf], read: Callable[[Leaf], np.ndarray], steps: int
) -> dict:
    """The optimizer state with what `found` says; counters have counted `steps`."""
    return tree.map_named(
        lambda path, leaf: (
            read(found[path]) if path in found else np.full(leaf.shape, steps, leaf.dtype)
        ),
        state,
    )
