"""End tasks on datasets that mmjax reads already: those of `mmjax build` and of TFDS.

They are used if no file of the published layout of an end task exists. A dataset that
`mmjax build` wrote is expected in the directory of the published layout, for example
`datasets/kinetics400/dataset.json`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable

import numpy as np
import tensorflow as tf

from mmjax.data.sources import prepared_tfds
from mmjax.data.sources.base import Source
from mmjax.data.sources.split_slicing import match_split
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import FILE, DatasetDir
from mmjax.end_tasks.declaration import EndTask
from mmjax.errors import UserError

# {end task: (name and options after `tfds:`, training split, test split)}. The splits have the
# sizes of pyVTAB's.
_TFDS: dict[str, tuple[str, str, str]] = {
    "Imagenet": ("imagenet2012", "train", "validation"),
    "Imagenetv2": ("imagenet_v2", "test", "test"),
    "Pets": ("oxford_iiit_pet", "train", "test"),
    "CalTech-101": ("caltech101", "train", "test"),
    "CIFAR-100": ("cifar100", "train", "test"),
    "CIFAR-10": ("cifar10", "train", "test"),
    "SUN397": ("sun397/standard-part1-120k", "train+validation", "test"),
    "Eurosat": ("eurosat", "train[:80%:stratified]", "train[80%::stratified]"),
    "dtd": ("dtd", "train+validation", "test"),
    "CLEVERNumObjects": ("clevr,label=num_objects", "train", "validation"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dataset that replaces the published layout of an end task.

    Attributes:
      spec: Its specification.
      splits: {split of the end task: split of the dataset}.
    """

    spec: str
    splits: dict[str, str]


def find_prepared(task: EndTask, root: str, directories: list[str]) -> Prepared | None:
    """Returns the dataset on disk that can be read for an end task, or None.

    Args:
      task: The end task.
      root: Directory that contains the datasets.
      directories: Names of the directories of the published layout.
    """
    if task.pixelwise:
        return None
    for name in directories:
        path = os.path.join(root, name)
        if os.path.exists(os.path.join(path, FILE)):
            splits = splits_of(list(DatasetDir(path).info.split_sizes()))
            if {"train", "test"} <= splits.keys():
                return Prepared(spec=path, splits=splits)
    name, train, test = _TFDS.get(task.name, ("", "", ""))
    if name and (spec := prepared_tfds.find_prepared(name, root)):
        return Prepared(spec=spec, splits={"train": train, "test": test})
    return None


def splits_of(available: list[str]) -> dict[str, str]:
    """Returns {'train', 'validation' and 'test': split of a dataset} for those that it has.

    The validation split is the test split of a dataset without one, as in ImageNet.
    """
    names = ("train", "validation", "test")
    splits = {name: known for name in names if (known := match_split(name, available))}
    if "validation" in splits and "test" not in splits:
        splits["test"] = splits.pop("validation")
    return splits


class Frames(Source):
    """Examples with several images, which are frames of clips, evenly spaced.

    Args:
      source: Clips: records with frames and a class.
      count: Number of frames per example.
    """

    def __init__(self, source: Source, count: int):
        self._source, self._count = source, count
        self.name, self.num_examples = source.name, source.num_examples
        self.info = dataclasses.replace(source.info, num_frames=count)

    def fetch(self, record: int) -> bytes:
        proto = tf.train.SequenceExample.FromString(self._source.fetch(record))
        frames = proto.feature_lists.feature_list[schema.FRAMES[0]].feature
        if len(frames) < self._count:
            raise UserError(
                f"{self.where(record)} has {len(frames)} frames; expected at least {self._count}. "
                "Build the dataset with longer clips or a higher --fps."
            )
        # The middle of each of `count` equal parts.
        chosen = (np.arange(self._count) + 0.5) * len(frames) / self._count
        kept = [frames[int(index)] for index in chosen]
        result = tf.train.SequenceExample(context=proto.context)
        result.feature_lists.feature_list[schema.FRAMES[0]].feature.extend(kept)
        return result.SerializeToString(deterministic=True)

    def where(self, record: int) -> str:
        return self._source.where(record)

    def identity(self, record: int) -> Hashable | None:
        return self._source.identity(record)

    def labels(self) -> np.ndarray:
        return self._source.labels()
