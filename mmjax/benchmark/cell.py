"""One cell of the benchmark: the heads of an encoder on an end task, from options to results.

A cell trains all its configurations and seeds at once, in the shared training loop. Its run
directory is `OUT/<experiment>/.runs/<run>`, in which an interrupted cell continues.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import pathlib
import re
import time
from collections.abc import Mapping
from typing import Any

from mmjax import config, train
from mmjax.benchmark import heads, names, results
from mmjax.benchmark.encode import SPLITS
from mmjax.benchmark.image_encoder import ImageEncoder
from mmjax.benchmark.options import ProbeOptions, TrainingConfig
from mmjax.benchmark.prepare import data_section, prepare
from mmjax.benchmark.results import Result
from mmjax.checkpoints.run_dir import RunDir
from mmjax.config import Config
from mmjax.errors import UserError
from mmjax.evals.end_task import primary_metric
from mmjax.evals.features import cache as feature_cache
from mmjax.monitor import metrics_file

_FORMAT = 1  # of `cell_hash`; a change runs all cells again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell.

    Attributes:
      experiment: Name of the experiment, that is, of the encoder.
      run: Name of the run.
      options: How its heads are trained.
      head: Section `model.head`; {} for the default head of the end task.
      data: Further keys of the section `data`, for example `corrupt`.
      out: Directory of the benchmark.
      seed: Seed of the data order and of the first head.
    """

    experiment: str
    run: str
    options: ProbeOptions
    head: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    out: str
    seed: int = 0

    @property
    def directory(self) -> pathlib.Path:
        """Its run directory."""
        suffix = "" if self.options.uses_table else f"-{self.options.training_configs[0].name}"
        return names.run_directory(self.out, self.experiment, f"{self.run}{suffix}")

    @property
    def title(self) -> str:
        """Encoder, run and, of a single configuration, its name."""
        configs = self.options.training_configs
        return f"{self.experiment} / {self.run}" + (
            f" ({configs[0].name})" if len(configs) == 1 else f" ({len(configs)} configurations)"
        )

    def config(self) -> Config:
        """Returns the config before `prepare`."""
        cfg = config.base()
        cfg.task, cfg.seed, cfg.tensorboard = "probe", self.seed, True
        cfg.data = dict(self.data)
        resolved = config.resolve(cfg)
        section = {
            field.name: getattr(self.options, field.name)
            for field in dataclasses.fields(self.options)
            if getattr(self.options, field.name) != field.default
        }
        section["configs"] = tuple(map(dataclasses.asdict, self.options.training_configs))
        return dataclasses.replace(resolved, probe=section, model={"head": dict(self.head)})


def cell_hash(cell: Cell, encoder: ImageEncoder) -> str:
    """Returns a hash of everything that determines the results of a cell, but for the code."""
    from mmjax.data.sources import registry

    data = data_section(cell.config(), cell.options, encoder)
    sources = {split: registry.open_source(data["train"], split=split) for split in SPLITS}
    key = {
        "format": _FORMAT,
        "weights": encoder.fingerprint,
        "encoder": encoder.section,
        "options": dataclasses.asdict(cell.options),
        "head": cell.head,
        "seed": cell.seed,
        "data": {k: v for k, v in data.items() if k != "train"},
        "sources": {s: feature_cache.source_identity(source) for s, source in sources.items()},
    }
    text = json.dumps(key, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def finished(cell: Cell, digest: str) -> bool:
    """Returns whether all results of a cell exist.

    Raises:
      UserError: A result is of other options, data or weights.
    """
    count = 0
    for one in cell.options.training_configs:
        path = results.path_of(cell.out, cell.experiment, cell.run, one.name)
        if not path.exists():
            continue
        if results.read(path).cell_hash != digest:
            raise UserError(
                f"{path} is the result of other options, data or weights. Delete "
                f"{path.parent}, or pass another --out."
            )
        count += 1
    return count == len(cell.options.training_configs)


def run_cell(
    cell: Cell, encoder: ImageEncoder, digest: str, *, progress: bool = False
) -> list[Result]:
    """Trains and evaluates the heads of a cell, and writes its results.

    Args:
      cell: The cell.
      encoder: Its encoder.
      digest: From `cell_hash`.
      progress: Whether to show progress bars.

    Returns:
      The results, one per training configuration.

    Raises:
      UserError: The data cannot be read, an option is invalid, or an evaluation failed.
    """
    started = time.monotonic()
    prepared = prepare(cell.config(), encoder=encoder, progress=progress)
    _check_directory(cell, prepared)
    train.train(prepared, str(cell.directory))
    values = metrics_file.values_at(cell.directory, prepared.total_steps)
    failed = [name for name in values if name.endswith("/failed")]
    if failed or not values:
        raise UserError(f"The evaluation failed; see the log of {cell.title}.")
    seconds = time.monotonic() - started
    written = []
    for one in cell.options.training_configs:
        result = _result(cell, one, values, prepared, digest, seconds)
        directory = results.path_of(cell.out, *result.key).parent
        heads.write(directory, prepared.model["head"]["name"], cell.directory, one.group)
        results.write(result, cell.out)  # last: it marks the cell as finished
        written.append(result)
    return written


def _check_directory(cell: Cell, prepared: Config) -> None:
    """Raises UserError if the run directory has a run of another config."""
    path = cell.directory / "config.json"
    if not path.exists():
        return
    stored = config.resolve(RunDir(cell.directory, create=False).read_config())
    for key in ("probe", "data", "model", "total_steps", "batch_size", "seed"):
        if _comparable(getattr(stored, key)) != _comparable(getattr(prepared, key)):
            raise UserError(
                f"{cell.directory} has an interrupted run with another config.{key}. Delete it, or "
                "pass another --out."
            )


def _comparable(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _result(
    cell: Cell,
    one: TrainingConfig,
    values: Mapping[str, float],
    prepared: Config,
    digest: str,
    seconds: float,
) -> Result:
    """Returns the result of a training configuration from the metrics of the last step."""
    task, options = cell.options.task, cell.options
    metric = primary_metric(task, paper=options.paper)
    test = _of_group(values, "test", one.group)
    training = _of_group(values, "train", one.group)
    validation = _of_group(values, "validation", one.group)
    seeds = options.num_seeds
    test_values = tuple(test.get(f"seed{s}", test[metric]) for s in range(seeds))
    steps_per_epoch = prepared.total_steps // (options.epochs or task.epochs)
    best_step = validation.get("best_step", prepared.total_steps)
    return Result(
        experiment=cell.experiment,
        run=cell.run,
        end_task=options.end_task,
        config_name=one.name,
        config=dataclasses.asdict(one),
        metric=metric,
        higher_is_better=task.higher_is_better,
        test_loss=test["loss"],
        test_accuracy=test[metric],
        train_loss=training["loss"],
        train_accuracy=training.get(metric, math.nan),
        validation_accuracy=validation.get("best"),
        best_epoch=round(best_step / steps_per_epoch),
        epochs=options.epochs or task.epochs,
        seeds=tuple(range(cell.seed, cell.seed + seeds)),
        test_values=test_values,
        ci95=results.confidence(test_values),
        metrics={k: v for k, v in test.items() if not re.fullmatch(r"seed\d+|.*_ci95", k)},
        protocol=options.protocol,
        seconds=round(seconds, 2),
        cell_hash=digest,
        version=importlib.metadata.version("mmjax"),
    )


def _of_group(values: Mapping[str, float], evaluator: str, group: str) -> dict[str, float]:
    prefix = f"{evaluator}/{group}/"
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
