"""Labeled image files as records: the source behind image folders and CSV tables.

Images are read when they are fetched; nothing is copied.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from mmjax.data.sources.base import Source
from mmjax.data.sources.identity import RealPaths
from mmjax.data.storage import image_files, schema
from mmjax.data.storage.dataset import DatasetInfo, SplitInfo
from mmjax.errors import UserError

_MAX_CLASSES = 1_000_000


class ImageListSource(Source):
    """Image files with one class each, read as `mmjax.data.storage.image_files.encoded` does.

    Args:
      info: Description of the dataset.
      split: Name of the split.
      images: (path, class index) of each record.
      lines: Location at which each record is listed, for messages; None to use only its path.
    """

    def __init__(
        self,
        info: DatasetInfo,
        split: str,
        images: Sequence[tuple[str, int]],
        *,
        lines: Sequence[str] | None = None,
    ):
        self.info, self._images, self._lines = info, images, lines
        self.num_examples = len(images)
        self.name = f"{info.name}/{split}"
        self._real_paths = RealPaths()

    def fetch(self, record: int) -> bytes:
        path, label = self._images[record]
        try:
            with open(path, "rb") as file:
                image = file.read()
        except (OSError, ValueError) as error:  # ValueError: the path contains a zero byte
            raise UserError(f"{self.where(record)} cannot be read: {error}.") from error
        return image_example(
            image, label, self.info.class_names[label], path, where=self.where(record)
        )

    def where(self, record: int) -> str:
        path = self._images[record][0]
        return f"{self._lines[record]}: {path}" if self._lines else path

    def identity(self, record: int) -> str:
        return self._real_paths.resolve(self._images[record][0])

    def labels(self) -> np.ndarray:
        return np.array([label for _, label in self._images], np.int64)


def image_example(
    image: bytes, label: int | None, label_text: str, filename: str, *, where: str = ""
) -> bytes:
    """Returns one image as a serialized SequenceExample.

    Args:
      image: Content of an image file; see `mmjax.data.storage.image_files.encoded` for how formats
        other than an upright, opaque JPEG or PNG are converted.
      label: Class index, or None.
      label_text: Class name; ignored without a label.
      filename: File name to store in the record.
      where: Location of the image for messages; default: `filename`.

    Raises:
      UserError: Pillow cannot read the image.
    """
    encoded = image_files.encoded(image, where or filename)
    return encoded_example(encoded, label, label_text, filename)


def encoded_example(image: bytes, label: int | None, label_text: str, filename: str) -> bytes:
    """Like `image_example`, for a JPEG or PNG that is stored unchanged.

    Unlike `schema.encode`, it accepts PNG.
    """
    proto = tf.train.SequenceExample()
    frames = proto.feature_lists.feature_list[schema.FRAMES[0]]
    frames.feature.add().bytes_list.value.append(image)
    context = proto.context.feature
    if label is not None:
        context[schema.LABELS[0]].int64_list.value.append(label)
        context[schema.LABEL_TEXTS[0]].bytes_list.value.append(label_text.encode())
    context[schema.FILENAME[0]].bytes_list.value.append(filename.encode())
    return proto.SerializeToString()


def numbered_class_names(num_classes: int, where: str) -> list[str]:
    """Returns class names for a dataset without any: '0', '1', ...

    Args:
      num_classes: The largest label plus 1.
      where: The file with the labels, for messages.

    Raises:
      UserError: More than a million classes; such labels are probably not class indices.
    """
    if num_classes > _MAX_CLASSES:
        raise UserError(
            f"{where} has the label {num_classes - 1}, but class indices must be below "
            f"{_MAX_CLASSES}. Number the classes from 0, or use class names as labels."
        )
    return [str(index) for index in range(num_classes)]


def image_info(path: str, counts: Mapping[str, int], class_names: Sequence[str]) -> DatasetInfo:
    """Returns the description of a set of labeled images.

    Args:
      path: Its file or directory, which also names the dataset.
      counts: Number of images by split.
      class_names: Class names by index.
    """
    path = os.path.normpath(os.path.expanduser(path))
    return DatasetInfo(
        name=os.path.splitext(os.path.basename(path))[0],
        splits={name: SplitInfo(num_examples=count, shards=[]) for name, count in counts.items()},
        modalities=("video", "label"),
        num_classes=len(class_names),
        class_names=list(class_names),
        num_frames=1,
    )
