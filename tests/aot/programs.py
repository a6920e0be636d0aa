"""Tiny programs that tests compile for a TPU slice, once per session."""

import functools

import pytest

from mmjax import config
from mmjax.aot import report
from mmjax.aot.compile import compile_recipe

TOPOLOGY = "v5e:2x2"
# {task: overrides of demo:smoke}: one layer or block per tower.
TINY = {
    "pretrain": [f"model.{name}.num_layers=1" for name in ("video", "audio", "text")],
    "finetune": ["model.backbone.num_layers=1"],
    "touch": [f"model.{name}.num_layers=1" for name in ("touch", "image", "text")],
    "guided": ["model.image.blocks=(1,)"],
}


@functools.cache
def tiny_config(task, *more):
    overrides = [f"--config.{override}" for override in (*TINY[task], *more)]
    return config.resolve(config.load(task, "demo:smoke", overrides))


@functools.cache
def compiled(task, *overrides):
    """Returns the train step of a tiny recipe, compiled without this process's flags for tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS", raising=False)
        return compile_recipe(tiny_config(task, *overrides), TOPOLOGY)


@functools.cache
def analyzed(task):
    return report.analyze(compiled(task), tiny_config(task), f"{task} demo:smoke")
