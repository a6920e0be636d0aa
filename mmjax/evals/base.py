"""The base class of evaluators, their schedule, and their construction from a config section.

An evaluator computes metrics from a train state. The result tables are formatted here as well.
"""

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
from mmjax.errors import UserError
from mmjax.evals.features import overlap
from mmjax.evals.features.arrays import Features, Request
from mmjax.evals.features.overlap import Fit
from mmjax.evals.features.store import FeatureStore
from mmjax.monitor import report

# Suffixes of values that describe a metric: the value of an uninformative model, half the width of
# the 95 % confidence interval, and the standard deviation over random trials.
CHANCE, CONFIDENCE, DEVIATION = "_chance", "_ci95", "_std"
_COLUMNS = {CHANCE: "chance", CONFIDENCE: "± (95 %)", DEVIATION: "std"}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When and where an evaluator runs.

    Attributes:
      every: Interval in steps. The evaluator runs at multiples of it and at the last step.
      at: 'final' runs only at the last step, which is also the default if `every` is 0.
      where: 'train' runs inside the training process, 'eval' in a separate evaluation job.
    """

    every: int = 0
    at: Literal["", "final"] = ""
    where: Literal["train", "eval"] = "train"

    def due(self, step: int, *, final: bool, last: int | None = None) -> bool:
        """Returns whether to run at `step`.

        Args:
          step: Number of updates done.
          final: Whether this is the last step of the training run.
          last: Step of the previous evaluation, for callers that do not see every step (the
            evaluation job sees only checkpoints). The evaluator is due if a multiple of `every`
            is between `last` and `step`. None means that every step is seen.
        """
        if final or not self.every:
            return final
        previous = step - 1 if last is None else last
        return step // self.every > previous // self.every


class Evaluator(abc.ABC):
    """Computes metrics from a train state.

    Subclasses take the options of their config section as keyword arguments, and pass the others on
    as `**common`. The annotations of the options are checked against the config.

    Args:
      name: Name of the evaluator, which precedes the names of its metrics.
      store: Source of features, shared by the evaluators of a run.
      schedule: When and where to run.
      directory: Directory for output files; the run directory inside a run.
      section: Config key of the section, for error messages; default 'evals.<name>'.
      cache: Whether to keep features on disk and reuse them for the same weights.

    Attributes:
      name, store, schedule, directory, section: The arguments.
      step: Number of updates of the state that `run` was last called with.
      requests: The features that this evaluator needs, in the order of `add_request` calls.
      fits: Which of them a classifier is fitted to and scored on, in the order of `add_fit` calls.
    """

    def __init__(
        self,
        *,
        name: str,
        store: FeatureStore,
        schedule: Schedule | None = None,
        directory: str | os.PathLike = ".",
        section: str = "",
        cache: bool = False,
    ):
        self.name = name
        self.store = store
        self.schedule = schedule or Schedule()
        self.directory = pathlib.Path(directory)
        self.section = section or f"evals.{name}"
        self._cache = cache
        self.step = 0
        self.requests: list[Request] = []
        self.fits: list[Fit] = []
        self._fits_checked = False

    def key(self, option: str) -> str:
        """Returns the full config key of an option, for error messages."""
        return f"config.{self.section}.{option}"

    def check_minimum(self, minimum: int, **options: int) -> None:
        """Raises UserError for an option that is less than `minimum`."""
        for option, value in options.items():
            if value < minimum:
                raise UserError(f"{self.key(option)} must be at least {minimum}; got {value}.")

    def add_request(self, names: Sequence[str], **options: Any) -> Request:
        """Returns a request for features, and records it so that `check` verifies it.

        Args:
          names: Outputs of the predict function that are needed.
          **options: Arguments of `FeatureStore.request`.

        Raises:
          UserError: The request is invalid.
        """
        request = self.store.request(names, cache=self._cache, section=self.section, **options)
        self.requests.append(request)
        return request

    def add_fit(self, fitted: Sequence[Request], scored: Request) -> Fit:
        """Records that a classifier is fitted to some features and scored on others.

        `check` and `run` refuse examples that are in both. Get the features with `get_fit`.

        Args:
          fitted: Requests of the examples that it is fitted to.
          scored: Request of the examples that it is scored on.
        """
        fit = Fit(tuple(fitted), scored)
        self.fits.append(fit)
        return fit

    def get_fit(self, state: Mapping[str, Any], fit: Fit) -> tuple[list[Features], Features]:
        """Returns the features that a classifier is fitted to, and those that it is scored on.

        Raises:
          UserError: All scored examples have the same features as fitted ones.
        """
        fitted = [self.store.get(state, request) for request in fit.fitted]
        scored = self.store.get(state, fit.scored)
        names = [name for name in scored.arrays if all(name in part.arrays for part in fitted)]
        overlap.check_features(fitted, scored, names, where=self.section)
        return fitted, scored

    def check_fits(self) -> None:
        """Raises UserError if a classifier would be scored on examples that it is fitted to."""
        for fit in self.fits:
            overlap.check_records(self.store, fit, where=self.section)
        self._fits_checked = True

    def check(self, state: Mapping[str, Any]) -> None:
        """Opens the datasets and traces the outputs, so that mistakes show up before training.

        Args:
          state: A train state of arrays or of `jax.ShapeDtypeStruct`.

        Raises:
          UserError: A dataset, split or output does not exist.
        """
        for request in self.requests:
            try:
                self.store.check(state, request)
            except UserError as error:
                raise UserError(f"config.{self.section}: {error}") from error
        self.check_fits()
        fitted = {request for fit in self.fits for request in fit.fitted}
        for request in dict.fromkeys(self.requests):
            if request not in fitted:
                overlap.check_training_split(self.store, request, where=self.section)

    @abc.abstractmethod
    def evaluate(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Returns the metrics of a state by name, without the name of the evaluator."""

    def run(self, state: Mapping[str, Any], step: int) -> dict[str, float]:
        """Returns `{name/metric: value}` for a train state.

        Args:
          state: A train state. `ema`, or `params` without it, and `extra` are read.
          step: Number of updates of the state.
        """
        start = time.monotonic()
        self.step = step
        if not self._fits_checked:
            self.check_fits()
        with _one_device():
            metrics = self.evaluate(state)
        logging.info(
            "Evaluated %s at step %d in %.1f s.", self.name, step, time.monotonic() - start
        )
        return {f"{self.name}/{metric}": float(value) for metric, value in metrics.items()}


# Arguments of every evaluator that its section cannot set.
PROVIDED = ("name", "store", "schedule", "directory", "section")


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
      store: Source of features.
      directory: Directory for output files.

    Raises:
      UserError: An unknown type or key, or a value of the wrong type or out of range.
    """
    section, where = dict(section), f"evals.{name}"
    if "type" not in section:
        raise UserError(
            f"config.{where}.type is missing. Set it to one of {', '.join(types)}, or to "
            "'package.module:Name'."
        )
    cls = registry.resolve(f"config.{where}.type", section.pop("type"), types)
    schedule = _make_schedule(section, where)
    options = {key: value for key, value in section.items() if key not in _SCHEDULE}
    return cls(
        name=name,
        store=store,
        schedule=schedule,
        directory=directory,
        **config.keywords(cls, options, where, provided=PROVIDED, also=("type", *_SCHEDULE)),
    )


_SCHEDULE = tuple(field.name for field in dataclasses.fields(Schedule))


def _make_schedule(section: Mapping[str, Any], where: str) -> Schedule:
    values = {key: section[key] for key in _SCHEDULE if key in section}
    schedule = Schedule(**config.keywords(Schedule, values, where))
    if schedule.every < 0:
        raise UserError(f"config.{where}.every must be at least 0 steps; got {schedule.every}.")
    if schedule.every and schedule.at:
        raise UserError(
            f"config.{where}.every={schedule.every} and config.{where}.at={schedule.at!r} exclude "
            "each other. Remove one of them: every=N includes the last step."
        )
    return schedule


def _one_device() -> contextlib.AbstractContextManager:
    """Returns a context with a mesh of one local device.

    Everything after the features is the same on every process. With the mesh of the training run
    (`jax.set_mesh`), every device would repeat it.
    """
    types = (jax.sharding.AxisType.Auto,)
    device = jax.local_devices()[:1]
    return jax.set_mesh(jax.make_mesh((1,), ("one",), axis_types=types, devices=device))


def names_tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    """Returns one or several names as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


def with_chance(metrics: Mapping[str, float], chance: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics, each followed by its chance level if that is known."""
    result = {}
    for name, value in metrics.items():
        result[name] = value
        if name in chance:
            result[name + CHANCE] = chance[name]
    return result


def format_results(results: Mapping[str, float], *, title: str = "") -> str:
    """Returns a table of `{evaluator/metric: value}`.

    Chance levels, confidence intervals and standard deviations have columns of their own.
    """
    suffixes = {name + suffix: suffix for name in results for suffix in _COLUMNS}
    used = {suffixes[name] for name in results if name in suffixes} | {CHANCE}
    columns = {suffix: title for suffix, title in _COLUMNS.items() if suffix in used}
    rows, previous = [], None
    for name, value in results.items():
        if name in suffixes:
            continue
        evaluator, _, metric = name.partition("/")
        others = [results.get(name + suffix) for suffix in columns]
        rows.append(("" if evaluator == previous else evaluator, metric, value, *others))
        previous = evaluator
    header = ("evaluator", "metric", "value", *columns.values())
    return report.format_table(header, rows, title=title)
