"""What the names of encoders tell about their pretraining.

The encoders of pyVTAB are named `<method>[<dataset>][_<epochs>]`, for example `MoCov2_800` or
`SWAVHalfImagenet_100`: without a dataset, ImageNet; without epochs, 200. Other names tell at most
the method.
"""

from __future__ import annotations

import dataclasses
import re

_METHODS = {
    "MoCov1": "MoCo",
    "MoCov2": "MoCo",
    "SWAV": "SWAV",
    "PIRL": "PIRL",
    "SimCLR": "SimCLR",
}
OTHER = "Other"
SUPERVISED, RANDOM = "Supervised", "Random"
DEFAULT_EPOCHS = 200
# {part of ImageNet: (balance of the classes, nominal number of images)}
_PARTS = {
    "": ("Balanced", 1_000_000),
    "Half": ("Balanced", 500_000),
    "Quarter": ("Balanced", 250_000),
    "Unbalanced": ("Linear", 500_000),
    "Log": ("Log", 250_000),
}
_NAME = re.compile(
    rf"({'|'.join(_METHODS)})"
    rf"(?:({'|'.join(part for part in _PARTS)})(Imagenet)|(Combination|Taskonomy|Kinetics|Places))?"
    r"(?:_(\d+))?"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """An encoder and what its name tells; None for what it does not tell.

    Attributes:
      name: Name of the experiment.
      method: 'MoCo', 'SWAV', 'PIRL', 'SimCLR', 'Supervised', 'Random' or 'Other'.
      dataset: Dataset of the pretraining.
      balance: 'Balanced', 'Linear' or 'Log': how many images the classes have.
      part: Part of ImageNet: '', 'Half', 'Quarter', 'Unbalanced' or 'Log'.
      epochs: Epochs of the pretraining.
      dataset_size: Nominal number of images: 1,000,000, 500,000 or 250,000.
    """

    name: str
    method: str
    dataset: str | None = None
    balance: str | None = None
    part: str = ""
    epochs: int | None = None
    dataset_size: int | None = None

    @property
    def short_name(self) -> str:
        """The name with 'Imagenet' shortened to 'IN', as in the tables of pyVTAB."""
        return self.name.replace("Imagenet", "IN")

    @property
    def updates(self) -> int | None:
        """Epochs times the nominal number of images."""
        if self.epochs is None or self.dataset_size is None:
            return None
        return self.epochs * self.dataset_size

    @property
    def data(self) -> str | None:
        """The dataset with its part, for example 'Half Imagenet'."""
        return f"{self.part} {self.dataset}".strip() if self.dataset else None


def parse(name: str) -> Encoder:
    """Returns what the name of an encoder tells."""
    match = _NAME.fullmatch(name)
    if match is None:
        return _other(name)
    method, part, _, dataset, epochs = match.groups()
    balance, size = _PARTS[part or ""]
    return Encoder(
        name=name,
        method=_METHODS[method],
        dataset=dataset or "Imagenet",
        balance=balance,
        part=part or "",
        epochs=int(epochs) if epochs else DEFAULT_EPOCHS,
        dataset_size=size,
    )


def _other(name: str) -> Encoder:
    if name == SUPERVISED:  # the weights of torchvision; their number of epochs is not in the name
        balance, size = _PARTS[""]
        return Encoder(
            name=name, method=name, dataset="Imagenet", balance=balance, dataset_size=size
        )
    methods = {**_METHODS, "MoCo": "MoCo", SUPERVISED: SUPERVISED, RANDOM: RANDOM}
    found = (method for start, method in methods.items() if name.startswith(start))
    return Encoder(name=name, method=next(found, OTHER))
