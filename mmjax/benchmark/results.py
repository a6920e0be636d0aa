"""The result of one cell of the benchmark: an encoder, an end task and a training configuration.

It is stored as `OUT/<experiment>/<run>-<config>/results.json`. The fields of pyVTAB's files keep
their names: `train_loss`, `train_accuracy`, `test_loss` and `test_accuracy`, of which cells without
training have only the last two. "Accuracy" is the metric of the end task, whatever it is.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy import stats

from mmjax import files
from mmjax.benchmark import checks, names
from mmjax.errors import UserError, about, check_choice

FILE_NAME = "results.json"
TRAINING_FIELDS = ("train_loss", "train_accuracy")
ORIGINAL_FIELDS = (*TRAINING_FIELDS, "test_loss", "test_accuracy")
PROTOCOLS = ("default", "paper")
_ADVICE = "Delete the file to run this cell again."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """A finished cell. Numbers are NaN if they are undefined, as after divergence.

    Attributes:
      experiment: Name of the experiment, that is, of the encoder.
      run: Name of the run. It differs from the end task if one is run several times.
      end_task: Name in the registry of end tasks, or `package.module:Name`.
      config_name: Name of the training configuration.
      config: Its options.
      metric: Name of the metric that `*_accuracy` contain.
      higher_is_better: Whether larger values of the metric are better.
      train_loss, train_accuracy: At the reported epoch; None for a cell without training.
      test_loss, test_accuracy: Means over the seeds.
      validation_accuracy: Mean over the seeds, by which configurations are selected. A cell without
        training has that of the head it evaluates. None if there is no validation part.
      best_epoch: The reported epoch, from 1; None without training.
      epochs: Number of epochs of training; None without training.
      seeds: Seeds of the repetitions.
      test_values: Metric on test of each seed.
      ci95: Half of the 95 % confidence interval of the mean of `test_values`; None for one seed.
      metrics: All test metrics by name.
      protocol: 'default' selects on validation data, 'paper' on test data.
      seconds: Wall time.
      cell_hash: Hash of all that determines the result. A cell with the same one is not run again.
      version: Version of mmjax.
    """

    experiment: str
    run: str
    end_task: str
    config_name: str
    metric: str
    higher_is_better: bool
    test_loss: float
    test_accuracy: float
    train_loss: float | None = None
    train_accuracy: float | None = None
    validation_accuracy: float | None = None
    best_epoch: int | None = None
    epochs: int | None = None
    seeds: Sequence[int] = ()
    test_values: Sequence[float] = ()
    ci95: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    protocol: Literal["default", "paper"] = "default"
    seconds: float | None = None
    cell_hash: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        for key in ("experiment", "run", "config_name"):
            names.check_name(getattr(self, key), key)
        check_choice("protocol", self.protocol, PROTOCOLS)
        if (self.train_loss is None) != (self.train_accuracy is None):
            raise UserError("train_loss and train_accuracy must both be present or both be absent.")
        if len(self.seeds) != len(self.test_values):
            raise UserError(
                f"seeds has {len(self.seeds)} items and test_values {len(self.test_values)}; they "
                "must have one for each repetition."
            )
        mean = float(np.mean(self.test_values)) if self.test_values else math.nan
        if math.isfinite(mean) and not math.isclose(mean, self.test_accuracy, rel_tol=1e-4):
            raise UserError(
                f"test_accuracy must be the mean of test_values, {mean:g}; got "
                f"{self.test_accuracy:g}."
            )

    @property
    def key(self) -> tuple[str, str, str]:
        """(experiment, run, configuration), which no two results share."""
        return self.experiment, self.run, self.config_name


def confidence(values: Sequence[float]) -> float | None:
    """Returns half of the 95 % confidence interval of the mean of independent repetitions.

    Args:
      values: One value per seed. The interval is that of Student's t distribution.

    Returns:
      None for fewer than two values, for which there is no interval.
    """
    if len(values) < 2:
        return None
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))


def path_of(out: str | os.PathLike, experiment: str, run: str, config_name: str) -> pathlib.Path:
    """Returns the file of a result; see the module docstring."""
    return pathlib.Path(out, experiment, names.directory_name(run, config_name), FILE_NAME)


def write(result: Result, out: str | os.PathLike) -> pathlib.Path:
    """Writes a result atomically and returns its file.

    Args:
      result: The result. Numbers that are not finite become null.
      out: Directory of the benchmark.
    """
    values = _finite(dataclasses.asdict(result))
    if result.train_loss is None:
        values = {key: value for key, value in values.items() if key not in TRAINING_FIELDS}
    path = path_of(out, *result.key)
    files.write_json(path, values)
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: str | os.PathLike) -> Result:
    """Returns the result in a file that `write` has written.

    Raises:
      UserError: A field is missing, unknown or of the wrong type; the message names the file and
        the field.
    """
    return from_object(files.read_object(path, _ADVICE), path)


def from_object(values: Mapping[str, Any], path: str | os.PathLike) -> Result:
    """Returns the result in the JSON object of a file; see `read`."""
    required = [key for key in _FIELDS if key not in TRAINING_FIELDS]
    if missing := [key for key in required if key not in values]:
        raise UserError(f"{path}: missing {', '.join(missing)}. {_ADVICE}")
    for key in values:
        check_choice(f"key of {path}:", key, _FIELDS)
    with about(path):
        return Result(**{key: _FIELDS[key](item, key) for key, item in values.items()})


def number_or_nan(value: Any, where: str) -> float:
    """Returns a number, or NaN for null and for the NaN and Infinity that Python writes."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return math.nan
    return checks.number(value, where)


def _optional(check: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, where: None if value is None else check(value, where)


def _list_of(check: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    return lambda value, where: tuple(
        check(item, f"{where}[{n}]") for n, item in enumerate(checks.items(value, where))
    )


def _numbers_by_name(value: Any, where: str) -> dict[str, float]:
    values = checks.mapping(value, where)
    return {key: number_or_nan(item, f"{where}.{key}") for key, item in values.items()}


def _any_text(value: Any, where: str) -> str:
    return value if value == "" else checks.text(value, where)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    return dict(checks.mapping(value, where))


_FIELDS: dict[str, Callable[[Any, str], Any]] = {
    **dict.fromkeys(("experiment", "run", "end_task", "config_name", "metric"), checks.text),
    "config": _mapping,
    "higher_is_better": checks.boolean,
    **dict.fromkeys(ORIGINAL_FIELDS, number_or_nan),
    "validation_accuracy": _optional(checks.number),
    "best_epoch": _optional(checks.integer),
    "epochs": _optional(checks.integer),
    "seeds": _list_of(checks.integer),
    "test_values": _list_of(number_or_nan),
    "ci95": _optional(checks.number),
    "metrics": _numbers_by_name,
    "protocol": checks.text,
    "seconds": _optional(checks.number),
    "cell_hash": _any_text,
    "version": _any_text,
}
