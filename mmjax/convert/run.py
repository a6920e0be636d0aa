"""A run directory made of somebody else's weights, with a report of every name."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from mmjax import config, tree
from mmjax.checkpoints import run_dir
from mmjax.checkpoints.manager import Checkpoints
from mmjax.convert import vocabulary
from mmjax.convert.problems import is_statistic, listing
from mmjax.errors import UserError
from mmjax.state import ModelDef

REPORT = "conversion.txt"


@dataclasses.dataclass
class Plan:
    """What a conversion will do.

    Attributes:
      source: what is read, as reports name it.
      step: of the weights.
      cfg: the config that builds their model.
      model: that model.
      keys: {key: (shape, name of the type)}, everything there is in the source.
      becomes: {key: our path (with the layer), or 'class' or 'class: more' of a key without use}.
      made_of: {our path: the keys it is made of}; statistics of BatchNorm without `extra/`, arrays
        of the optimizer's state with `opt/`.
      read: the array of one of these paths, but the optimizer's.
      problems: {key or path: what is wrong}, all there are.
      fresh: our paths that cannot be filled.
      optimizer: makes the state of the optimizer of `cfg`; None if the source does not have it all.
      slots: arrays in it.
      facts: what else the summary says.
      notes: lines of the report that say what a user must know.
      vocabulary: that the table of words is of; None if it was not given, or there is no table.
      partial: why no run directory can be made of this alone; '' if one can.
    """

    source: str
    step: int
    cfg: ml_collections.ConfigDict
    model: ModelDef
    keys: Mapping[str, tuple[tuple[int, ...], str]]
    becomes: dict[str, str]
    source_keys: Mapping[str, Sequence[str]]
    read: Callable[[str], np.ndarray]
    problems: dict[str, str]
    fresh: list[str]
    optimizer: Callable[[], dict] | None = None
    slots: int = 0
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    vocabulary: vocabulary.Vocabulary | None = None
    partial: str = ""


def target_of(model: ModelDef) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's arrays, statistics without `extra/` in front."""
    leaves = tree.flatten(model.params) | tree.flatten(model.extra)
    return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def becomes_of(leaves: Mapping[str, Any], unused_keys: Mapping[str, str]) -> dict[str, str]:
    """`Plan.becomes` of leaves (`keys`, `stacked`) by our path, and of what is left over."""
    paths: dict[str, list[str]] = collections.defaultdict(list)
    for path, leaf in leaves.items():
        for layer, key in enumerate(leaf.keys):
            paths[key].append(f"{path}[{layer}]" if leaf.stacked else path)
    return {key: _together(names) for key, names in paths.items()} | dict(unused_keys)


def _together(paths: Sequence[str]) -> str:
    """One name for the arrays that a key is cut into: what differs stands in braces."""
    if len(paths) == 1:
        return paths[0]
    parts = [path.split("/") for path in paths]
    same = [set(column) for column in zip(*parts, strict=True)]
    return "/".join(
        part if len(names) == 1 else "{" + ",".join(p[i] for p in parts) + "}"
        for i, (part, names) in enumerate(zip(parts[0], same, strict=True))
    )


def compare(
    model: ModelDef,
    leaves: Mapping[str, Any],
    problems: Mapping[str, str],
    keys_of: Callable[[str, tuple[int, ...]], Sequence[str]],
) -> tuple[dict[str, str], list[str]]:
    """`Plan.problems` and `Plan.fresh` of leaves (`keys`, `shape`) for a model.

    Args:
      model: what they should make up.
      leaves: by our path.
      problems: what is known to be wrong.
      keys_of: the keys that make up our array of a path and shape.
    """
    problems, target, fresh = dict(problems), target_of(model), []
    for path, shape in target.items():
        leaf, keys = leaves.get(path), keys_of(path, shape)
        if leaf is None:
            problems = dict.fromkeys(keys, f"missing, of {path} {shape}") | problems
        elif leaf.shape != shape:
            problems.setdefault(leaf.keys[0], f"makes {path} {leaf.shape}, the model's is {shape}")
        if leaf is None or leaf.shape != shape or any(key in problems for key in keys):
            fresh.append(path)
    for path, leaf in leaves.items():
        if path not in target:
            problems |= dict.fromkeys(leaf.keys, f"makes {path}, which the model does not have")
    return problems, fresh


def check(plan: Plan, allow: Sequence[str] = ()) -> None:
    """Raises unless every problem is one that a pattern allows.

    Raises:
      UserError: it names them.
    """
    allowed = tree.first_match(allow, list(plan.problems), what="--allow", every_pattern=False)
    wrong = {name: what for name, what in plan.problems.items() if allowed[name] is None}
    if wrong:
        raise UserError(
            f"{plan.source} does not make a whole model:\n{listing(wrong)}\n"
            "--allow PATTERN leaves out the keys it matches; arrays that lack them start fresh."
        )
    if plan.partial:
        raise UserError(plan.partial)


def convert(plan: Plan, out: str | os.PathLike, *, allow: Sequence[str] = ()) -> pathlib.Path:
    """Writes the run directory: checkpoint, `config.json`, `run.json`, the report, the vocabulary.

    It appears under its name when it is complete, or not at all.

    Args:
      plan: from `vatt_plan.plan` or `tvl_plan.plan`.
      out: the run directory; it must not be there yet, or be empty.
      allow: patterns of keys that may be missing, unknown or of another shape. The arrays they
        belong to get a fresh model's values.

    Raises:
      UserError: a problem that is not allowed, or `out` cannot be written.
    """
    check(plan, allow)
    out = pathlib.Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already. Give another, or delete it.")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        _write(plan, partial, out)
        partial.rename(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _write(plan: Plan, directory: pathlib.Path, out: pathlib.Path) -> None:
    """Writes into `directory`, which will be called `out`."""
    params, extra = plan.model.params, plan.model.extra
    if plan.fresh:
        params, extra = plan.model.init(jax.random.key(0))

    def value(path: str, leaf: Any) -> np.ndarray:
        return np.asarray(leaf) if path in plan.fresh else plan.read(path)

    state = {
        "step": np.asarray(plan.step, np.int32),
        "params": tree.map_named(value, params),
        "extra": tree.map_named(value, extra),
    }
    if plan.optimizer is not None:
        state["opt"] = plan.optimizer()
    saved = Checkpoints(directory)
    saved.save(plan.step, state, {"step": plan.step, "examples": 0})
    saved.close()
    cfg = plan.cfg.copy_and_resolve_references()
    if plan.vocabulary is not None:
        file = plan.vocabulary.file
        shutil.copyfile(plan.vocabulary.path, directory / file)
        cfg.data.text.update(vocab=str(out / file), tokenizer=plan.vocabulary.tokenizer)
    (directory / run_dir.CONFIG).write_text(config.to_json(cfg) + "\n")
    (directory / REPORT).write_text(report(plan) + "\n")
    run = run_dir.RunDir(directory, create=False)
    run.write_record(source=plan.source, step=plan.step, converted=time.strftime(run_dir.TIME))
    run.write_complete(plan.step)  # nobody trains here


# -------------------------------------------------------------------------------------- the report


def rows(plan: Plan) -> list[dict[str, Any]]:
    """For each key: `key`, `shape`, `dtype`, `becomes`: our path (with the layer), or a class."""
    return [
        {"key": key, "shape": shape, "dtype": dtype, "becomes": plan.becomes[key]}
        for key, (shape, dtype) in plan.keys.items()
    ]


def summary(plan: Plan) -> dict[str, Any]:
    """What the source is."""
    sizes = {path: math.prod(shape) for path, shape in target_of(plan.model).items()}
    statistics = sum(n for path, n in sizes.items() if is_statistic(path))
    used = {key for keys in plan.source_keys.values() for key in keys}
    left = [what.split(":")[0] for key, what in plan.becomes.items() if key not in used]
    return {
        "checkpoint": plan.source,
        "step": plan.step,
        "model": config.resolve(plan.cfg).model,
        "parameters": sum(sizes.values()) - statistics,
        "statistics": statistics,
        "arrays": len(sizes) - len(plan.fresh),
        "optimizer": plan.slots,
        "vocabulary": plan.vocabulary and dataclasses.asdict(plan.vocabulary),
        "leftovers": dict(collections.Counter(left)),
        **plan.facts,
        "problems": plan.problems,
    }


def name_of(model: Mapping[str, Any]) -> str:
    """What a model is called: its name, or its towers'."""
    towers = [o["name"] for o in model.values() if isinstance(o, Mapping) and "name" in o]
    return model.get("name") or " + ".join(towers)


def report(plan: Plan, *, arrays: bool = True) -> str:
    """The summary, a table of keys and, if `arrays`, one of our arrays."""
    facts = summary(plan)
    model = dict(facts["model"])
    lines = [f"{facts['checkpoint']}: {name_of(model)}, step {facts['step']}"]
    model.pop("name", None)
    for name, options in model.items():
        if options is None:
            continue
        if isinstance(options, dict):
            kind = f"{options.pop('name')}: " if "name" in options else ""
            options = kind + ", ".join(f"{key}={value}" for key, value in options.items())
        lines.append(f"  {name:<12}{options}")
    lines.append(
        f"{facts['parameters']:,} parameters and {facts['statistics']:,} statistics of BatchNorm "
        f"in {facts['arrays']} arrays"
    )
    if plan.optimizer is not None:
        lines.append(
            f"{facts['optimizer']} arrays of the optimizer {plan.cfg.optimizer.name}: the training "
            "can go on"
        )
    lines += plan.notes
    if facts["leftovers"]:
        counts = ", ".join(f"{n} {what}" for what, n in facts["leftovers"].items())
        lines.append(f"Left over: {counts}")
    if plan.problems:
        lines += ["Problems:", listing(plan.problems, limit=len(plan.problems))]
    lines += ["", "Every key and what it becomes:"]
    table = [(r["becomes"], f"{r['dtype']} {r['shape']}", r["key"]) for r in rows(plan)]
    widths = [max(len(row[i]) for row in table) for i in range(2)]
    lines += [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  ← {c}" for a, b, c in table]
    if arrays:
        lines += ["", "Every array and what it is made of:"]
        for path, shape in target_of(plan.model).items():
            if path in plan.fresh:
                source = "fresh"
            else:
                number = len(plan.source_keys[path])
                source = f"{number} key{'s' if number > 1 else ''}"
            where = "extra" if is_statistic(path) else "params"
            lines.append(f"  {where}/{path} {shape} ← {source}")
    return "\n".join(lines)
