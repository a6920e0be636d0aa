"""The section `data` of a recipe: its keys, their types and defaults, and the modalities."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Literal

from mmjax import config
from mmjax.data.pairs.positives import PairsConfig
from mmjax.data.pipeline import precomputed_features
from mmjax.data.pipeline.audio import Audio, add_audio
from mmjax.data.pipeline.common import AddFunction
from mmjax.data.pipeline.dmvr.options import Dmvr
from mmjax.data.pipeline.end_task import EndTaskOptions, add_end_task
from mmjax.data.pipeline.image_modality import Image, Reference, Touch, add_image
from mmjax.data.pipeline.label import Label, add_label
from mmjax.data.pipeline.segmentation import Segmentation, add_segmentation
from mmjax.data.pipeline.text import Text, add_text
from mmjax.data.pipeline.video import Video, add_video
from mmjax.errors import UserError

# {section of `data`: (its options, the function that adds it to the pipeline)}, in the order in
# which they are added. To add a modality, add an entry here and a field to `DataConfig`.
MODALITIES: dict[str, tuple[type, AddFunction]] = {
    "video": (Video, add_video),
    "audio": (Audio, add_audio),  # after the video, with which it starts
    "text": (Text, add_text),
    "label": (Label, add_label),
    "image": (Image, add_image),
    "touch": (Touch, add_image),
    "reference": (Reference, add_image),
    "end_task": (EndTaskOptions, add_end_task),
    "segmentation": (Segmentation, add_segmentation),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The section `data`.

    Attributes:
      train: Source of the training examples, or several; see `sources.registry.open_source`.
      split: Split of all sources.
      weights: Share of each source in a mixture; () for equal shares.
      limit: Train on this many examples of each source, evenly spaced; 0 for all.
      corrupt: 'fail' stops at a corrupt record. 'skip' replaces it by the next record in training,
        and sets its mask to 0 in evaluation; skipped records are logged and counted.
      max_corrupt: With 'skip', the number of corrupt records above which training stops.
      check_crc: Whether to check the CRC of each record.
      read: 'pread' reads local files; 'tf' reads TensorFlow's remote file systems. See
        `mmjax.data.pipeline.readers`.
      threads: Number of threads of the input pipeline; 0 for one per CPU core.
      prefetch: Number of batches prepared in advance.
      video, audio, image, text, label, touch, reference: Options of each modality; None leaves it
        out.
      end_task: Options of an end task, which needs no other modality; None for none.
      segmentation: Options of images with segmentation masks; None for none.
      pairs: Train on pairs of records: the second of `data.image.crops` shows the image of the
        paired record, and all other fields belong to the record itself. None for no pairs.
      dmvr: Options of a DMVR factory, if `train` is one; see `mmjax.data.pipeline.dmvr`.
    """

    train: str | tuple[str, ...] = "world"
    split: str = "train"
    weights: tuple[float, ...] = ()
    limit: int = 0
    corrupt: Literal["fail", "skip"] = "fail"
    max_corrupt: int = 100
    check_crc: bool = True
    read: Literal["pread", "tf"] = "pread"
    threads: int = 0
    prefetch: int = 2
    video: Video | None = None
    audio: Audio | None = None
    image: Image | None = None
    text: Text | None = None
    label: Label | None = None
    touch: Touch | None = None
    reference: Reference | None = None
    end_task: EndTaskOptions | None = None
    segmentation: Segmentation | None = None
    pairs: PairsConfig | None = None
    dmvr: Dmvr | None = None

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise UserError(f"data.limit must be at least 0 (0 takes all); got {self.limit}.")
        inputs = [name for name in MODALITIES if name != "label"]
        if not any(getattr(self, name) for name in inputs):
            raise UserError(
                f"The section data has no modality. Set at least one of "
                f"{', '.join(f'data.{name}' for name in inputs)}."
            )
        if self.end_task and (others := self.sections.keys() - {"end_task", "label"}):
            raise UserError(
                f"data.end_task cannot be combined with data.{min(others)}: it makes the images "
                f"itself. Set data.{min(others)}=None, or data.end_task=None."
            )
        if self.segmentation and self.image:
            raise UserError(
                "data.segmentation makes the images itself, so it cannot be combined with "
                "data.image. Set data.image=None, or data.segmentation=None."
            )
        num_views = len(self.image.crops) if self.image else 0
        if self.pairs and num_views < 2:
            raise UserError(
                f"data.pairs needs at least two views of each example; data.image.crops has "
                f"{num_views}: one crop shows the example's own image, the second that of the "
                "paired record. Set data.image.crops=((0.5, 1.0), (0.5, 1.0)), or data.pairs=None."
            )

    @property
    def specs(self) -> tuple[str, ...]:
        """Returns `train` as a tuple."""
        return (self.train,) if isinstance(self.train, str) else self.train

    @property
    def sections(self) -> dict[str, Any]:
        """Returns the options of the modalities that are not None, in the order of `MODALITIES`."""
        sections = {name: getattr(self, name) for name in MODALITIES}
        return {name: options for name, options in sections.items() if options is not None}


def for_evaluation(section: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section `data` without the files that only training needs.

    Removes `pairs`, and `features` that do not exist: evaluation runs the towers.
    """
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
    """Returns the checked section `data` of a recipe.

    Raises:
      UserError: An unknown key, or a value of the wrong type or out of range.
    """
    return DataConfig(**config.keywords(DataConfig, section, "data"))
