"""The source behind most end tasks: image files with a class or a target file each."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from mmjax.data.sources.base import Source
from mmjax.data.sources.identity import RealPaths
from mmjax.data.storage import image_files, schema
from mmjax.data.storage.dataset import DatasetInfo, SplitInfo
from mmjax.data.storage.image_decoding import PNG_START
from mmjax.errors import UserError


class EndTaskSource(Source):
    """Examples of one or several image files, with a class or a target file.

    Args:
      name: Name of the dataset.
      split: Name of the split.
      images: Paths of the images of each example.
      labels: Class index of each example; None without classes.
      class_names: Class names by index.
      targets: Path of the target file of each example; None without targets.
      exact: Whether to store the bytes of all files unchanged. Otherwise, images with an EXIF
        orientation or transparency are converted, as everywhere in mmjax.
    """

    def __init__(
        self,
        name: str,
        split: str,
        images: Sequence[Sequence[str]],
        *,
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] = (),
        targets: Sequence[str] | None = None,
        exact: bool = False,
    ):
        self._images, self._labels, self._targets = images, labels, targets
        # Pixels of targets belong to the pixels as they are stored.
        self._exact = exact or targets is not None
        self.num_examples, self.name = len(images), f"{name}/{split}"
        self.info = describe(name, split, len(images), class_names, num_images=len(images[0]))
        self._real_paths = RealPaths()

    def fetch(self, record: int) -> bytes:
        images = [self._read_image(path) for path in self._images[record]]
        label = None if self._labels is None else int(self._labels[record])
        return serialized(
            images,
            label=label,
            label_text=self.info.class_names[label] if label is not None and label >= 0 else "",
            target=_read(self._targets[record]) if self._targets else None,
            filename=self._images[record][0],
        )

    def where(self, record: int) -> str:
        first, *others = self._images[record]
        if self._targets:
            others.append(self._targets[record])
        # The feature cache finds the first file in 'FILE, …'.
        return f"{first}, with {' and '.join(others)}" if 0 < len(others) < 3 else first

    def identity(self, record: int) -> tuple[str, ...]:
        return tuple(map(self._real_paths.resolve, self._images[record]))

    def labels(self) -> np.ndarray:
        if self._labels is None:
            return super().labels()
        return np.asarray(self._labels, np.int64)

    def _read_image(self, path: str) -> bytes:
        data = _read(path)
        if self._exact and data.startswith((b"\xff\xd8", PNG_START)):
            return data
        if not data:
            raise UserError(f"{path} is empty. Copy it again, or remove it.")
        return image_files.encoded(data, path)


def describe(
    name: str, split: str, count: int, class_names: Sequence[str] = (), *, num_images: int = 1
) -> DatasetInfo:
    """Returns the description of a split of an end task."""
    return DatasetInfo(
        name=name,
        splits={split: SplitInfo(num_examples=count, shards=[])},
        modalities=("video", "label") if class_names else ("video",),
        num_classes=len(class_names),
        class_names=list(class_names),
        num_frames=num_images,
    )


def serialized(
    images: Sequence[bytes],
    *,
    label: int | None = None,
    label_text: str = "",
    target: bytes | None = None,
    filename: str = "",
) -> bytes:
    """Returns an example of an end task as a serialized SequenceExample.

    Args:
      images: Files of the images: JPEG or PNG.
      label: Class index; -1 or None if it is unknown.
      label_text: Class name.
      target: File of the target, in any format that Pillow reads.
      filename: Name of the first image.
    """
    proto = tf.train.SequenceExample()
    lists, context = proto.feature_lists.feature_list, proto.context.feature
    for image in images:
        lists[schema.FRAMES[0]].feature.add().bytes_list.value.append(image)
    if target is not None:
        lists[schema.TARGET[0]].feature.add().bytes_list.value.append(target)
    if label is not None and label >= 0:
        context[schema.LABELS[0]].int64_list.value.append(label)
        context[schema.LABEL_TEXTS[0]].bytes_list.value.append(label_text.encode())
    context[schema.FILENAME[0]].bytes_list.value.append(filename.encode())
    return proto.SerializeToString(deterministic=True)


def class_indices(
    labels: Sequence[object], train_labels: Sequence[object], *, name: str, split: str, paper: bool
) -> tuple[list[int], list[str]]:
    """Returns the class index of each label, and the class names by index.

    Indices follow the sorted labels of the training split, for all splits. In pyVTAB they follow
    those of the split itself.

    Args:
      labels: Label of each example: all texts or all integers.
      train_labels: Labels that occur in the training split.
      name: Name of the end task, for messages.
      split: Name of the split.
      paper: Whether to number the classes of each split by itself.

    Raises:
      UserError: The split has a class that the training split lacks.
    """
    classes = sorted(set(labels if paper else train_labels))
    index = {label: n for n, label in enumerate(classes)}
    if unknown := sorted({label for label in labels if label not in index}):
        listed = ", ".join(map(repr, unknown[:8])) + (", …" if len(unknown) > 8 else "")
        raise UserError(
            f"{name}: the {split} split has {len(unknown)} classes that the training split lacks: "
            f"{listed}. A head cannot predict them. Add training examples of them, or remove them "
            f"from the {split} split."
        )
    return [index[label] for label in labels], [str(label) for label in classes]


def counted_classes(
    labels: Sequence[int], train_labels: Sequence[int], *, name: str, split: str
) -> list[str]:
    """Returns class names '0', '1', … up to the largest label of the training split.

    Raises:
      UserError: A label exceeds it, or is negative.
    """
    count = max(train_labels) + 1
    outside = sorted({label for label in labels if not 0 <= label < count})
    if outside:
        raise UserError(
            f"{name}: the {split} split has the label {outside[0]}, but the largest label of the "
            f"training split is {count - 1}, and labels start at 0. Correct the labels, or add "
            "training examples with this label."
        )
    return [str(label) for label in range(count)]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def relative(path: str, root: str) -> str:
    """Returns a path relative to a root, with '/' as in the files of datasets."""
    return os.path.relpath(path, root).replace(os.sep, "/")
