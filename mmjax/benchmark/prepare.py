"""From the section `probe` of a config to everything that the training loop needs.

Opens the encoder and the data, encodes the images if that is done once, and sets the batch size,
the number of steps, the optimizers and the evaluators.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from absl import logging

from mmjax import config
from mmjax.benchmark import options as options_lib
from mmjax.benchmark.encode import SPLITS, EncodeOptions, encode
from mmjax.benchmark.image_encoder import ImageEncoder, open_encoder
from mmjax.benchmark.options import ProbeOptions
from mmjax.config import Config
from mmjax.errors import UserError
from mmjax.models.decoders import registry as decoders
from mmjax.models.decoders.base import EMBEDDING

_MAX_UPDATES = 256  # per step
_MAX_BYTES = 2**26  # of the features of a step
WORLD = "world"  # root of stand-ins
BEST = "best"  # `heads` of an evaluator: those that were best on the validation examples


def prepare(
    cfg: Config | Mapping[str, Any],
    *,
    encoder: ImageEncoder | None = None,
    progress: bool = True,
) -> Config:
    """Returns the config of a training run of heads.

    Args:
      cfg: A config with the section `probe`. `init_from` is the encoder; see
        `mmjax.benchmark.image_encoder.open_encoder`.
      encoder: The encoder, if it is already open.
      progress: Whether to show progress bars.

    Raises:
      UserError: An invalid option, encoder or data set.
    """
    cfg = config.resolve(cfg)
    options = options_lib.parse(cfg.probe)
    _check_trained(options)
    encoder = encoder or open_encoder(cfg.init_from, seed=cfg.seed)
    model = {"head": _head(cfg, options, encoder), "trunk": None}
    data = data_section(cfg, options, encoder)
    init_from = ""
    if options.uses_table:
        encode_options = EncodeOptions(
            batch_size=options.eval_batch_size or 64,
            repeats=options.repeats,
            pca=options.pca,
            progress=progress,
        )
        data["train"] = f"features:{encode(encoder, data, options=encode_options)}"
    else:
        model["trunk"] = dict(encoder.section)
        init_from = "" if encoder.is_random else encoder.source
    schedule = _Schedule.of(options, data)
    data["end_task"] |= dict(
        seeds=options.num_seeds,
        examples_per_update=schedule.examples,
        drop_last=options.paper,
    )
    return dataclasses.replace(
        cfg,
        data=data,
        model=model,
        batch_size=schedule.batch_size,
        updates_per_step=schedule.updates,
        total_steps=schedule.total_steps,
        optimizer=_optimizer(options, schedule),
        evals=_evaluators(options, data, schedule) | cfg.evals,
        checkpoint={**cfg.checkpoint, "every": schedule.checkpoint_every, "keep": 1},
        init_from=init_from,
    )


def _check_trained(options: ProbeOptions) -> None:
    """Raises UserError for an end task that is only evaluated."""
    if options.task.evaluation_only:
        raise UserError(
            f"{options.end_task} has no training split: it evaluates the heads of "
            f"{options.task.evaluation_only}. Run `mmjax benchmark`."
        )


def _head(cfg: Config, options: ProbeOptions, encoder: ImageEncoder) -> dict[str, Any]:
    """Returns the section `model.head` with its name.

    Raises:
      UserError: The head needs features that the encoder lacks.
    """
    section = dict(cfg.model.get("head") or {})
    if not section.get("name"):
        tower = encoder.trunk.tower(encoder.params)
        section["name"] = decoders.default_head(options.task.head, tower)
        if section["name"] != options.task.head:
            logging.info(
                "The head %s needs a ResNet-50, 101 or 152. Using %s.",
                *(options.task.head, section["name"]),
            )
    available = encoder.trunk.features() if options.task.pixelwise else (EMBEDDING,)
    decoders.check_features(section["name"], available, "model.head")
    return section


def train_splits(options: ProbeOptions) -> tuple[str, str]:
    """Returns the splits (train, validation) of the training data; '' for no validation."""
    percent = round(100 * (options.validation or options.task.validation))
    if options.paper or not percent:
        return "train", ""
    if options.task.validation_split and not options.validation:
        return "train", options.task.validation_split
    how = "" if options.task.pixelwise else ":stratified"
    return f"train[:{100 - percent}%{how}]", f"train[{100 - percent}%:{how}]"


def data_section(cfg: Config, options: ProbeOptions, encoder: ImageEncoder) -> dict[str, Any]:
    """Returns the section `data` of the images of an end task."""
    task, paper = options.task, options.paper
    spec = f"end_task:{options.end_task},root={options.root}" + (",paper=true" if paper else "")
    shared = {k: v for k, v in cfg.data.items() if k not in ("train", "split", "end_task")}
    return {
        **shared,
        "train": spec,
        "split": train_splits(options)[0],
        "end_task": dict(name=options.end_task, paper=paper, **image_sizes(options, encoder)),
        "label": None if task.pixelwise else {},
    }


def image_sizes(options: ProbeOptions, encoder: ImageEncoder) -> dict[str, Any]:
    """Returns the options of sizes of the section `data.end_task`.

    Stand-ins are smaller than the data that sizes are declared for.
    """
    size = options.size or encoder.trunk.size
    sizes = dict(train_size=options.train_size, test_size=options.test_size)
    if options.root.partition(",")[0] == WORLD:
        framings = dict(train_size=options.task.train_framing, test_size=options.task.test_framing)
        sizes = {key: sizes[key] or framing.scaled(size) for key, framing in framings.items()}
    return {"size": size, **sizes}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Schedule:
    """Sizes of a run.

    Attributes:
      examples: Examples per update and seed.
      updates: Updates per step.
      batch_size: Examples per step.
      steps_per_epoch: Steps per pass over the training examples.
      total_steps: Steps.
      eval_every: Steps between evaluations.
      checkpoint_every: Steps between checkpoints.
    """

    examples: int
    updates: int
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    eval_every: int
    checkpoint_every: int

    @classmethod
    def of(cls, options: ProbeOptions, data: Mapping[str, Any]) -> _Schedule:
        num_examples, width = _count(data)
        task, seeds = options.task, options.num_seeds
        examples = min(options.batch_size or task.batch_size, num_examples)
        epoch = num_examples // examples if options.paper else -(-num_examples // examples)
        updates = 1
        if width:
            limit = max(1, _MAX_BYTES // (2 * seeds * examples * width))
            updates = updates_per_step(epoch, min(limit, _MAX_UPDATES))
        steps = -(-epoch // updates)
        epochs = options.epochs or task.epochs
        every = steps * max(1, round(epochs / options.evaluations))
        return cls(
            examples=examples,
            updates=updates,
            batch_size=updates * seeds * examples,
            steps_per_epoch=steps,
            total_steps=steps * epochs,
            eval_every=every,
            checkpoint_every=max(every, steps * epochs // 10),
        )


def updates_per_step(epoch: int, limit: int) -> int:
    """Returns the number of updates per step: the largest divisor of `epoch` up to a limit.

    If all divisors are small, returns the limit, and an epoch is rounded up to whole steps.

    Args:
      epoch: Updates per epoch.
      limit: Largest number of updates per step.
    """
    best = max(n for n in range(1, min(epoch, limit) + 1) if epoch % n == 0)
    return best if 8 * best >= min(epoch, limit) else limit


def _count(data: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the number of training examples, and the width of their features (0 for images)."""
    from mmjax.data.pipeline import feature_table
    from mmjax.data.sources import registry

    if feature_table.is_table(data["train"]):
        directory = data["train"].removeprefix(feature_table.PREFIX)
        source, records = feature_table.open_table(directory, split=data["split"])
        return len(records), source.features.shape[-1]
    return registry.open_source(data["train"], split=data["split"]).num_examples, 0


def _optimizer(options: ProbeOptions, schedule: _Schedule) -> dict[str, Any]:
    """Returns the section `optimizer`, with one group per training configuration."""
    groups = {}
    for one in options.training_configs:
        pattern = f"^heads/{re.escape(one.group)}/"
        groups[one.group] = one.optimizer_section(
            pattern=f"{pattern}|^trunk/" if options.fine_tune else pattern,
            steps_per_epoch=schedule.steps_per_epoch * schedule.updates,
            disabled=options.schedulers == "disabled",
        )
    needs_frozen = not options.uses_table and not options.fine_tune
    return {"groups": groups} | ({"frozen": ("^trunk/",)} if needs_frozen else {})


def _evaluators(
    options: ProbeOptions, data: Mapping[str, Any], schedule: _Schedule
) -> dict[str, dict[str, Any]]:
    """Returns the section `evals`: validation examples at intervals, the others at the end."""
    train, validation = train_splits(options)
    size = options.eval_batch_size or (1024 if options.uses_table else schedule.examples)
    common = dict(type="end_task", batch_size=size)
    limit = options.train_limit or (0 if options.uses_table else 16 * schedule.examples)
    if not validation:
        return {
            "train": common | dict(split=train, at="final", limit=limit),
            "test": common
            | dict(split=SPLITS[1], every=schedule.eval_every, paper_batch=schedule.examples),
        }
    return {
        "validation": common | dict(split=validation, every=schedule.eval_every, keep_best=True),
        "train": common | dict(split=train, at="final", heads=BEST, limit=limit),
        "test": common | dict(split=SPLITS[1], at="final", heads=BEST),
    }
