"""What a task is, and how one is built from a config.

A task defines what is learned, and from which fields of the batch. It has no state: it builds the
model from the config and provides pure functions, which `mmjax.step` and the evaluators compile:

    init(key) -> (params, extra)
    encode(params, extra, batch, key) -> (features, extra)   per example; may run on microbatches
    objective(params, extra, features, batch, key) -> (loss, (extra, metrics))   the global batch
    predict: {name: function(params, extra, batch) -> {name: array}}   on evaluation batches
    flops(batch) -> floating-point operations of one training step, counted analytically
    check(params): optional; raises UserError for parameters that do not fit the data
    init_prefix: optional; the part of the parameters that `config.init_from` fills
    finish_init(params, extra) -> (params, extra): optional; after initial values have been loaded
    enricher: optional; the stage that adds fields to batches, see `mmjax.enrichment`, or None

The loss is `objective(encode(batch))`. Splitting it keeps gradient accumulation exact for losses
that compare examples with each other. Metrics are (sum, count) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from mmjax import config, registry
from mmjax.config import Config
from mmjax.data_spec import DataSpec

# Built-in tasks by name, imported when used.
TASKS = {
    "pretrain": "mmjax.tasks.pretrain:Pretrain",
    "finetune": "mmjax.tasks.finetune:Finetune",
    "touch": "mmjax.tasks.touch:Touch",
    "guided": "mmjax.tasks.guided:Guided",
    "probe": "mmjax.tasks.probe:Probe",
    "flair": "mmjax.tasks.flair:Flair",
    "segment": "mmjax.tasks.segment:Segment",
}

Metrics = dict[str, tuple[jax.Array, jax.Array]]


class Task(Protocol):
    """The interface between a task, the trainer and the evaluators."""

    predict: Mapping[str, Callable[..., dict[str, jax.Array]]]
    dtype: str  # of matrix products, for MFU

    def init(self, key: jax.Array) -> tuple[dict, dict]: ...

    def encode(self, params, extra, batch, key) -> tuple[Any, dict]: ...

    def objective(self, params, extra, features, batch, key): ...

    def flops(self, batch: Mapping[str, jax.ShapeDtypeStruct]) -> float: ...


def make_task(cfg: Config, spec: DataSpec) -> Task:
    """Returns the task `cfg.task`: a name in `TASKS`, or `package.module:Name`."""
    cfg = config.resolve(cfg)
    return registry.resolve("--task", cfg.task, TASKS)(cfg, spec)
