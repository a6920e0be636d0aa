"""Evaluators: what a train state is worth, as numbers. One file each; see `base.Evaluator`."""

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

EVALUATORS: dict[str, type[Evaluator]] = {
    "retrieval": Retrieval,
    "linear_probe": LinearProbe,
    "knn": NearestNeighbors,
    "few_shot": FewShot,
    "classification": Classification,
    "semantic_retrieval": SemanticRetrieval,
    "zero_shot": ZeroShot,
    "affinity": Affinity,
    "suite": Suite,
}
_MADE_BY = ("task", "model", "loss", "augment")  # sections that decide what outputs are


def make_evaluators(
    cfg: Mapping[str, Mapping[str, Any]],
    *,
    task: Any,
    data_cfg: Mapping[str, Any],
    mesh: jax.sharding.Mesh,
    where: str | None = None,
    directory: str | os.PathLike = ".",
    make_eval_data: Callable[..., Any] | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> list[Evaluator]:
    """The evaluators of a config; they share one feature store.

    Args:
      cfg: {name: dict(type=…, every=… or at='final', where='train' or 'eval', cache=True or False,
        options of the type)}; None for one that is left out.
      task: its `predict` functions give features and logits.
      data_cfg: the `data` section of the config.
      mesh: the devices that share a batch.
      where: only those for this place; all are checked.
      folder: the run directory, for evaluators that leave files.
      make_eval_data: replaces `mmjax.data.pipeline.loader.make_eval_data`.
      made_by: the config that the task was made from; needed by `cache=True`.

    Raises:
      UserError: an unknown type or key, with the nearest valid one, or a value that cannot be.
    """
    sections = {key: made_by[key] for key in _MADE_BY if key in made_by} if made_by else None
    store = FeatureStore(
        task=task,
        data_cfg=data_cfg,
        mesh=mesh,
        make_eval_data=make_eval_data,
        made_by=sections,
    )
    evaluators = [
        make_evaluator(name, section, types=EVALUATORS, store=store, directory=directory)
        for name, section in cfg.items()
        if section is not None
    ]
    return [e for e in evaluators if where is None or e.schedule.where == where]
