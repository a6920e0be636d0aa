"""The source `npz:PATH`: labeled images as NumPy arrays in .npz files.

PATH is one file, or a directory with one file per split. A file contains either

* `images` and `labels`, for the split that the file is named after, otherwise for 'train'; or
* several splits: `train_images` and `train_labels`, or `x_train` and `y_train`.

Images are uint8 [N, H, W, 3], or [N, H, W, 1] or [N, H, W] for gray ones; labels are integers [N].
`class_names` [num_classes] is optional.
"""

from __future__ import annotations

import io
import os
import re
import threading
from typing import NamedTuple

import numpy as np
import PIL.Image

from mmjax.data.sources.base import Source
from mmjax.data.sources.image_list import encoded_example, image_info, numbered_class_names
from mmjax.data.sources.split_slicing import SPLIT_NAMES, match_split
from mmjax.data.storage import directories
from mmjax.errors import UserError
from mmjax.formats import npy

_EXPECTED = (
    "Expected an .npz file with the arrays images and labels, or train_images and train_labels, or "
    "x_train and y_train"
)


class _Arrays(NamedTuple):
    """Location of the images and labels of a split: a file, and the names of two arrays."""

    file: str
    images: str
    labels: str


class NpzSource(Source):
    """A split of .npz files. Its images are read into memory on the first `fetch`.

    Args:
      path: An .npz file, or a directory of such files; see the module docstring.
      split: Name of the split, or a synonym of it.

    Raises:
      UserError: A missing or damaged file, an unknown split, or arrays of a wrong type or shape.
    """

    def __init__(self, path: str, *, split: str):
        splits = _find_arrays(path)
        name = match_split(split, splits)
        if name is None:
            raise UserError(f"{path} has no split {split!r}. Its splits: {', '.join(splits)}.")
        labels = {key: _read_labels(arrays.file, arrays.labels) for key, arrays in splits.items()}
        arrays = splits[name]
        shape = _image_shape(arrays.file, arrays.images)
        self._arrays, self._labels = arrays, labels[name]
        self._real_path = os.path.realpath(arrays.file)
        self._images: np.ndarray | None = None
        self._lock = threading.Lock()  # several threads call `fetch`
        if shape[0] != len(self._labels):
            raise UserError(
                f"{arrays.file} has {shape[0]} images in {arrays.images} but "
                f"{len(self._labels)} labels in {arrays.labels}. The counts must be equal."
            )
        num_classes = 1 + max(int(values.max(initial=-1)) for values in labels.values())
        names = _read_class_names(arrays.file)
        if names and len(names) < num_classes:
            raise UserError(
                f"{arrays.file} has {len(names)} class_names, but labels up to {num_classes - 1}. "
                f"Store {num_classes} names, or none."
            )
        names = names or numbered_class_names(num_classes, arrays.file)
        counts = {key: len(values) for key, values in labels.items()}
        self.info = image_info(path, counts, names)
        self.info.frame_size = shape[1:3]
        self.num_examples, self.name = len(self._labels), f"{self.info.name}/{split}"

    def fetch(self, record: int) -> bytes:
        with self._lock:
            if self._images is None:
                images = _read_array(self._arrays.file, self._arrays.images)
                self._images = images[..., 0] if images.shape[3:] == (1,) else images
        out, label = io.BytesIO(), int(self._labels[record])
        PIL.Image.fromarray(self._images[record]).convert("RGB").save(out, "PNG")
        return encoded_example(
            out.getvalue(), label, self.info.class_names[label], self.where(record)
        )

    def where(self, record: int) -> str:
        return f"{self._arrays.file}, {self._arrays.images}[{record}]"

    def identity(self, record: int) -> tuple[str, str, int]:
        return self._real_path, self._arrays.images, record

    def labels(self) -> np.ndarray:
        return self._labels


def npz_splits(path: str) -> list[str]:
    """Returns the splits of an .npz file or of a directory of such files."""
    return list(_find_arrays(path))


def _find_arrays(path: str) -> dict[str, _Arrays]:
    """Returns the arrays of each split, by its name."""
    root = os.path.expanduser(path)
    files = [root]
    if os.path.isdir(root):
        files = [os.path.join(root, n) for n in directories.list_files(root) if n.endswith(".npz")]
    splits: dict[str, _Arrays] = {}
    for file in files:
        stem = os.path.splitext(os.path.basename(file))[0]
        with _open(file) as archive:
            keys = archive.names
        if "images" in keys:
            split = stem if stem in SPLIT_NAMES or os.path.isdir(root) else "train"
            splits[split] = _Arrays(file, "images", "labels")
        for key in keys:
            if match := re.fullmatch(r"(?P<a>\w+)_images|x_(?P<b>\w+)", key):
                split = match["a"] or match["b"]
                labels = f"{split}_labels" if match["a"] else f"y_{split}"
                splits[split] = _Arrays(file, key, labels)
        for arrays in splits.values():
            if arrays.file == file and arrays.labels not in keys:
                raise UserError(
                    f"{file} has {arrays.images} but lacks the array {arrays.labels}. Its arrays: "
                    f"{', '.join(keys)}."
                )
    if not splits:
        raise UserError(f"npz:{path} has no arrays of images. {_EXPECTED}.")
    return splits


def _open(file: str) -> npy.Archive:
    """Returns the opened archive."""
    if npy.is_array(file):
        array = npy.open_array(file)
        raise UserError(
            f"npz:{file} contains a single array, {array.dtype} {list(array.shape)} (.npy). "
            f"{_EXPECTED}: np.savez(FILE, images=images, labels=labels)."
        )
    try:
        return npy.Archive(file)
    except UserError as error:
        raise UserError(f"{error} {_EXPECTED}.") from error


def _read_array(file: str, key: str) -> np.ndarray:
    with _open(file) as archive:
        return archive.read(key)


def _image_shape(file: str, key: str) -> tuple[int, ...]:
    """Returns the shape of an array of images, which is checked. Reads only its header."""
    with _open(file) as archive:
        shape, dtype = archive.header(key)
    if len(shape) == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
        raise UserError(
            f"{file}: {key} has the shape {list(shape)}, with channels first. Store it as "
            "[N, H, W, C]: images.transpose(0, 2, 3, 1)."
        )
    if dtype != np.uint8 or not (len(shape) == 3 or len(shape) == 4 and shape[3] in (1, 3)):
        raise UserError(
            f"{file}: {key} is {dtype} {list(shape)}. Expected uint8 [N, H, W, 3], [N, H, W, 1] "
            "or [N, H, W]."
        )
    return shape


def _read_labels(file: str, key: str) -> np.ndarray:
    labels = _read_array(file, key)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{file}: {key} is {labels.dtype} {list(labels.shape)}. Expected integers [N]."
        )
    if len(negative := np.flatnonzero(labels < 0)):
        raise UserError(
            f"{file}: {key}[{negative[0]}] is {labels[negative[0]]}. Class indices must be at "
            "least 0."
        )
    return labels.astype(np.int64)


def _read_class_names(file: str) -> list[str]:
    with _open(file) as archive:
        present = "class_names" in archive.names
        return [str(name) for name in archive.read("class_names")] if present else []
