"""Sets of labeled images in arrays: NumPy's .npz files."""

from __future__ import annotations

import contextlib
import io
import os
import re
import threading
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image

from mmjax.data.sources.image_folder import image_example, image_info, numbered
from mmjax.data.sources.split_slicing import SPLIT_WORDS, same_split
from mmjax.errors import UserError

_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # of a file of arrays


class NpzSource:
    """Images and labels as arrays: one .npz file, or a folder with one file per split.

    A file holds `images` uint8 [N, H, W, 3] (or [N, H, W, 1] or [N, H, W]: gray) and `labels`
    integers [N], and counts as the split it is named after, else as 'train'. Or it holds several
    splits, named `train_images`, `train_labels` or `x_train`, `y_train`. `class_names` is optional.
    The images of the split are read into memory when the first of them is asked for.

    Raises:
      UserError: a missing or damaged file, no such split, or arrays of another type or shape.
    """

    files = index = None
    directory = ""

    def __init__(self, path: str, *, split: str):
        members = _npz_members(path)
        name = same_split(split, members)
        if name is None:
            raise UserError(f"{path} has no split {split!r}. It has: {', '.join(members)}.")
        labels = {which: _npz_labels(file, key) for which, (file, _, key) in members.items()}
        file, image_key, label_key = members[name]
        shape = _npz_shape(file, image_key)
        self._file, self._key, self._labels = file, image_key, labels[name]
        self._images: np.ndarray | None = None
        self._lock = threading.Lock()  # records are fetched by several threads
        if shape[0] != len(self._labels):
            raise UserError(
                f"{file} has {shape[0]} images in {image_key} but "
                f"{len(self._labels)} labels in {label_key}."
            )
        classes = 1 + max(int(some.max(initial=-1)) for some in labels.values())
        names = _npz_names(file)
        if names and len(names) < classes:
            raise UserError(f"{file} has {len(names)} class_names, but labels up to {classes - 1}.")
        names = names or numbered(classes, file)
        counts = {which: len(some) for which, some in labels.items()}
        self.info = image_info(path, counts, names)
        self.info.frame_size = shape[1:3]
        self.num_examples, self.name = len(self._labels), f"{self.info.name}/{split}"

    def fetch(self, record: int) -> bytes:
        with self._lock:
            if self._images is None:
                images = _array(self._file, self._key)
                self._images = images[..., 0] if images.shape[3:] == (1,) else images
        out, label = io.BytesIO(), int(self._labels[record])
        PIL.Image.fromarray(self._images[record]).convert("RGB").save(out, "PNG")
        return image_example(
            out.getvalue(), label, self.info.class_names[label], self.where(record)
        )

    def where(self, record: int) -> str:
        return f"{self._file}, {self._key}, row {record}"

    def labels(self) -> np.ndarray:
        return self._labels


def npz_splits(path: str) -> list[str]:
    """The splits of a file or folder of arrays."""
    return list(_npz_members(path))


def _npz_members(path: str) -> dict[str, tuple[str, str, str]]:
    """{split: (file, name of its images, name of its labels)}."""
    root = os.path.expanduser(path)
    files = [root]
    if os.path.isdir(root):
        files = sorted(os.path.join(root, n) for n in os.listdir(root) if n.endswith(".npz"))
    found: dict[str, tuple[str, str, str]] = {}
    for file in files:
        stem = os.path.splitext(os.path.basename(file))[0]
        with _opened(file) as arrays:
            keys = list(arrays)
        if "images" in keys:
            split = stem if stem in SPLIT_WORDS or os.path.isdir(root) else "train"
            found[split] = (file, "images", "labels")
        for key in keys:
            if match := re.fullmatch(r"(?P<a>\w+)_images|x_(?P<b>\w+)", key):
                split = match["a"] or match["b"]
                label = f"{split}_labels" if match["a"] else f"y_{split}"
                found[split] = (file, key, label)
        if absent := [label for f, _, label in found.values() if f == file and label not in keys]:
            raise UserError(f"{file} lacks the array {absent[0]}; it has: {', '.join(keys)}.")
    if not found:
        raise UserError(
            f"{path} has no arrays of images: expected images and labels, or train_images and "
            "train_labels, or x_train and y_train, in .npz files."
        )
    return found


def _opened(file: str):
    try:
        arrays = np.load(file, allow_pickle=False)
    except _DAMAGE as error:
        raise UserError(f"{file} cannot be read as .npz: {error}") from error
    if not hasattr(arrays, "files"):
        raise UserError(f"{file} is a single array; expected an .npz file.")
    return arrays


@contextlib.contextmanager
def _reading(file: str, key: str) -> Iterator[Any]:
    """The arrays of a file, of which `key` is to be read here."""
    with _opened(file) as arrays:
        try:
            yield arrays
        except _DAMAGE as error:
            raise UserError(f"{file}: the array {key} cannot be read: {error}") from error


def _array(file: str, key: str) -> np.ndarray:
    with _reading(file, key) as arrays:
        return arrays[key]


def _npz_shape(file: str, key: str) -> tuple[int, ...]:
    """That of uint8 images [N, H, W, 3], [N, H, W, 1] or [N, H, W], by the array's head alone."""
    npy = np.lib.format
    with _reading(file, key) as arrays, arrays.zip.open(f"{key}.npy") as member:
        first = npy.read_magic(member) == (1, 0)
        read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
        shape, _, dtype = read(member)
    if len(shape) == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
        raise UserError(
            f"{file}: {key} is {list(shape)}, with the channels first; store it as [N, H, W, C]: "
            "images.transpose(0, 2, 3, 1)."
        )
    if dtype != np.uint8 or not (len(shape) == 3 or len(shape) == 4 and shape[3] in (1, 3)):
        raise UserError(
            f"{file}: {key} is {dtype} {list(shape)}; expected uint8 [N, H, W, 3], [N, H, W, 1] "
            "or [N, H, W]."
        )
    return shape


def _npz_labels(file: str, key: str) -> np.ndarray:
    labels = _array(file, key)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{file}: {key} is {labels.dtype} {list(labels.shape)}; expected integers.")
    if len(bad := np.flatnonzero(labels < 0)):
        raise UserError(f"{file}: {key} is {labels[bad[0]]} in row {bad[0]}; classes are from 0.")
    return labels.astype(np.int64)


def _npz_names(file: str) -> list[str]:
    with _opened(file) as arrays:
        present = "class_names" in arrays
    return [str(name) for name in _array(file, "class_names")] if present else []
