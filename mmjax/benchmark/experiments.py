"""Experiment lists: the encoders of a benchmark, in the YAML format of pyVTAB.

A list maps names of encoders to weights. Without weights (null), the encoder has the ImageNet
weights of torchvision.
"""

from __future__ import annotations

import dataclasses
import os

from mmjax.benchmark import checks, named_files, names, yaml_file
from mmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An encoder.

    Attributes:
      name: Name of the encoder, of its directory, and of its row in reports.
      weights: Where its weights come from, or None for the ImageNet weights of torchvision.
    """

    name: str
    weights: str | None

    def __post_init__(self) -> None:
        names.check_name(self.name, "experiment")


def load(path: str | os.PathLike, *, suffix: str = "") -> list[Experiment]:
    """Returns the experiments of a file, in its order.

    Args:
      path: A YAML file, or the name of a list that comes with mmjax.
      suffix: Appended to every name.

    Raises:
      UserError: The file is not valid; the message names the line.
    """
    file = named_files.find("experiment_list", path)
    section = yaml_file.read(file)
    if not section:
        raise UserError(f"{file} has no experiments. Write one per line: 'NAME: WEIGHTS'.")
    experiments = []
    for key, weights in section.items():
        where = section.where(key)
        names.check_name(key, where)
        name = names.check_name(key + suffix, where)
        if weights is not None:
            weights = checks.text(weights, f"{where}: the weights of {key}")
        experiments.append(Experiment(name, weights))
    names.check_distinct(((e.name, f"experiment {e.name}") for e in experiments), str(file))
    return experiments
