"""The interface of data sources: random access to the records of one split.

The formats that `mmjax.data.sources.registry.open_source` knows implement it. To read a format of
your own, write a class or function that returns a `Source`, and name it in the config as
`package.module:Name`:

    class Faces(Source):
        def __init__(self, *, split: str):
            self.num_examples = ...
            self.name = f"faces/{split}"
            self.info = DatasetInfo(name="faces", num_classes=2, modalities=("video", "label"))

        def fetch(self, record):
            return image_example(jpeg_bytes, label, class_name, filename)

        def where(self, record):
            return filename

        def labels(self):
            return labels

    --config.data.train=my_sources:Faces

The contract:

* The class or function is called as `Name(split=SPLIT)`, where SPLIT is the plain name of a split.
  Slices and sums such as 'train[:80%]+valid' are computed from the plain splits. Raise UserError
  for a split that does not exist.
* `fetch(i)` returns the same record for the same index at all times, because a batch is a function
  of the seed and the step only.
* `fetch` is called by several threads at once.
* A record is a serialized SequenceExample: `mmjax.data.storage.schema.encode` for any modality, or
  `mmjax.data.sources.image_list.image_example` for one labeled image.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

import numpy as np

from mmjax.data.storage.dataset import DatasetInfo


class Source(Protocol):
    """Records of one split, read by index. Subclasses inherit the defaults below.

    Attributes:
      name: Name for messages, for example 'cifar10/train'.
      info: Description of the dataset: its name, classes and modalities.
      num_examples: Number of records.
      directory: Path of the dataset directory, or '' if the source is not one.
      files: Paths of the TFRecord shards, or None for a source without shards.
      index: int64 [num_examples, 3]: file index, offset and length in bytes of each record. None
        for a source without shards.
    """

    name: str
    info: DatasetInfo
    num_examples: int
    directory: str = ""
    files: list[str] | None = None
    index: np.ndarray | None = None

    def fetch(self, record: int) -> bytes:
        """Returns a record as a serialized SequenceExample. Must be thread-safe.

        Raises:
          UserError: The record cannot be read. `config.data.corrupt` is the policy for this case.
        """
        ...

    def where(self, record: int) -> str:
        """Returns the location of a record for messages: the file, and the index in the file."""
        ...

    def identity(self, record: int) -> Hashable | None:
        """Returns a key of a record that is the same in all splits and datasets that contain it.

        Evaluators refuse to score records that they were fitted on. None compares the locations
        and the bytes of the records. Not called for sources with shards.
        """
        return None

    def labels(self) -> np.ndarray:
        """Returns the first label of each record as int64 [num_examples]; -1 for unlabeled ones."""
        return np.full(self.num_examples, -1, np.int64)

    def fetch_without(self, key: str, record: int) -> bytes:
        """Like `fetch`, but replaces the values of the feature list `key` by references.

        Only called for sources with shards.
        """
        raise NotImplementedError

    def resolve(self, values: list[bytes]) -> list[bytes]:
        """Replaces references that `fetch_without` returned by the bytes that they refer to.

        Only called for sources with shards. Values that are not references are returned unchanged.
        """
        raise NotImplementedError
