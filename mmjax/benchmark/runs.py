"""Task configs ("vtab configs"): the runs of a benchmark, in the YAML format of pyVTAB.

A file maps names of runs to an end task (`task`) and how it is trained. What a run leaves out is
taken from the declaration of its end task. Besides the keys of pyVTAB, a run can have `seeds`,
`validation`, `head`, `protocol` and `size`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

from mmjax.benchmark import checks, named_files, names, training_configs, yaml_file
from mmjax.benchmark.results import PROTOCOLS
from mmjax.benchmark.yaml_file import Section
from mmjax.end_tasks import registry
from mmjax.end_tasks.declaration import EndTask
from mmjax.errors import UserError, about, check_choice

_KEYS = (
    *("task", "training_configs", "num_epochs", "batch_size", "test_batch_size", "pre_encode"),
    *("num_dataset_repeats", "task_head_weights_path"),
    *("seeds", "validation", "head", "protocol", "size"),
)
# Keys of training, which evaluation of a trained head does not have.
_TRAINING = (
    *("training_configs", "num_epochs", "num_dataset_repeats", "seeds", "validation", "head"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """An end task and how its heads are trained.

    Attributes:
      name: Name of the run and of its column in reports.
      end_task: Name of the end task.
      configs: {name: options} of the training configurations; empty if heads are only evaluated.
        Options: `optimizer`, `lr`, and optionally `momentum` and `scheduler`.
      epochs: Passes over the training examples.
      batch_size: Examples per update.
      test_batch_size: Examples per batch of validation and test, or None for `batch_size`.
      pre_encode: Whether features are computed once, before training.
      num_dataset_repeats: Number of times the training examples are encoded, each with other random
        augmentation.
      head_weights: Pattern of the head files to evaluate, with %s for the name of the encoder, or
        None to train heads.
      seeds: Number of repetitions of each configuration, or None for that of the command.
      validation: Fraction of the training examples to select configurations on.
      head: `name` and options of the head; empty for the default of the end task.
      protocol: 'default' or 'paper', or None for that of the command.
      size: Height and width of the images in pixels, or None for that of the end task.
    """

    name: str
    end_task: str
    configs: Mapping[str, Mapping[str, Any]]
    epochs: int
    batch_size: int
    test_batch_size: int | None = None
    pre_encode: bool = True
    num_dataset_repeats: int = 1
    head_weights: str | None = None
    seeds: int | None = None
    validation: float = 0.1
    head: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    protocol: Literal["default", "paper"] | None = None
    size: int | None = None


def load(path: str | os.PathLike) -> list[Run]:
    """Returns the runs of a file, in its order.

    Args:
      path: A YAML file, or the name of one that comes with mmjax.

    Raises:
      UserError: The file is not valid; the message names the line and the key.
    """
    file = named_files.find("vtab_configs", path)
    section = yaml_file.read(file)
    if not section:
        raise UserError(f"{file} has no runs. Write 'NAME:' and below it 'task: END_TASK'.")
    runs = [_run(section, key) for key in section]
    directories = (
        (names.directory_name(run.name, config), f"run {run.name}, configuration {config}")
        for run in runs
        for config in run.configs
    )
    names.check_distinct(directories, str(file))
    names.check_distinct(((run.name, f"run {run.name}") for run in runs), str(file))
    return runs


def _run(section: Section, name: Any) -> Run:
    where, values = section.where(name), section[name]
    if name in _KEYS and not isinstance(values, Section):
        runs = [key for key, value in section.items() if isinstance(value, Section)]
        raise UserError(
            f"{where}: {name}={checks.shown(values)} is at the root of the file, where keys are "
            f"names of runs. Indent it below a run{f', for example {runs[0]}' if runs else ''}."
        )
    names.check_name(name, where)
    checks.mapping(values, f"{where}: run {name}")
    for key in values:
        check_choice(f"key of run {name} ({values.where(key)}):", key, _KEYS)
    if "task" not in values:
        raise UserError(f"{where}: run {name} has no task. Add 'task:' with an end task.")
    at = {key: f"{values.where(key)}: {name}.{key}" for key in values}
    task = checks.text(values["task"], at["task"])
    with about(at["task"]):
        declared = registry.find(task)
    _check_evaluation(values, at, declared)
    return Run(
        name=name,
        end_task=task,
        configs=_configs(values, at, declared),
        **_numbers(values, at, declared),
        **_choices(values, at, declared),
    )


def _check_evaluation(values: Section, at: Mapping[str, str], declared: EndTask) -> None:
    """Raises UserError if heads that are only evaluated have keys of training."""
    weights = values.get("task_head_weights_path")
    key = next((key for key in _TRAINING if key in values), None)
    if key is None or weights is None and not declared.evaluation_only:
        return
    reason = (
        "task_head_weights_path evaluates trained heads"
        if weights is not None
        else f"heads of {declared.evaluation_only} are evaluated on {declared.name}"
    )
    raise UserError(f"{at[key]} is for training, but {reason}. Remove one of them.")


def _configs(
    values: Section, at: Mapping[str, str], declared: EndTask
) -> Mapping[str, Mapping[str, Any]]:
    if values.get("task_head_weights_path") is not None or declared.evaluation_only:
        return {}
    if "training_configs" not in values:
        return declared.configs
    return training_configs.parse(values["training_configs"], at["training_configs"])


def _numbers(values: Section, at: Mapping[str, str], declared: EndTask) -> dict[str, Any]:
    def count(key: str, default: int | None) -> int | None:
        return checks.integer(values[key], at[key], least=1) if key in values else default

    result: dict[str, Any] = dict(
        epochs=count("num_epochs", declared.epochs),
        batch_size=count("batch_size", declared.batch_size),
        test_batch_size=count("test_batch_size", None),
        num_dataset_repeats=count("num_dataset_repeats", 1),
        size=count("size", None),
        seeds=count("seeds", None),
        validation=declared.validation,
    )
    if "validation" in values:
        key = "validation"
        result[key] = checks.number(values[key], at[key], above=0, below=1)
    return result


def _choices(values: Section, at: Mapping[str, str], declared: EndTask) -> dict[str, Any]:
    result: dict[str, Any] = dict(pre_encode=declared.encode_once)
    if "pre_encode" in values:
        result["pre_encode"] = checks.boolean(values["pre_encode"], at["pre_encode"])
    if values.get("task_head_weights_path") is not None:
        key = "task_head_weights_path"
        result["head_weights"] = _head_weights(checks.text(values[key], at[key]), at[key])
    if "protocol" in values:
        checks.text(values["protocol"], at["protocol"])
        check_choice(f"protocol ({at['protocol']}):", values["protocol"], PROTOCOLS)
        result["protocol"] = values["protocol"]
    if "head" in values:
        result["head"] = _head(values["head"], at["head"])
    return result


def _head_weights(pattern: str, where: str) -> str:
    if pattern.count("%s") != 1 or pattern.count("%") != 1:
        raise UserError(
            f"{where}={pattern!r} must contain %s once, for the name of the encoder, for example "
            "out/%s/Imagenet-*/model_head.pt."
        )
    return pattern


def _head(value: Any, where: str) -> dict[str, Any]:
    """Returns the section of a head, which can be written as its name only."""
    if isinstance(value, str):
        return {"name": checks.text(value, where)}
    options = dict(checks.mapping(value, where))
    checks.text(options.get("name"), f"{where}.name")
    return options
