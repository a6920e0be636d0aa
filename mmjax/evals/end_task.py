"""Metrics of the heads of `--task=probe` on a split of their end task."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

from mmjax import distributed, files, tree
from mmjax.end_tasks.declaration import EndTask
from mmjax.errors import UserError
from mmjax.evals import end_task_metrics
from mmjax.evals.base import CONFIDENCE, Evaluator
from mmjax.evals.features.arrays import Features
from mmjax.formats import npy
from mmjax.losses.end_task import statistic_names

BEST_FILE = "best_heads.npz"  # in the run directory
_HEADS = "heads"


class EndTaskMetrics(Evaluator):
    """Metrics of each training configuration: means over its seeds, with confidence intervals.

    Reports `CONFIGURATION/METRIC`, `CONFIGURATION/METRIC_ci95` (half of the 95 % confidence
    interval of the mean over seeds) and, for the metric of the end task, its value for each seed,
    `CONFIGURATION/seedN`. With `keep_best`, `CONFIGURATION/best` is the mean of the best values of
    the seeds, and `CONFIGURATION/best_step` the median of their steps.

    Args:
      data: Data set; '' for the training data.
      split: Split to evaluate.
      batch_size: Number of examples in a batch, over all devices.
      limit: Number of leading examples to use; 0 for all.
      keep_best: Whether to keep the heads that are best on this split, each at its own step.
      heads: 'current', or the 'best' of another evaluator.
      paper_batch: Examples per batch of the metrics of pyVTAB that depend on it; 0 omits these
        metrics. The last batch is left out if it is incomplete.

    Raises:
      UserError: The task is not `--task=probe`, or the options exclude each other.
    """

    def __init__(
        self,
        *,
        data: str = "",
        split: str = "test",
        batch_size: int = 64,
        limit: int = 0,
        keep_best: bool = False,
        heads: Literal["current", "best"] = "current",
        paper_batch: int = 0,
        **common: Any,
    ):
        super().__init__(**common)
        self.check_minimum(0, limit=limit, paper_batch=paper_batch)
        if keep_best and heads == "best":
            raise UserError(
                f"{self.key('keep_best')}=True selects the best heads, which {self.key('heads')}="
                "'best' reads. Set one of them."
            )
        task = self.store.task
        if not hasattr(task, "end_task"):
            raise UserError(f"{self.key('type')}='end_task' evaluates runs of --task=probe.")
        self._end_task, self._groups = task.end_task, task.groups
        self._metric = primary_metric(task.end_task, paper=bool(paper_batch))
        self._keep_best, self._use_best, self._paper_batch = keep_best, heads == "best", paper_batch
        self._statistics = statistic_names(self._end_task.target, task.num_outputs)
        self._request = self.add_request(
            [f"{group}/{name}" for group in self._groups for name in self._statistics],
            predict="statistics",
            data=data,
            split=split,
            batch_size=batch_size,
            limit=limit,
            nonfinite=True,  # of heads that have diverged, which must not affect the others
        )

    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of the heads."""
        if self._use_best:
            state = BestHeads.read(self.directory / BEST_FILE).replaced(state)
        features = self.store.get(state, self._request)
        result: dict[str, float] = {}
        selected = {}
        for group in self._groups:
            values = self._metrics(features, group)
            selected[group] = values[self._metric]
            result |= _summary(group, values, self._metric)
        if self._keep_best:
            best = self._update_best(state, selected)
            for group, each in best.values.items():
                result[f"{group}/best"] = float(np.mean(each))
                result[f"{group}/best_step"] = float(np.median(best.steps[group]))
        return result

    def _metrics(self, features: Features, group: str) -> dict[str, np.ndarray]:
        """Returns {metric: float [seeds]} of a configuration."""
        statistics = {name: features.arrays[f"{group}/{name}"] for name in self._statistics}
        return end_task_metrics.compute(
            statistics,
            self._end_task,
            labels=features.label,
            paper_batch=self._paper_batch,
        )

    def _update_best(self, state: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> BestHeads:
        """Keeps the heads that are better than before, and returns the best ones."""
        path = self.directory / BEST_FILE
        best = BestHeads.read(path) if path.exists() else None
        new = BestHeads.of(state, values, self.step)
        if best is not None:
            new = best.merged(new, higher_is_better=self._end_task.higher_is_better)
        if distributed.is_primary() and (best is None or new.changed(best)):
            new.write(path)
        distributed.barrier("best heads")
        return new


def primary_metric(end_task: EndTask, *, paper: bool) -> str:
    """Returns the metric that heads are compared by.

    Args:
      end_task: The end task.
      paper: Whether it is that of pyVTAB's code.
    """
    return (paper and end_task.paper_metric) or end_task.metric


class BestHeads:
    """The best parameters of each head so far, with their metric and step.

    Args:
      arrays: {path: array}: `params/GROUP/…` and `extra/GROUP/…` with a leading axis of seeds,
        `value/GROUP` and `step/GROUP`, one per seed.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = dict(arrays)

    @classmethod
    def of(cls, state: Mapping[str, Any], values: Mapping[str, np.ndarray], step: int) -> BestHeads:
        """Returns the heads of a train state, given their metric."""
        arrays = {}
        for part in ("params", "extra"):
            heads = jax.device_get(state[part].get(_HEADS, {}))
            arrays |= {f"{part}/{path}": leaf for path, leaf in tree.flatten(heads).items()}
        for group, each in values.items():
            arrays[f"value/{group}"] = np.asarray(each, np.float64)
            arrays[f"step/{group}"] = np.full(len(each), step)
        return cls(arrays)

    @classmethod
    def read(cls, path: pathlib.Path) -> BestHeads:
        """Returns the heads in a file.

        Raises:
          UserError: The file does not exist or is damaged.
        """
        if not path.exists():
            raise UserError(
                f"{path} does not exist: no evaluator with keep_best=True has run before this one. "
                "List it first in config.evals."
            )
        with npy.Archive(path) as file:
            return cls({name: file.read(name) for name in file.names})

    def write(self, path: pathlib.Path) -> None:
        """Writes the heads atomically."""
        with files.atomic_open(path, "wb") as file:
            np.savez(file, **self._arrays)

    @property
    def steps(self) -> dict[str, np.ndarray]:
        """{group: step of each head}."""
        return self._parts("step")

    @property
    def values(self) -> dict[str, np.ndarray]:
        """{group: metric of each head}."""
        return self._parts("value")

    def _parts(self, kind: str) -> dict[str, np.ndarray]:
        prefix = f"{kind}/"
        return {k.removeprefix(prefix): v for k, v in self._arrays.items() if k.startswith(prefix)}

    def of_group(self, group: str) -> dict[str, np.ndarray]:
        """Returns {`params/…` or `extra/…`: array [seeds, …]} of a configuration."""
        result = {}
        for path, array in self._arrays.items():
            part, owner, *rest = path.split("/")
            if owner == group and rest:
                result["/".join([part, *rest])] = array
        return result

    def merged(self, new: BestHeads, *, higher_is_better: bool) -> BestHeads:
        """Returns the better one of each pair of heads; of equal ones, the earlier."""
        sign = 1 if higher_is_better else -1
        better = {
            group: np.where(np.isnan(old), ~np.isnan(new.values[group]), False)
            | (sign * new.values[group] > sign * old)
            for group, old in self.values.items()
        }
        result = {}
        for path, old in self._arrays.items():
            mask = better[path.split("/")[1]]
            mask = mask.reshape(-1, *(1,) * (old.ndim - 1))
            result[path] = np.where(mask, new._arrays[path], old)
        return BestHeads(result)

    def changed(self, other: BestHeads) -> bool:
        """Returns whether a head differs from those of an earlier step."""
        return any((each != other.steps[group]).any() for group, each in self.steps.items())

    def replaced(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a train state with these heads."""
        result = {k: v for k, v in state.items() if k != "ema"}
        for part in ("params", "extra"):
            if _HEADS not in state[part]:
                continue
            heads = tree.map_named(
                lambda path, leaf, part=part: jax.device_put(
                    np.asarray(self._arrays[f"{part}/{path}"], leaf.dtype), leaf.sharding
                ),
                state[part][_HEADS],
            )
            result[part] = {**state[part], _HEADS: heads}
        return result


def _summary(group: str, values: Mapping[str, np.ndarray], metric: str) -> dict[str, float]:
    """Returns the reported values of a configuration."""
    result = {}
    for name, each in values.items():
        result[f"{group}/{name}"] = float(np.mean(each))
        if len(each) > 1:
            result[f"{group}/{name}{CONFIDENCE}"] = end_task_metrics.confidence(each)
    if len(values[metric]) > 1:
        result |= {f"{group}/seed{s}": float(value) for s, value in enumerate(values[metric])}
    return result
