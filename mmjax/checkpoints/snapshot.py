"""Copies of checkpoints that no trainer deletes: for readers beside it, and of the best one."""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from mmjax.checkpoints import run_dir as rundir
from mmjax.checkpoints.manager import FROZEN, METADATA, directory_of, list_steps
from mmjax.errors import UserError, choose, unknown

BEST = "best"  # the folder in a run directory; it reads like a run directory


def snapshot(run_dir: str | os.PathLike, step: int, target: str | os.PathLike) -> bool:
    """Copies a checkpoint (hard links where possible) to `<target>/checkpoints/<step>`.

    A trainer may delete an old checkpoint while it is being read; a snapshot cannot vanish.

    Returns:
      False if the checkpoint vanished before it was copied.

    Raises:
      UserError: the copy cannot be written.
    """
    source = directory_of(run_dir) / str(step)
    final = directory_of(target) / str(step)
    partial = final.with_name(f"{step}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(a, b)

    try:
        before = _files(source)
        shutil.copytree(source, partial, copy_function=link)
        _link_frozen(source.parent, final.parent, link)
        complete = before == _files(partial) == _files(source) and METADATA in before
    except OSError as error:
        # shutil.Error is one: [(source, target, why), …]
        failed = (
            [item[0] for item in error.args[0]] if isinstance(error, shutil.Error) else [source]
        )
        if all(os.path.exists(path) for path in failed):
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"Could not copy {source} to {final}: {error}. Free some space there, or make it "
                "writable."
            ) from error
        complete = False
    if not complete:
        shutil.rmtree(partial, ignore_errors=True)
        return False
    partial.rename(final)
    return True


def _link_frozen(source: pathlib.Path, target: pathlib.Path, link: Callable[[str, str], None]):
    """The frozen parameters of a run beside a copy of one of its steps; nobody deletes them."""
    for directory in source.glob(f"{FROZEN}-*"):
        if (directory / METADATA).exists() and not (target / directory.name).exists():
            partial = target / f"{directory.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(directory, partial, copy_function=link)
            partial.rename(target / directory.name)


def _files(directory: pathlib.Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


class Best:
    """Keeps the checkpoint with the best value of a metric in `<run>/best`, whatever is deleted.

    The folder reads like a run directory. What it holds stands in its `best.json`, so the best
    survives stops and resumes, and a trainer and an evaluation job may offer in turn.

    Args:
      run_dir: the run directory.
      metric: `<evaluator>/<metric>`; '' keeps nothing.
      best_of: 'max' or 'min'. Of equal values the later one counts.
      evaluators: names of those that there are.

    Raises:
      UserError: an evaluator that is not there.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike,
        *,
        metric: str = "",
        best_of: str = "max",
        evaluators: Sequence[str] = (),
    ):
        self._sign = choose("config.checkpoint.best_of", best_of, {"max": 1.0, "min": -1.0})
        self.metric = metric
        name = metric.partition("/")[0]
        if metric and name not in evaluators:
            raise unknown(
                f"evaluator of config.checkpoint.best={metric}:", name, sorted(evaluators)
            )
        self._run = pathlib.Path(run_dir).absolute()
        self._record = self._run / BEST / "best.json"

    @classmethod
    def from_config(
        cls, run_dir: str | os.PathLike, section: dict[str, Any], evaluators: Mapping[str, Any]
    ) -> Best:
        """Takes `best` and `best_of` out of a config's section `checkpoint`."""
        names = tuple(name for name, value in evaluators.items() if value is not None)
        metric, best_of = section.pop("best", ""), section.pop("best_of", "max")
        return cls(run_dir, metric=metric, best_of=best_of, evaluators=names)

    def improved_by(self, results: Mapping[str, float]) -> bool:
        """Whether these results hold the metric, at least as good as the best so far."""
        if not self.metric or self.metric not in results:
            evaluator = self.metric.partition("/")[0]
            there = [name for name in results if self.metric and name.startswith(f"{evaluator}/")]
            if there and f"{evaluator}/failed" not in there:
                logging.error(
                    "config.checkpoint.best=%s: the evaluator has no such metric. It has: %s.",
                    self.metric,
                    ", ".join(there),
                )
            return False
        value = results[self.metric]
        before = json.loads(self._record.read_text())["value"] if self._record.is_file() else None
        return math.isfinite(value) and (
            before is None or self._sign * value >= self._sign * before
        )

    def keep(self, step: int, results: Mapping[str, float]) -> None:
        """Copies the checkpoint of `step`, which must be complete, in place of the best before."""
        if not snapshot(self._run, step, self._record.parent):
            logging.warning(
                "The best checkpoint so far, of step %d, was deleted before it could be kept. Let "
                "the trainer keep more (--config.checkpoint.keep).",
                step,
            )
            return
        value = results[self.metric]
        record = {"metric": self.metric, "value": value, "step": step}
        partial = self._record.with_name(".best.json.partial")
        partial.write_text(json.dumps(record) + "\n")
        partial.rename(self._record)
        if (config := self._run / rundir.CONFIG).is_file():
            shutil.copyfile(config, self._record.with_name(rundir.CONFIG))
        for old in list_steps(self._record.parent):
            if old != step:
                shutil.rmtree(directory_of(self._record.parent) / str(old))
        logging.info(
            "Best %s so far: %.4g at step %d, kept in %s.",
            self.metric,
            value,
            step,
            self._record.parent,
        )
