"""Writes the run directory of a conversion."""

from __future__ import annotations

import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mmjax import config, files, tree
from mmjax.checkpoints import run_dir
from mmjax.checkpoints.manager import Checkpoints
from mmjax.convert.plan import ConversionPlan
from mmjax.convert.report import format_report
from mmjax.errors import UserError
from mmjax.monitor import nonfinite

REPORT = "conversion.txt"


def write_run(
    plan: ConversionPlan, out: str | os.PathLike, *, allow: Sequence[str] = ()
) -> pathlib.Path:
    """Writes a run directory atomically: checkpoint, config, report and vocabulary.

    Args:
      plan: The conversion.
      out: The run directory; it must not exist, or be empty.
      allow: Patterns of keys whose mismatches are accepted. Arrays that lack them are randomly
        initialized.

    Returns:
      The absolute path of the run directory.

    Raises:
      UserError: A mismatch is not allowed, or `out` exists or cannot be written.
    """
    plan.check(allow)
    out = pathlib.Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} already exists. Pass another path, or delete it.")
    try:
        with files.atomic_path(out) as partial:
            partial.mkdir()
            _write(plan, partial, out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}.") from error
    return out


def _write(plan: ConversionPlan, directory: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the files into `directory`, which is renamed to `out` afterwards."""
    params, extra = plan.model.params, plan.model.extra
    if plan.random_paths:
        params, extra = plan.model.init(jax.random.key(0))

    def value(path: str, leaf: Any) -> np.ndarray:
        return np.asarray(leaf) if path in plan.random_paths else plan.read(path)

    params, extra = tree.map_named(value, params), tree.map_named(value, extra)
    leaves = tree.flatten(params) | tree.flatten(extra)
    nonfinite.warn_about_weights(leaves, plan.source, plan.source_keys)
    state = {
        "step": np.asarray(plan.step, np.int32),
        "params": params,
        "extra": extra,
    }
    if plan.make_optimizer_state is not None:
        state["opt"] = plan.make_optimizer_state()
    checkpoints = Checkpoints(directory)
    checkpoints.save(plan.step, state, {"step": plan.step, "examples": 0})
    checkpoints.close()
    cfg = plan.cfg.copy_and_resolve_references()
    if plan.vocabulary is not None:
        name = plan.vocabulary.file_name
        shutil.copyfile(plan.vocabulary.path, directory / name)
        cfg.data.text.update(vocab=str(out / name), tokenizer=plan.vocabulary.tokenizer)
    files.write_text(directory / run_dir.CONFIG, config.to_json(cfg) + "\n")
    files.write_text(directory / REPORT, format_report(plan) + "\n")
    run = run_dir.RunDir(directory, create=False)
    run.write_record(source=plan.source, step=plan.step, converted=time.strftime(run_dir.TIME))
    run.write_complete(plan.step)  # an evaluation job then waits for no trainer
