"""Plans the conversion of PyTorch files once their model is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np

from mmjax.convert.matching import compare, targets_of_keys
from mmjax.convert.plan import UNKNOWN_KEY, ConversionPlan
from mmjax.convert.torch_source import TorchSource
from mmjax.formats.name_rules import Leaf
from mmjax.state import ModelDef


def plan_torch(
    source: TorchSource,
    *,
    name: str,
    cfg: ml_collections.ConfigDict,
    model: ModelDef,
    leaves: Mapping[str, Leaf] | None = None,
    **options: Any,
) -> ConversionPlan:
    """Returns the plan that fills a model from PyTorch files.

    Args:
      source: The entries of the files.
      name: Name of the source, for reports.
      cfg: The config that builds the model.
      model: The model.
      leaves: The leaves of the source that belong to the model; None for all.
      **options: Further attributes of `ConversionPlan`.
    """
    arrays = source.arrays()
    mismatches, random_paths = compare(
        model,
        source.leaves if leaves is None else leaves,
        source.mismatches | dict.fromkeys(source.unknown_keys(), UNKNOWN_KEY),
        source.keys_of,
    )
    keys = {
        key: (value.shape, str(value.dtype))
        if isinstance(value, np.ndarray)
        else ((), type(value).__name__)
        for key, value in source.entries.items()
    }
    targets = {key: mismatches.get(key, "not matched") for key in keys}
    return ConversionPlan(
        source=name,
        step=source.step,
        cfg=cfg,
        model=model,
        keys=keys,
        targets=targets | targets_of_keys(source.leaves, source.unused_keys),
        source_keys={path: leaf.keys for path, leaf in source.leaves.items()},
        read=lambda path: source.leaves[path].read(arrays),
        mismatches=mismatches,
        random_paths=random_paths,
        details={"components": source.components},
        **options,
    )
