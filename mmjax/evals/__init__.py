"""Evaluators, which compute metrics from a train state; one file each, see `base.Evaluator`.

Each section of `config.evals` configures one evaluator. Its `type` is a key of `EVALUATORS` or
`package.module:Name`, a subclass of `Evaluator` outside this package.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mmjax.evals.affinity import Affinity
from mmjax.evals.base import Evaluator, Schedule, format_results, make_evaluator
from mmjax.evals.classification import Classification
from mmjax.evals.features.store import FeatureStore
from mmjax.evals.few_shot import FewShot
from mmjax.evals.knn import NearestNeighbors
from mmjax.evals.linear_probe import LinearProbe
from mmjax.evals.retrieval import Retrieval
from mmjax.evals.semantic_retrieval import SemanticRetrieval
from mmjax.evals.suite import Suite
from mmjax.evals.zero_shot import ZeroShot

__all__ = [
    "EVALUATORS",
    "Evaluator",
    "FeatureStore",
    "Schedule",
    "format_results",
    "make_evaluators",
]

EVALUATORS: dict[str, type[Evaluator] | str] = {
    "retrieval": Retrieval,
    "linear_probe": LinearProbe,
    "knn": NearestNeighbors,
    "few_shot": FewShot,
    "classification": Classification,
    "semantic_retrieval": SemanticRetrieval,
    "zero_shot": ZeroShot,
    "affinity": Affinity,
    "suite": Suite,
    "end_task": "mmjax.evals.end_task:EndTaskMetrics",
    "segmentation": "mmjax.evals.segmentation:Segmentation",
}
_TASK_SECTIONS = ("task", "model", "loss", "augment")  # they determine the outputs of the task


def make_evaluators(
    cfg: Mapping[str, Mapping[str, Any]],
    *,
    task: Any,
    data_cfg: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    where: str | None = None,
    directory: str | os.PathLike = ".",
    make_eval_data: Callable[..., Any] | None = None,
    task_cfg: Mapping[str, Any] | None = None,
) -> list[Evaluator]:
    """Returns the evaluators of a config, which share one feature store.

    Args:
      cfg: {name: dict(type=…, every=… or at='final', where='train' or 'eval', cache=True or False,
        options of the type)}. A section that is None is skipped.
      task: Its `predict` functions compute features and logits.
      data_cfg: The `data` section of the config.
      mesh: Devices that share a batch.
      where: 'train' or 'eval' returns only evaluators that run there; all are checked.
      directory: The run directory, for evaluators that write files.
      make_eval_data: Replaces `mmjax.data.pipeline.loader.make_eval_data`.
      task_cfg: The config that the task was made from; required by `cache=True`.

    Raises:
      UserError: An unknown type or key, or a value of the wrong type or out of range.
    """
    if task_cfg:
        task_cfg = {key: task_cfg[key] for key in _TASK_SECTIONS if key in task_cfg}
    store = FeatureStore(
        task=task,
        data_cfg=data_cfg,
        mesh=mesh,
        make_eval_data=make_eval_data,
        task_cfg=task_cfg or None,
    )
    evaluators = [
        make_evaluator(name, section, types=EVALUATORS, store=store, directory=directory)
        for name, section in cfg.items()
        if section is not None
    ]
    return [e for e in evaluators if where is None or e.schedule.where == where]
