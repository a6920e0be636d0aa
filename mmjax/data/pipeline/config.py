"""The section `data` of a recipe: its keys, their types and defaults."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from mmjax import config
from mmjax.data.pairs.positives import PairsConfig
from mmjax.data.pipeline import image_modality, modalities, precomputed_features
from mmjax.errors import UserError, unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The section `data`.

    Attributes:
      train: where training examples come from, one specification of `sources.open_source` or
        several.
      split: of all of them.
      weights: shares of several; () is equal shares.
      limit: train on this many examples of each source, evenly spread over it; 0 is all.
      corrupt: 'fail' at a record that cannot be used, or 'skip' it: in training the next record
        takes its place, in evaluation it gets mask 0; counted, logged, limited.
      max_corrupt: with 'skip', so many records are too many.
      check_crc: check the CRC of each record read.
      read: 'pread' or 'tf', `pipeline.reader` or `pipeline.pure_reader`.
      threads: of the input pipeline; 0 is one per CPU core.
      prefetch: batches made ahead.
      video, audio, image, text, label, touch: options of each modality; None leaves it out.
      pairs: train on pairs of records: the second of `data.image.crops` is of the neighbor's
        image, all else of the record's own; None is off.
    """

    train: str | tuple[str, ...] = "world"
    split: str = "train"
    weights: tuple[float, ...] = ()
    limit: int = 0
    corrupt: str = "fail"
    max_corrupt: int = 100
    check_crc: bool = True
    read: str = "pread"
    threads: int = 0
    prefetch: int = 2
    video: modalities.Video | None = None
    audio: modalities.Audio | None = None
    image: image_modality.Image | None = None
    text: modalities.Text | None = None
    label: modalities.Label | None = None
    touch: image_modality.Touch | None = None
    pairs: PairsConfig | None = None

    def __post_init__(self):
        if self.corrupt not in ("fail", "skip"):
            raise unknown("data.corrupt", self.corrupt, ("fail", "skip"))
        if self.read not in ("pread", "tf"):
            raise unknown("data.read", self.read, ("pread", "tf"))
        if self.limit < 0:
            raise UserError(f"data.limit must be at least 0 (all), not {self.limit}.")
        if not any((self.video, self.audio, self.image, self.text, self.touch)):
            raise UserError(
                "The section data asks for no modality: set data.video, audio, image, text or "
                "touch."
            )
        if self.pairs and len(self.image.crops if self.image else ()) < 2:
            raise UserError(
                "data.pairs shows a crop of the neighbor's image beside one of the example's "
                "own: set data.image.crops=((0.5, 1.0), (0.5, 1.0)), two or more, or "
                "data.pairs=None."
            )

    @property
    def specs(self) -> tuple[str, ...]:
        """`train` as a tuple."""
        return (self.train,) if isinstance(self.train, str) else self.train


def for_evaluation(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data` without the files that only training needs: without pairs, and without
    the features of frozen towers that are not there (evaluation runs the towers)."""
    kept = {key: value for key, value in section.items() if key != "pairs"}
    for name, options in section.items():
        directories = options.get("features") if isinstance(options, Mapping) else ""
        paths = [
            precomputed_features.features_path(directory, section.get("split", "train"), name)
            for directory in ((directories,) if isinstance(directories, str) else directories or ())
            if directory
        ]
        if not all(map(os.path.exists, paths)):
            kept[name] = {**options, "features": ""}
    return kept


def parse_config(section: Mapping[str, Any]) -> DataConfig:
    """The section `data` of a recipe, checked.

    Raises:
      UserError: an unknown key, or a value of another type or out of range, by its full name.
    """
    return DataConfig(**config.keywords(DataConfig, section, "data"))
