"""Describes a conversion: the output of `mmjax convert --inspect`, and `conversion.txt`."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mmjax import config
from mmjax.convert.matching import format_mismatches, is_statistic, model_shapes
from mmjax.convert.plan import ConversionPlan


def key_table(plan: ConversionPlan) -> list[dict[str, Any]]:
    """Returns `key`, `shape`, `dtype` and `target` (see `ConversionPlan.targets`) of each key."""
    return [
        {"key": key, "shape": shape, "dtype": dtype, "target": plan.targets[key]}
        for key, (shape, dtype) in plan.keys.items()
    ]


def summary(plan: ConversionPlan) -> dict[str, Any]:
    """Returns a description of the source that can be written as JSON."""
    sizes = {path: math.prod(shape) for path, shape in model_shapes(plan.model).items()}
    statistics = sum(size for path, size in sizes.items() if is_statistic(path))
    used = {key for keys in plan.source_keys.values() for key in keys}
    reasons = [text.split(":")[0] for key, text in plan.targets.items() if key not in used]
    return {
        "checkpoint": plan.source,
        "step": plan.step,
        "model": config.resolve(plan.cfg).model,
        "parameters": sum(sizes.values()) - statistics,
        "statistics": statistics,
        "arrays": len(sizes) - len(plan.random_paths),
        "optimizer": plan.num_optimizer_arrays,
        "vocabulary": plan.vocabulary and dataclasses.asdict(plan.vocabulary),
        "unused_keys": dict(collections.Counter(reasons)),
        **plan.details,
        "mismatches": plan.mismatches,
    }


def model_name(model: Mapping[str, Any]) -> str:
    """Returns the name of a model, or the names of its towers."""
    towers = [o["name"] for o in model.values() if isinstance(o, Mapping) and "name" in o]
    return model.get("name") or " + ".join(towers)


def format_report(plan: ConversionPlan, *, arrays: bool = True) -> str:
    """Returns the summary and a table of keys as text.

    Args:
      plan: The conversion.
      arrays: Whether to add a table of the model's arrays.
    """
    values = summary(plan)
    model = dict(values["model"])
    lines = [f"{values['checkpoint']}: {model_name(model)}, step {values['step']}"]
    model.pop("name", None)
    for name, options in model.items():
        if options is None:
            continue
        if isinstance(options, dict):
            tower = f"{options.pop('name')}: " if "name" in options else ""
            options = tower + ", ".join(f"{key}={value}" for key, value in options.items())
        lines.append(f"  {name:<12}{options}")
    lines.append(
        f"{values['parameters']:,} parameters and {values['statistics']:,} BatchNorm statistics "
        f"in {values['arrays']} arrays"
    )
    if plan.make_optimizer_state is not None:
        lines.append(
            f"{values['optimizer']} arrays of the optimizer state ({plan.cfg.optimizer.name}): "
            "training can be resumed"
        )
    lines += plan.notes
    if values["unused_keys"]:
        counts = ", ".join(f"{count} {reason}" for reason, count in values["unused_keys"].items())
        lines.append(f"Unused keys: {counts}")
    if plan.mismatches:
        lines += ["Mismatches:", format_mismatches(plan.mismatches, limit=len(plan.mismatches))]
    lines += ["", "Targets of all source keys (target, type ← key):"]
    table = [(r["target"], f"{r['dtype']} {r['shape']}", r["key"]) for r in key_table(plan)]
    widths = [max(len(row[i]) for row in table) for i in range(2)]
    lines += [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  ← {c}" for a, b, c in table]
    if arrays:
        lines += ["", "Sources of all arrays (array ← source):", *_array_lines(plan)]
    return "\n".join(lines)


def _array_lines(plan: ConversionPlan) -> list[str]:
    lines = []
    for path, shape in model_shapes(plan.model).items():
        if path in plan.random_paths:
            source = "randomly initialized"
        else:
            count = len(plan.source_keys[path])
            source = f"{count} key{'s' if count > 1 else ''}"
        part = "extra" if is_statistic(path) else "params"
        lines.append(f"  {part}/{path} {shape} ← {source}")
    return lines
