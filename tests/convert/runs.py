"""Run directories that a conversion has written."""

import pathlib
from collections.abc import Callable

from flax import nnx

from mmjax import config, initialize, tree
from mmjax.rundir import RunDir
from mmjax.state import ModelDef


def module_of(run: pathlib.Path, make_model: Callable[..., Callable]) -> nnx.Module:
    """The module of a run directory with its arrays, which are all that there are."""
    cfg = RunDir(run, create=False).read_config()
    model = ModelDef(make_model(**config.plain(cfg.model)))
    leaves, _ = initialize.load_params(str(run))
    extra = {k.removeprefix("extra/"): v for k, v in leaves.items() if k.startswith("extra/")}
    params = {k: v for k, v in leaves.items() if not k.startswith("extra/")}
    assert set(tree.flatten(model.params)) == set(params)
    assert set(tree.flatten(model.extra)) == set(extra)
    return model.bind(tree.unflatten(params), tree.unflatten(extra))
