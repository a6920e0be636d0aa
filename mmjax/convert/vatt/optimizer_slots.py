"""Converts the optimizer slots of VATT's checkpoints, so that training can be resumed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import jax
import ml_collections
import numpy as np

from mmjax import config, optim, step, tree
from mmjax.convert.vatt.load import Leaf, VattSource

# {name of a slot in optax: its name in Keras}, for Adam and for SGD with momentum.
_SLOTS = {"mu": "m", "nu": "v", "velocity": "momentum"}
_PATH = re.compile(rf"(?:^|/)({'|'.join(_SLOTS)})/(.*)$")


def abstract_state(cfg: ml_collections.ConfigDict, params: dict) -> dict:
    """Returns the abstract optimizer state of a config for these parameters."""
    resolved = config.resolve(cfg)
    settings = dict(resolved.optimizer)
    frozen = tree.first_match(
        settings.pop("frozen", ()), list(tree.flatten(params)), what="config.optimizer.frozen"
    )
    trainable, _ = step.split_params(
        params, {path: index is not None for path, index in frozen.items()}
    )
    tx, _ = optim.make_optimizer(
        settings,
        trainable,
        total_steps=resolved.total_updates,
        batch_size=resolved.update_batch_size,
    )
    return jax.eval_shape(tx.init, trainable)


def find_slots(
    source: VattSource, shapes: Mapping[str, tuple], state: dict
) -> dict[str, Leaf] | None:
    """Returns the leaves of an optimizer state, without its counters.

    Args:
      source: The matched checkpoint.
      shapes: All keys of the checkpoint.
      state: The abstract optimizer state.

    Returns:
      {path in the optimizer state: leaf}; None if the checkpoint lacks one of them.
    """
    slots = {}
    for path, leaf in tree.flatten(state).items():
        if match := _PATH.search(path):
            parameter = source.leaves.get(match[2])
            suffix = f"/.OPTIMIZER_SLOT/optimizer/{_SLOTS[match[1]]}"
            keys = tuple(key + suffix for key in parameter.keys) if parameter else ()
            if (
                not parameter
                or parameter.shape != leaf.shape
                or any(key not in shapes for key in keys)
            ):
                return None
            slots[path] = Leaf(match[2], keys, parameter.stacked, leaf.shape)
    return slots or None


def fill(
    state: dict, slots: Mapping[str, Leaf], read: Callable[[Leaf], np.ndarray], count: int
) -> dict:
    """Returns an optimizer state.

    Args:
      state: The abstract optimizer state.
      slots: The result of `find_slots`.
      read: Function from a leaf to its array.
      count: Value of the step counters.
    """
    return tree.map_named(
        lambda path, leaf: (
            read(slots[path]) if path in slots else np.full(leaf.shape, count, leaf.dtype)
        ),
        state,
    )
