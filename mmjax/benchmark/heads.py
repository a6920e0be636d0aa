"""The files `model_head.pt` of a benchmark: heads under the names of pyVTAB."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

import numpy as np

from mmjax import files, tree
from mmjax.convert import heads as names
from mmjax.convert.load import load_params
from mmjax.errors import about
from mmjax.evals.end_task import BEST_FILE, BestHeads
from mmjax.formats import torch_reader, torch_writer

FILE_NAME = "model_head.pt"


def write(directory: str | os.PathLike, head: str, run: str | os.PathLike, group: str) -> None:
    """Writes the reported head of the first seed of a training configuration.

    Args:
      directory: Directory of the result.
      head: Name of the head.
      run: The run directory.
      group: Name of the configuration in paths of parameters.
    """
    arrays = reported_arrays(run, group)
    parts = {part: {} for part in ("params", "extra")}
    for path, array in arrays.items():
        part, _, rest = path.partition("/")
        parts[part][rest] = array[0]
    converted = names.to_torch(
        head, tree.unflatten(parts["params"]), tree.unflatten(parts["extra"])
    )
    path = pathlib.Path(directory, FILE_NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.remove(path)
    torch_writer.write(path, converted)


def reported_arrays(run: str | os.PathLike, group: str) -> dict[str, np.ndarray]:
    """Returns {`params/…` or `extra/…`: array [seeds, …]} of the heads that a run reports.

    These are the best ones on its validation examples, or else the last ones.
    """
    path = pathlib.Path(run, BEST_FILE)
    if path.exists():
        return BestHeads.read(path).of_group(group)
    leaves, _ = load_params(str(run))
    result = {}
    for part, prefix in (("params", f"heads/{group}/"), ("extra", f"extra/heads/{group}/")):
        result |= {
            f"{part}/{name.removeprefix(prefix)}": array
            for name, array in leaves.items()
            if name.startswith(prefix)
        }
    return result


def read(path: str | os.PathLike, head: str, params: Mapping, extra: Mapping) -> tuple[dict, dict]:
    """Returns `(params, extra)` of the head in a file.

    Args:
      path: The file.
      head: Name of the head.
      params: Parameters of the head, abstract or not, whose shapes the file must have.
      extra: Its BatchNorm statistics.

    Raises:
      UserError: The file cannot be read, or is of another head.
    """
    arrays = torch_reader.tensors(path)
    with about(os.fspath(path)):
        return names.from_torch(head, arrays, params, extra)
