"""A run directory made of a published VATT checkpoint, with a report of every name."""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from mmjax import checkpoint, config, rundir, tree
from mmjax.convert import architecture, slots, tf2, vatt, vatt_names, vocabulary
from mmjax.errors import UserError
from mmjax.initialize import WORDS
from mmjax.models.vatt import make_model
from mmjax.state import ModelDef

REPORT = "conversion.txt"
# Parts whose names were compared with those of real checkpoints; others follow from the classes.
_SEEN = ("vit", "wat", "t5", "unified", "fac", "classifier")


@dataclasses.dataclass
class Plan:
    """What a conversion will do.

    Attributes:
      prefix: of the TensorFlow checkpoint.
      reader: of its arrays.
      contents: its keys, sorted.
      cfg: the config that builds its model.
      model: that model.
      problems: {key or path: what is wrong}, all there are.
      fresh: our paths that cannot be filled.
      optimizer: shapes of the optimizer state of `cfg`.
      slots: {path in it: the keys it is made of}; empty if the checkpoint does not have them all.
      vocabulary: that its table of words is of; None if it was not given, or there is no table.
    """

    prefix: str
    reader: tf2.Reader
    contents: vatt.Contents
    cfg: ml_collections.ConfigDict
    model: ModelDef
    problems: dict[str, str]
    fresh: list[str]
    optimizer: Any
    slots: dict[str, vatt.Leaf]
    vocabulary: vocabulary.Vocabulary | None

    @property
    def num_words(self) -> int | None:
        """Rows of the table of words; None if there is none."""
        return _num_words(self.contents)


def plan(prefix: str, *, head_dim: int | None = None, vocab: str | None = None) -> Plan:
    """Reads the names and shapes of a checkpoint and compares them with the model they tell of.

    Args:
      prefix: from `tf2.find`.
      head_dim: see `architecture.model_section`.
      vocab: the file of words that the model was trained with, if it is known.

    Raises:
      UserError: it cannot be read, is no checkpoint of VATT, or does not tell its model's sizes; or
        `vocab` is not the vocabulary of its table.
    """
    reader = tf2.Reader(prefix)
    contents = vatt.contents_of(reader)
    cfg = architecture.make_config(contents, head_dim=head_dim)
    words = vocabulary.check(vocab, rows=_num_words(contents)) if vocab else None
    model = ModelDef(make_model(**config.plain(cfg.model)))
    problems = dict(contents.problems)
    problems |= dict.fromkeys(contents.unknown(), "is no array of a model that mmjax knows")
    target, fresh = _target(model), []
    for path, shape in target.items():
        leaf, keys = contents.leaves.get(path), vatt_names.keys_of(path, shape, contents.layout)
        if leaf is None:
            problems |= dict.fromkeys(keys, f"missing, of {path} {shape}")
        elif leaf.shape != shape:
            problems.setdefault(leaf.keys[0], f"makes {path} {leaf.shape}, the model's is {shape}")
        if leaf is None or leaf.shape != shape or any(key in problems for key in keys):
            fresh.append(path)
    for path, leaf in contents.leaves.items():
        if path not in target:
            problems |= dict.fromkeys(leaf.keys, f"makes {path}, which the model does not have")
    optimizer = slots.abstract(cfg, model.params)
    found = slots.find(contents, reader.shapes, optimizer) or {}
    return Plan(prefix, reader, contents, cfg, model, problems, fresh, optimizer, found, words)


def _num_words(contents: vatt.Contents) -> int | None:
    leaf = contents.leaves.get(WORDS)
    return None if leaf is None else leaf.shape[0]


def _target(model: ModelDef) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's arrays, statistics without `extra/` in front."""
    leaves = tree.flatten(model.params) | tree.flatten(model.extra)
    return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def check(plan: Plan, allow: Sequence[str] = ()) -> None:
    """Raises unless every problem is one that a pattern allows.

    Raises:
      UserError: it names them.
    """
    allowed = tree.first_match(allow, list(plan.problems), what="--allow", every_pattern=False)
    wrong = {name: what for name, what in plan.problems.items() if allowed[name] is None}
    if wrong:
        raise UserError(
            f"{plan.prefix} does not make a whole model:\n{vatt.listing(wrong)}\n"
            "--allow PATTERN leaves out the keys it matches; arrays that lack them start fresh."
        )


def convert(plan: Plan, out: str | os.PathLike, *, allow: Sequence[str] = ()) -> pathlib.Path:
    """Writes the run directory: checkpoint, `config.json`, `run.json`, the report, the vocabulary.

    It appears under its name when it is complete, or not at all.

    Args:
      plan: from `plan`.
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


def _write(plan: Plan, folder: pathlib.Path, out: pathlib.Path) -> None:
    """Writes into `folder`, which will be called `out`."""
    step = plan.contents.step
    params, extra = plan.model.params, plan.model.extra
    if plan.fresh:
        params, extra = plan.model.init(jax.random.key(0))

    def value(path: str, leaf: Any) -> np.ndarray:
        if path in plan.fresh:
            return np.asarray(leaf)
        return vatt.read_leaf(plan.reader, plan.contents.leaves[path])

    state = {
        "step": np.asarray(step, np.int32),
        "params": tree.map_named(value, params),
        "extra": tree.map_named(value, extra),
    }
    if plan.slots:
        state["opt"] = slots.fill(
            plan.optimizer, plan.slots, lambda leaf: vatt.read_leaf(plan.reader, leaf), step
        )
    saved = checkpoint.Checkpoints(folder)
    saved.save(step, state, {"step": step, "examples": 0})
    saved.close()
    cfg = plan.cfg.copy_and_resolve_references()
    if plan.vocabulary is not None:
        shutil.copyfile(plan.vocabulary.path, folder / vocabulary.FILE)
        cfg.data.text.update(vocab=str(out / vocabulary.FILE), tokenizer=plan.vocabulary.tokenizer)
    (folder / rundir.CONFIG).write_text(config.to_json(cfg) + "\n")
    (folder / REPORT).write_text(report(plan) + "\n")
    run = rundir.RunDir(folder, create=False)
    run.write_record(source=plan.prefix, step=step, converted=time.strftime(rundir.TIME))
    run.write_complete(step)  # nobody trains here


# -------------------------------------------------------------------------------------- the report


def rows(plan: Plan) -> list[dict[str, Any]]:
    """For each key: `key`, `shape`, `dtype`, `becomes`: our path (with the layer), or a class."""
    becomes = _leftovers(plan)
    leaves = plan.contents.leaves | {f"opt/{path}": leaf for path, leaf in plan.slots.items()}
    for path, leaf in leaves.items():
        for layer, key in enumerate(leaf.keys):
            becomes[key] = f"{path}[{layer}]" if leaf.stacked else path
    return [
        {"key": key, "shape": shape, "dtype": dtype, "becomes": becomes[key]}
        for key, (shape, dtype) in plan.reader.shapes.items()
    ]


def _leftovers(plan: Plan) -> dict[str, str]:
    """{key: class} of the keys that nothing is made of."""
    used = {key for leaf in plan.slots.values() for key in leaf.keys}
    return {key: what for key, what in plan.contents.leftovers.items() if key not in used}


def summary(plan: Plan) -> dict[str, Any]:
    """What the checkpoint is."""
    sizes = {path: math.prod(shape) for path, shape in _target(plan.model).items()}
    statistics = sum(n for path, n in sizes.items() if vatt_names.is_statistic(path))
    return {
        "checkpoint": plan.prefix,
        "step": plan.contents.step,
        "model": config.plain(plan.cfg.model),
        "parameters": sum(sizes.values()) - statistics,
        "statistics": statistics,
        "arrays": len(sizes) - len(plan.fresh),
        "optimizer": len(plan.slots),
        "words": plan.num_words,
        "vocabulary": plan.vocabulary and dataclasses.asdict(plan.vocabulary),
        "leftovers": dict(collections.Counter(_leftovers(plan).values())),
        "inferred": [kind for kind in plan.contents.kinds.values() if kind not in _SEEN],
        "problems": plan.problems,
    }


def report(plan: Plan, *, arrays: bool = True) -> str:
    """The summary, a table of keys and, if `arrays`, one of our arrays."""
    facts = summary(plan)
    model = dict(facts["model"])
    lines = [f"{facts['checkpoint']}: {model.pop('name')}, step {facts['step']}"]
    for name, options in model.items():
        if isinstance(options, dict):
            kind = f"{options.pop('name')}: " if "name" in options else ""
            options = kind + ", ".join(f"{key}={value}" for key, value in options.items())
        lines.append(f"  {name:<12}{options}")
    lines.append(
        f"{facts['parameters']:,} parameters and {facts['statistics']:,} statistics of BatchNorm "
        f"in {facts['arrays']} arrays"
    )
    if plan.slots:
        lines.append(
            f"{facts['optimizer']} arrays of the optimizer {plan.cfg.optimizer.name}: the training "
            "can go on"
        )
    if plan.num_words is not None:
        lines.append(vocabulary.describe(plan.vocabulary, rows=plan.num_words))
    if facts["inferred"]:
        lines.append(
            f"The names of {', '.join(facts['inferred'])} follow from the published classes; no "
            "checkpoint with them was there to compare."
        )
    if facts["leftovers"]:
        counts = ", ".join(f"{n} {what}" for what, n in facts["leftovers"].items())
        lines.append(f"Left over: {counts}")
    if plan.problems:
        lines += ["Problems:", vatt.listing(plan.problems, limit=len(plan.problems))]
    lines += ["", "Every key and what it becomes:"]
    table = [(r["becomes"], f"{r['dtype']} {r['shape']}", r["key"]) for r in rows(plan)]
    widths = [max(len(row[i]) for row in table) for i in range(2)]
    lines += [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  ← {c}" for a, b, c in table]
    if arrays:
        lines += ["", "Every array and what it is made of:"]
        for path, shape in _target(plan.model).items():
            if path in plan.fresh:
                source = "fresh"
            else:
                number = len(plan.contents.leaves[path].keys)
                source = f"{number} key{'s' if number > 1 else ''}"
            where = "extra" if vatt_names.is_statistic(path) else "params"
            lines.append(f"  {where}/{path} {shape} ← {source}")
    return "\n".join(lines)
