"""CIFAR-10 and CIFAR-100: the official Python pickles, or the binary version.

The pickles are read without running code from them; see `mmjax.formats.pickles`.
"""

from __future__ import annotations

import functools
import io
import os

import numpy as np
import PIL.Image

from mmjax import files
from mmjax.data.end_tasks.source import counted_classes, describe, serialized
from mmjax.data.sources import layouts
from mmjax.data.sources.base import Source
from mmjax.errors import UserError
from mmjax.formats import pickles

_PIXELS = 3 * 32 * 32
_FILES_100 = {
    split: f"{{cifar-100/{split},cifar-100-python/{split},cifar-100-binary/{split}.bin}}"
    for split in ("train", "test")
}
_FILES_10 = {
    split: f"{{cifar-10/{name},cifar-10-batches-py/{name},cifar-10-batches-bin/{name}.bin}}"
    for split, name in (("train", "data_batch_*"), ("test", "test_batch"))
}


class CifarSource(Source):
    """Images of 32×32 pixels in memory.

    Args:
      name: Name of the dataset.
      split: Name of the split.
      pixels: uint8 [N, 3072]: the red, green and blue plane of each image.
      labels: Class index of each image.
      class_names: Class names by index.
      locations: (file, index in it) of each image.
    """

    def __init__(self, name, split, pixels, labels, class_names, locations):
        self._pixels, self._labels, self._locations = pixels, labels, locations
        self.num_examples, self.name = len(labels), f"{name}/{split}"
        self.info = describe(name, split, len(labels), class_names)

    def fetch(self, record: int) -> bytes:
        label = int(self._labels[record])
        pixels = self._pixels[record].reshape(3, 32, 32).transpose(1, 2, 0)
        buffer = io.BytesIO()
        PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
        return serialized(
            [buffer.getvalue()],
            label=label,
            label_text=self.info.class_names[label],
            filename=self.where(record),
        )

    def where(self, record: int) -> str:
        path, index = self._locations[record]
        return f"{path}, image {index}"

    def identity(self, record: int) -> tuple[str, int]:
        path, index = self._locations[record]
        return os.path.realpath(path), index

    def labels(self) -> np.ndarray:
        return np.asarray(self._labels, np.int64)


@layouts.reads(train=(_FILES_100["train"],), test=tuple(_FILES_100.values()))
def cifar_100(root: str, split: str, paper: bool) -> CifarSource:
    """Reads CIFAR-100 with its fine labels."""
    return _open(root, split, _FILES_100, "cifar-100", "fine_labels", "meta", "fine_label_names")


@layouts.reads(train=(_FILES_10["train"],), test=tuple(_FILES_10.values()))
def cifar_10(root: str, split: str, paper: bool) -> CifarSource:
    """Reads CIFAR-10."""
    return _open(root, split, _FILES_10, "cifar-10", "labels", "batches.meta", "label_names")


def _open(
    root: str, split: str, patterns: dict[str, str], name: str, key: str, meta: str, names: str
) -> CifarSource:
    paths = layouts.find_files(root, patterns[split])
    parts = [_read_part(path, key, _stamp(path)) for path in paths]
    labels = np.concatenate([labels for _, labels in parts])
    train = np.concatenate(
        [
            _read_part(path, key, _stamp(path))[1]
            for path in layouts.find_files(root, patterns["train"])
        ]
    )
    class_names = counted_classes(labels.tolist(), train.tolist(), name=name, split=split)
    class_names = _class_names(os.path.dirname(paths[0]), meta, names) or class_names
    if labels.max() >= len(class_names):
        raise UserError(
            f"{paths[0]} has the label {labels.max()}, but {meta} lists {len(class_names)} "
            "classes. Replace the files by those of one download."
        )
    locations = [
        (path, index)
        for path, (pixels, _) in zip(paths, parts, strict=True)
        for index in range(len(pixels))
    ]
    pixels = parts[0][0] if len(parts) == 1 else np.concatenate([pixels for pixels, _ in parts])
    return CifarSource(name, split, pixels, labels, class_names, locations)


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=8)
def _read_part(path: str, key: str, stamp: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels, uint8 [N, 3072], and the labels, int64 [N], of a file.

    Raises:
      UserError: The file is damaged, or has another content.
    """
    del stamp  # only distinguishes versions of the file
    if path.endswith(".bin"):
        return _read_binary(path, 2 if key == "fine_labels" else 1)
    content = _unpickle(path)
    if key not in content or "data" not in content:
        found = ", ".join(map(str, content)) or "nothing"
        raise UserError(f"{path}: expected the keys 'data' and {key!r}; found {found}.")
    pixels, labels = content["data"], np.asarray(content[key])
    valid = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8
    if not valid or pixels.shape != (len(labels), _PIXELS) or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: expected 'data' as uint8 [N, {_PIXELS}] and {key!r} as N integers; got "
            f"{getattr(pixels, 'dtype', type(pixels).__name__)} "
            f"{list(getattr(pixels, 'shape', []))} and {len(labels)} labels."
        )
    return pixels, labels.astype(np.int64)


def _read_binary(path: str, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.fromfile(path, np.uint8)
    if not rows.size or rows.size % (num_labels + _PIXELS):
        raise UserError(
            f"{path} has {rows.size} bytes, which is not a multiple of {num_labels + _PIXELS} "
            f"bytes per image. It is truncated or of another dataset. Download it again."
        )
    rows = rows.reshape(-1, num_labels + _PIXELS)
    return rows[:, num_labels:], rows[:, num_labels - 1].astype(np.int64)


def _class_names(directory: str, meta: str, names: str) -> list[str]:
    path = os.path.join(directory, meta)
    if os.path.exists(path):
        return [str(name) for name in _unpickle(path).get(names, ())]
    path = os.path.join(directory, f"{meta}.txt" if meta != "meta" else f"{names}.txt")
    return files.read_lines(path) if os.path.exists(path) else []


def _unpickle(path: str) -> dict:
    """Returns the dictionary in a pickle, with texts as keys.

    Raises:
      UserError: The pickle is damaged, uses other names than those of arrays, or contains
        something else.
    """
    advice = "which the files of CIFAR do not. It may be malicious; download the dataset again."
    try:
        with open(path, "rb") as file:
            content = pickles.Unpickler(
                file, allowed=pickles.ARRAYS, advice=advice, encoding="latin1"
            ).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # noqa: BLE001 - a damaged pickle can raise anything
        raise UserError(
            f"{path} is not a complete pickle: {error}. Download the dataset again."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} contains {type(content).__name__}; expected a dictionary.")
    return {k.decode() if isinstance(k, bytes) else k: value for k, value in content.items()}
