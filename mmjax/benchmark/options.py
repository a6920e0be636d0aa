"""The section `probe` of a config: how heads are trained on an end task and selected."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from mmjax import config
from mmjax.end_tasks.declaration import EndTask
from mmjax.end_tasks.registry import find
from mmjax.errors import UserError

Protocol = Literal["default", "paper"]
# pyVTAB's names of schedulers: (ours, {its option: ours}).
_SCHEDULERS: dict[str, tuple[str, dict[str, str]]] = {
    "StepLR": ("step", {"step_size": "step_size", "gamma": "gamma"}),
    "OneCycle": ("one_cycle", {}),
    "Poly": ("poly", {"exponent": "exponent"}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A training configuration of a head, as in pyVTAB's YAML files.

    Attributes:
      name: Its name, for example 'adam-0.0001'.
      optimizer: 'adam' or 'sgd'.
      lr: Learning rate.
      momentum: Momentum of SGD.
      scheduler: `type` (StepLR, OneCycle or Poly) and its options; None for a constant rate.
    """

    name: str
    optimizer: Literal["adam", "sgd"]
    lr: float
    momentum: float = 0.0
    scheduler: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            raise UserError(f"{self.name}: momentum={self.momentum} is only for optimizer='sgd'.")
        if not self.lr > 0:
            raise UserError(f"{self.name}: lr must be positive; got {self.lr}.")

    @property
    def group(self) -> str:
        """Name of the head in paths of parameters and metrics, which contain no dots."""
        return re.sub(r"[^\w+-]", "_", self.name)

    def optimizer_section(self, *, pattern: str, steps_per_epoch: int, disabled: bool) -> dict:
        """Returns the section of `config.optimizer.groups`.

        Args:
          pattern: Regular expression of the paths of its parameters.
          steps_per_epoch: Updates per epoch.
          disabled: Whether schedulers stay at their first value, as in pyVTAB's published code.

        Raises:
          UserError: An unknown scheduler, or an option that it lacks.
        """
        section: dict[str, Any] = {"pattern": pattern, "name": self.optimizer}
        if self.momentum:
            section["momentum"] = self.momentum
        schedule = dict(self.scheduler or {})
        if not schedule:
            return section | {"schedule": dict(name="constant", base=self.lr)}
        where = f"probe.configs.{self.name}.scheduler"
        kind = schedule.pop("type", None)
        config.check_keys([f"type={kind}"], [f"type={name}" for name in _SCHEDULERS], where)
        name, options = _SCHEDULERS[kind]
        config.check_keys(schedule, options, where, owner=kind)
        own = {options[key]: value for key, value in schedule.items()}
        if name != "poly":
            own["steps_per_epoch"] = steps_per_epoch
        if name == "one_cycle":
            section.pop("momentum", None)  # the schedule determines it
        return section | {"schedule": dict(name=name, base=self.lr, disabled=disabled, **own)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """The section `probe`. None and 0 select the default of the end task.

    Attributes:
      end_task: Name of the end task, or `package.module:Name`.
      root: Directory of the data sets, or `world` for procedural stand-ins; `world,train=2000`
        draws more examples.
      epochs: Passes over the training examples.
      batch_size: Examples per update.
      eval_batch_size: Examples per batch of an evaluation.
      seeds: Number of repetitions of each configuration: by default 3 on features that are computed
        once, else 1.
      protocol: 'default' selects configurations and epochs on validation examples and reports the
        test examples once. 'paper' does as pyVTAB: all training examples, the last epoch, selection
        on test, its metrics, and training without the last incomplete batch of each epoch.
      schedulers: 'meant', or 'disabled' as in pyVTAB's published code, which never steps them.
      validation: Fraction of the training examples to select on; 0 for the published split or the
        fraction of the end task.
      evaluations: Number of evaluations on validation (or, with 'paper', test) examples.
      encode_once: Whether to compute features before training.
      repeats: Variants of each training example, with random colors, if features are computed once.
      pca: Number of principal components of the features to keep; 0 keeps them all.
      fine_tune: Whether to train the encoder, too; for one configuration and seed.
      size: Height and width of images for which the end task declares no size; 0 for the size that
        the encoder was trained on.
      train_size: (height, width) of training examples; () for the declared or the above size.
      test_size: (height, width) of validation and test examples; () as for `train_size`.
      configs: The training configurations; () for those of the paper.
      train_limit: Number of training examples that training metrics are computed on; 0 for all.
    """

    end_task: str
    root: str = "datasets"
    epochs: int = 0
    batch_size: int = 0
    eval_batch_size: int = 0
    seeds: int = 0
    protocol: Protocol = "default"
    schedulers: Literal["meant", "disabled"] = "meant"
    validation: float = 0.0
    evaluations: int = 20
    encode_once: bool | None = None
    repeats: int = 1
    pca: int = 0
    fine_tune: bool = False
    size: int = 0
    train_size: tuple[int, ...] = ()
    test_size: tuple[int, ...] = ()
    configs: tuple[TrainingConfig, ...] = ()
    train_limit: int = 0

    def __post_init__(self) -> None:
        least = dict(epochs=0, batch_size=0, eval_batch_size=0, seeds=0, evaluations=1)
        least |= dict(repeats=1, pca=0, size=0, train_limit=0)
        for key, minimum in least.items():
            if getattr(self, key) < minimum:
                raise UserError(
                    f"config.probe.{key} must be at least {minimum}; got {getattr(self, key)}."
                )
        if not 0 <= self.validation < 1:
            raise UserError(
                f"config.probe.validation must be at least 0 and less than 1; got "
                f"{self.validation}."
            )
        if self.uses_table and self.fine_tune:
            raise UserError(
                "config.probe.fine_tune=True changes the features at every step, so they cannot be "
                "computed once. Set config.probe.encode_once=False."
            )
        if not self.uses_table and (self.pca or self.repeats > 1):
            key = "pca" if self.pca else "repeats"
            raise UserError(
                f"config.probe.{key}={getattr(self, key)} is for features that are computed once, "
                f"which {self.end_task} does not use here. Remove it."
            )
        groups = [one.group for one in self.training_configs]
        if len(set(groups)) < len(groups):
            raise UserError(
                f"config.probe.configs: two configurations have the same name: {groups}."
            )
        if self.fine_tune and (len(groups) > 1 or self.num_seeds > 1):
            raise UserError(
                f"config.probe.fine_tune=True trains one encoder for one head; got {len(groups)} "
                f"configurations and {self.num_seeds} seeds. Select one of each."
            )

    @property
    def task(self) -> EndTask:
        """The declaration of the end task."""
        return find(self.end_task)

    @property
    def paper(self) -> bool:
        return self.protocol == "paper"

    @property
    def uses_table(self) -> bool:
        """Whether heads are trained on features that are computed once."""
        if self.encode_once is not None:
            if self.encode_once and self.task.pixelwise:
                raise UserError(
                    f"config.probe.encode_once=True: {self.end_task} needs feature maps, which are "
                    "computed in each step. Set it to None."
                )
            return self.encode_once
        return self.task.encode_once and not self.task.pixelwise and not self.fine_tune

    @property
    def num_seeds(self) -> int:
        return self.seeds or (1 if self.paper or not self.uses_table else 3)

    @property
    def training_configs(self) -> tuple[TrainingConfig, ...]:
        if self.configs:
            return self.configs
        return tuple(
            TrainingConfig(
                **config.keywords(
                    TrainingConfig, {"name": name, **options}, f"{self.end_task}.configs.{name}"
                )
            )
            for name, options in self.task.configs.items()
        )


def parse(section: Mapping[str, Any]) -> ProbeOptions:
    """Returns the checked section `probe`.

    Raises:
      UserError: An unknown key, or a value of the wrong type or out of range.
    """
    return ProbeOptions(**config.keywords(ProbeOptions, section, "probe"))
