"""Evaluates trained heads on end tasks without a training split, such as ImageNet v2."""

from __future__ import annotations

import dataclasses
import glob
import importlib.metadata
import pathlib
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mmjax import config, evals, sharding
from mmjax.benchmark import heads, results
from mmjax.benchmark.encode import EncodeOptions, encode
from mmjax.benchmark.find_results import split_directory_name
from mmjax.benchmark.image_encoder import ImageEncoder
from mmjax.benchmark.options import ProbeOptions
from mmjax.benchmark.prepare import data_section
from mmjax.benchmark.results import Result
from mmjax.data_spec import DataSpec
from mmjax.end_tasks.declaration import EndTask
from mmjax.end_tasks.registry import find
from mmjax.errors import UserError
from mmjax.evals.end_task import primary_metric
from mmjax.tasks.probe import DEFAULT_GROUP, Probe

if TYPE_CHECKING:
    from mmjax.benchmark.experiments import Experiment
    from mmjax.benchmark.runner import Settings
    from mmjax.benchmark.runs import Run

_BATCH_SIZE = 64


def run(experiment: Experiment, run: Run, settings: Settings, encoder: ImageEncoder) -> str:
    """Evaluates all heads that a run finds, writes their results, and returns a summary.

    Args:
      experiment: The encoder's name and source.
      run: The run; without `head_weights`, the heads of the end task that `run.end_task` evaluates
        are read from the output directory.
      settings: Options of the benchmark.
      encoder: The encoder.

    Raises:
      UserError: No head fits, a file is not a head of this end task, or the data cannot be read.
    """
    task = find(run.end_task)
    pattern = run.head_weights or f"{settings.out}/%s/{task.evaluation_only}-*/{heads.FILE_NAME}"
    pattern = pattern.replace("%s", glob.escape(experiment.name))
    paths = sorted(glob.glob(pattern))
    if not paths:
        raise UserError(
            f"{run.name}: no file matches {pattern}. Train the heads of "
            f"{task.evaluation_only or run.end_task} first."
        )
    started = time.monotonic()
    data = _data_section(run, settings, encoder)
    table = encode(encoder, data, splits=("test",), options=EncodeOptions(progress=False))
    lines = []
    for path in paths:
        known = [task.evaluation_only or run.end_task, run.name]
        _, config_name = split_directory_name(pathlib.Path(path).parent.name, known, path)
        values = _evaluate(task, data | {"train": f"features:{table}"}, path)
        metric = primary_metric(task, paper=settings.protocol == "paper")
        result = Result(
            experiment=experiment.name,
            run=run.name,
            end_task=run.end_task,
            config_name=config_name,
            metric=metric,
            higher_is_better=task.higher_is_better,
            test_loss=values["loss"],
            test_accuracy=values[metric],
            metrics=values,
            protocol=settings.protocol,
            seconds=round(time.monotonic() - started, 2),
            version=importlib.metadata.version("mmjax"),
        )
        results.write(result, settings.out)
        lines.append(f"{config_name}: {metric} {values[metric]:.4g}")
    return "; ".join(lines)


def _data_section(run: Run, settings: Settings, encoder: ImageEncoder) -> dict[str, Any]:
    options = ProbeOptions(
        end_task=run.end_task,
        root=settings.root,
        protocol=run.protocol or settings.protocol,
        size=run.size or settings.size,
    )
    return data_section(config.Config(task="probe"), options, encoder) | {"split": "test"}


def _evaluate(task: EndTask, data: dict[str, Any], path: str) -> dict[str, float]:
    """Returns the metrics of the head in a file on a feature table."""
    from mmjax.data.pipeline import loader

    cfg = dataclasses.replace(config.Config(task="probe"), data=data)
    opened = loader.make_eval_data(data, split="test", batch_size=_BATCH_SIZE)
    probe = Probe(cfg, dataclasses.replace(DataSpec.of(opened), train=False))
    params, extra = heads.read(path, task.head, probe.model.params, probe.model.extra)
    state = {
        name: {"heads": {DEFAULT_GROUP: jax.tree.map(lambda x: jnp.asarray(x)[None], tree)}}
        for name, tree in (("params", params), ("extra", extra))
    }
    mesh = sharding.make_mesh(devices=jax.local_devices())
    state = jax.device_put(state, sharding.replicated(mesh))
    section = dict(type="end_task", split="test", batch_size=_BATCH_SIZE, at="final")
    (evaluator,) = evals.make_evaluators(
        {"test": section}, task=probe, data_cfg=data, mesh=mesh, where="train"
    )
    prefix = f"test/{DEFAULT_GROUP}/"
    return {k.removeprefix(prefix): v for k, v in evaluator.run(state, 0).items()}
