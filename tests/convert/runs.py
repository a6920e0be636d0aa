"""Reads run directories that a conversion has written: their module and their report."""

import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from mmjax import config, tree
from mmjax.checkpoints.run_dir import RunDir
from mmjax.convert.load import load_params
from mmjax.state import ModelDef


class Report(NamedTuple):
    """The contents of `conversion.txt`.

    Attributes:
      summary: Everything above the tables.
      targets: {key of the source: the array that it fills, with its type, or why it is unused}.
      num_keys: {array of the run: number of its source keys, 0 if it is randomly initialized}.
    """

    summary: str
    targets: dict[str, str]
    num_keys: dict[str, int]


def read_report(run: pathlib.Path) -> Report:
    """Parses `conversion.txt` of a run directory: three parts separated by empty lines."""
    summary, keys, arrays = (run / "conversion.txt").read_text().split("\n\n")
    targets, num_keys = {}, {}
    for line in keys.splitlines()[1:]:
        target, key = line.split("  ← ")
        targets[key] = " ".join(target.split())
    for line in arrays.splitlines()[1:]:
        array, source = line.split(" ← ")
        count = re.match(r"(\d+) ", source)
        num_keys[array.strip()] = int(count[1]) if count else 0
    return Report(summary, targets, num_keys)


def module_of(run: pathlib.Path, make_model: Callable[..., Callable]) -> nnx.Module:
    """Returns the module of a run; its checkpoint must have exactly the model's arrays."""
    cfg = RunDir(run, create=False).read_config()
    model = ModelDef(make_model(**config.plain(cfg.model)))
    leaves, _ = load_params(str(run))
    extra = {k.removeprefix("extra/"): v for k, v in leaves.items() if k.startswith("extra/")}
    params = {k: v for k, v in leaves.items() if not k.startswith("extra/")}
    assert set(tree.flatten(model.params)) == set(params)
    assert set(tree.flatten(model.extra)) == set(extra)
    return model.bind(tree.unflatten(params), tree.unflatten(extra))
