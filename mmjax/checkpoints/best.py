"""The best checkpoint of a run by an evaluation metric."""

from __future__ import annotations

import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from mmjax import files
from mmjax.checkpoints.find import checkpoints_dir, list_steps
from mmjax.checkpoints.run_dir import CONFIG, RECORD
from mmjax.checkpoints.snapshot import snapshot
from mmjax.errors import UserError, choose, unknown

BEST = "best"  # directory in the run directory


class Best:
    """Keeps the checkpoint with the best value of a metric in `<run>/best`.

    That directory can be used like a run directory. Its `best.json` records the metric, value and
    step, so the best checkpoint survives restarts, and a trainer and an evaluation job may update
    it in turn.

    Args:
      run_dir: The run directory.
      metric: `<evaluator>/<metric>`; '' keeps no checkpoint.
      best_of: 'max' or 'min'. Of equal values the later one is kept.
      evaluators: Names of the configured evaluators.

    Raises:
      UserError: The evaluator does not exist, or `best_of` is invalid.
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
            raise unknown(f"evaluator in config.checkpoint.best={metric}:", name, evaluators)
        self._run = pathlib.Path(run_dir).absolute()
        self._directory = self._run / BEST
        self._record = self._directory / "best.json"

    @classmethod
    def from_config(
        cls, run_dir: str | os.PathLike, section: dict[str, Any], evaluators: Mapping[str, Any]
    ) -> Best:
        """Returns the instance of a config; removes `best` and `best_of` from `section`.

        Args:
          run_dir: The run directory.
          section: The section `checkpoint`.
          evaluators: The section `evals`.
        """
        names = tuple(name for name, value in evaluators.items() if value is not None)
        metric, best_of = section.pop("best", ""), section.pop("best_of", "max")
        return cls(run_dir, metric=metric, best_of=best_of, evaluators=names)

    def improved_by(self, results: Mapping[str, float]) -> bool:
        """Returns whether the results contain the metric and equal or exceed the best value."""
        if not self.metric or self.metric not in results:
            self._report_missing(results)
            return False
        value = results[self.metric]
        if not math.isfinite(value):
            return False
        best = self._read()
        return best is None or self._sign * value >= self._sign * best["value"]

    def step(self) -> int:
        """Returns the step of the best checkpoint, or -1 without one."""
        best = self._read() if self.metric else None
        return -1 if best is None else best["step"]

    def _read(self) -> dict[str, Any] | None:
        if not self._record.exists():
            return None
        advice = f"Delete {self._directory} to start over."
        record = files.read_object(self._record, advice)
        expected = {"value": (int, float), "step": int}
        if not all(isinstance(record.get(key), types) for key, types in expected.items()):
            raise UserError(
                f"{self._record} is damaged: it contains {str(record)[:80]!r}, not a value and a "
                f"step. {advice}"
            )
        return record

    def _report_missing(self, results: Mapping[str, float]) -> None:
        """Logs an error if the evaluator ran but does not have the metric."""
        evaluator = self.metric.partition("/")[0]
        own = [name for name in results if self.metric and name.startswith(f"{evaluator}/")]
        if own and f"{evaluator}/failed" not in own:
            logging.error(
                "config.checkpoint.best=%s: evaluator %s has no such metric. Its metrics: %s.",
                self.metric,
                evaluator,
                ", ".join(own),
            )

    def keep(self, step: int, results: Mapping[str, float]) -> None:
        """Replaces the best checkpoint by that of `step`, which must be complete."""
        if not snapshot(self._run, step, self._directory):
            logging.warning(
                "The best checkpoint, of step %d, was deleted before it could be copied. Increase "
                "--config.checkpoint.keep.",
                step,
            )
            return
        value = results[self.metric]
        try:
            for name in (CONFIG, RECORD):
                if (path := self._run / name).is_file():
                    files.write_text(self._directory / name, files.read_text(path))
            files.write_json(self._record, {"metric": self.metric, "value": value, "step": step})
        except OSError as error:
            raise UserError(
                f"Cannot write {self._directory}: {error.strerror or error}. Free disk space or "
                "make the directory writable, then run the same command again."
            ) from error
        for old in list_steps(self._directory):
            if old != step:
                shutil.rmtree(checkpoints_dir(self._directory) / str(old))
        logging.info(
            "Best %s so far: %.4g at step %d. Kept in %s.",
            self.metric,
            value,
            step,
            self._directory,
        )
