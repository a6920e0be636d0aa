"""What every evaluator is: a name, a schedule, and numbers from a train state."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from absl import logging

from mmjax import config, registry
from mmjax.errors import UserError, check_choice
from mmjax.evals.features.store import FeatureStore, Request
from mmjax.monitor import report

# Beside a metric `x` may stand what a model that knows nothing would reach, half of the 95 %
# confidence interval of x, and the standard deviation of x over random trials.
CHANCE, CONFIDENCE, DEVIATION = "_chance", "_ci95", "_std"
_COLUMNS = {CHANCE: "chance", CONFIDENCE: "± (95 %)", DEVIATION: "std"}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When and where an evaluator runs.

    Attributes:
      every: at multiples of so many steps, and at the last one.
      at: 'final', at the last step only (the default if `every` is not given).
      where: 'train', inside the training process, or 'eval', in the evaluation job beside it.
    """

    every: int = 0
    at: Literal["", "final"] = ""
    where: Literal["train", "eval"] = "train"

    def __post_init__(self):
        check_choice("evaluator option where:", self.where, ("train", "eval"))
        check_choice("evaluator option at:", self.at, ("", "final"))
        if not isinstance(self.every, int) or self.every < 0:
            raise UserError(f"An evaluator's every={self.every!r} must be a number of steps.")
        if self.every and self.at:
            raise UserError(
                f"An evaluator has every={self.every} or at={self.at!r}, not both; "
                "every=N includes the last step."
            )

    def due(self, step: int, *, final: bool, last: int | None = None) -> bool:
        """Whether to run at `step`.

        Args:
          step: updates done.
          final: whether it is the last step of the training.
          last: for those who do not see every step (the evaluation job sees checkpoints): the step
            of the run before. Then it is due once a multiple of `every` was passed.
        """
        if final or not self.every:
            return final
        previous = step - 1 if last is None else last
        return step // self.every > previous // self.every


class Evaluator(abc.ABC):
    """Numbers from a train state. Subclasses take their options as keyword arguments.

    Args:
      name: first part of the names of its metrics.
      store: where features come from, shared by the evaluators of a run.
      schedule: when and where it runs.
      folder: where it may leave files, the run directory; default the current one.
      cache: keep features on disk, so that the same weights need not compute them again.

    Attributes:
      step: updates of the state that `run` was last called with.
    """

    def __init__(
        self,
        *,
        name: str,
        store: FeatureStore,
        schedule: Schedule | None = None,
        directory: str | os.PathLike = ".",
        cache: bool = False,
    ):
        self.name = name
        self.store = store
        self.schedule = schedule or Schedule()
        self.directory = pathlib.Path(directory)
        self._cache = cache
        self.step = 0
        self.requests: list[Request] = []

    def ask(self, names: Sequence[str], **options: Any) -> Request:
        """`FeatureStore.request`; kept in `requests`, so that `check` finds what cannot be."""
        self.requests.append(self.store.request(names, cache=self._cache, **options))
        return self.requests[-1]

    def check(self, state: Mapping[str, Any]) -> None:
        """Opens the datasets and traces the outputs, so that mistakes show before the training.

        Args:
          state: a train state, arrays or `jax.ShapeDtypeStruct`.

        Raises:
          UserError: a dataset, split or output that is not there.
        """
        for request in self.requests:
            self.store.check(state, request)

    @abc.abstractmethod
    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """The metrics of a state, by names without the evaluator's own."""

    def run(self, state: Mapping[str, Any], step: int) -> dict[str, float]:
        """`{name/metric: value}` for a train state: `params` or `ema`, and `extra` are read."""
        began = time.monotonic()
        self.step = step
        with _one_device():
            metrics = self.evaluate(state)
        logging.info(
            "Evaluated %s at step %d in %.1f s.", self.name, step, time.monotonic() - began
        )
        return {f"{self.name}/{metric}": float(value) for metric, value in metrics.items()}


# Arguments of every evaluator that are not options of its section.
_PROVIDED = ("name", "store", "schedule", "folder")


def make_evaluator(
    name: str,
    section: Mapping[str, Any],
    *,
    types: Mapping[str, Any],
    store: FeatureStore,
    directory: str | os.PathLike,
) -> Evaluator:
    """Returns the evaluator of a config section.

    Args:
      name: Name of the evaluator in `config.evals`.
      section: `type`, the keys of `Schedule`, and options of the type.
      types: Evaluator classes by type; `package.module:Name` works as well.
      store: Where features come from.
      folder: Where the evaluator may write files.

    Raises:
      UserError: An unknown type or key, or a value of the wrong type or out of range.
    """
    section, where = dict(section), f"evals.{name}"
    if "type" not in section:
        raise UserError(f"config.{where}.type is missing. Valid: {', '.join(types)}.")
    kind = registry.resolve(f"config.{where}.type", section.pop("type"), types)
    timing = [field.name for field in dataclasses.fields(Schedule)]
    schedule = {key: section.pop(key) for key in timing if key in section}
    options = config.keywords(kind, section, where, provided=_PROVIDED, also=timing)
    return kind(
        name=name,
        store=store,
        schedule=Schedule(**config.keywords(Schedule, schedule, where)),
        directory=directory,
        **options,
    )


def _one_device() -> contextlib.AbstractContextManager:
    """What follows the features is the same on every process: it runs on one device of each.

    Without this, the mesh of the training (`jax.set_mesh`) would make every device repeat it.
    """
    types = (jax.sharding.AxisType.Auto,)
    device = jax.local_devices()[:1]
    return jax.set_mesh(jax.make_mesh((1,), ("one",), axis_types=types, devices=device))


def with_chance(metrics: Mapping[str, float], chance: Mapping[str, float]) -> dict[str, float]:
    """Metrics, each followed by its chance level where there is one."""
    result = {}
    for name, value in metrics.items():
        result[name] = value
        if name in chance:
            result[name + CHANCE] = chance[name]
    return result


def format_results(results: Mapping[str, float], *, title: str = "") -> str:
    """A table from `{evaluator/metric: value}`; what stands beside a metric has its own columns."""
    beside = {name + suffix: suffix for name in results for suffix in _COLUMNS}
    used = {beside[name] for name in results if name in beside} | {CHANCE}
    columns = {suffix: title for suffix, title in _COLUMNS.items() if suffix in used}
    rows, previous = [], None
    for name, value in results.items():
        if name in beside:
            continue
        evaluator, _, metric = name.partition("/")
        others = [results.get(name + suffix) for suffix in columns]
        rows.append(("" if evaluator == previous else evaluator, metric, value, *others))
        previous = evaluator
    header = ("evaluator", "metric", "value", *columns.values())
    return report.format_table(header, rows, title=title)
