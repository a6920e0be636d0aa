"""The plan of a conversion of PyTorch's files, once their model is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from mmjax.convert import run
from mmjax.convert.torch_contents import Contents
from mmjax.formats.name_rules import Leaf
from mmjax.state import ModelDef


def make(
    contents: Contents,
    *,
    source: str,
    cfg: ml_collections.ConfigDict,
    model: ModelDef,
    leaves: Mapping[str, Leaf] | None = None,
    **more: Any,
) -> run.Plan:
    """Compares what files hold with the model that they tell of.

    Args:
      contents: of the files.
      source: what they are called.
      cfg: the config that builds the model.
      model: that model.
      leaves: those of the contents that it is made of; None is all.
      **more: of `run.Plan`.
    """
    unknown = dict.fromkeys(contents.unknown(), "is no array of a model that mmjax knows")
    arrays = contents.arrays()
    problems, fresh = run.compare(
        model,
        contents.leaves if leaves is None else leaves,
        contents.problems | unknown,
        contents.names,
    )
    keys = {
        key: (value.shape, str(value.dtype))
        if isinstance(value, np.ndarray)
        else ((), type(value).__name__)
        for key, value in contents.entries.items()
    }
    rest = {key: problems.get(key, "?") for key in keys}
    return run.Plan(
        source=source,
        step=contents.step,
        cfg=cfg,
        model=model,
        keys=keys,
        becomes=rest | run.becomes_of(contents.leaves, contents.unused_keys),
        source_keys={path: leaf.keys for path, leaf in contents.leaves.items()},
        read=lambda path: contents.leaves[path].read(arrays),
        problems=problems,
        fresh=fresh,
        facts={"parts": contents.parts},
        **more,
    )
