"""CLEVR: the number of objects of an image, and the distance of the nearest one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from mmjax import files
from mmjax.data.end_tasks.source import EndTaskSource, counted_classes
from mmjax.data.sources import layouts
from mmjax.errors import UserError

_DIRECTORIES = {"train": "train", "test": "val"}
_IMAGES = {k: f"CLEVR/images/{name}/*.png" for k, name in _DIRECTORIES.items()}
_SCENES = {k: f"CLEVR/scenes/CLEVR_{name}_scenes.json" for k, name in _DIRECTORIES.items()}
_ADVICE = "Download CLEVR again."

_reads = layouts.reads(
    train=(_IMAGES["train"], _SCENES["train"]),
    test=(_SCENES["train"], _IMAGES["test"], _SCENES["test"]),
)


@_reads
def num_objects(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads CLEVR with the number of objects as the class."""
    return _open(root, split, paper, "CLEVERNumObjects", len)


@_reads
def distance(root: str, split: str, paper: bool) -> EndTaskSource:
    """Reads CLEVR with twice the distance of the nearest object, rounded down, as the class.

    The distance is that from the origin of the coordinates of the scene.
    """
    return _open(root, split, paper, "CLEVERDist", _twice_nearest)


def _twice_nearest(objects: list[dict[str, Any]]) -> int:
    return int(2 * min(float(np.linalg.norm(one["3d_coords"])) for one in objects))


def _open(
    root: str, split: str, paper: bool, name: str, label_of: Callable[[list], int]
) -> EndTaskSource:
    path = os.path.join(root, _SCENES[split])
    labels_by_file = _labels(path, _stamp(path), label_of)
    train_path = os.path.join(root, _SCENES["train"])
    train = _labels(train_path, _stamp(train_path), label_of)
    images = layouts.find_files(root, _IMAGES[split])
    if absent := [image for image in images if os.path.basename(image) not in labels_by_file]:
        raise UserError(
            f"{path} has no scene for {len(absent)} of {len(images)} images, the first one "
            f"{absent[0]}. {_ADVICE}"
        )
    labels = [labels_by_file[os.path.basename(image)] for image in images]
    class_names = counted_classes(labels, list(train.values()), name=name, split=split)
    paths = [(image,) for image in images]
    return EndTaskSource(name, split, paths, labels=labels, class_names=class_names, exact=paper)


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=8)  # the file of the training split has several hundred megabytes
def _labels(path: str, stamp: tuple[int, int], label_of: Callable[[list], int]) -> dict[str, int]:
    """Returns {name of an image file: label}."""
    del stamp  # only distinguishes versions of the file
    scenes = files.read_object(path, _ADVICE).get("scenes")
    try:
        labeled = [(scene["image_filename"], label_of(scene["objects"])) for scene in scenes]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: expected a list 'scenes' with 'image_filename' and 'objects', each of which "
            f"has '3d_coords'; an entry has another form ({error!r}). {_ADVICE}"
        ) from error
    labels = dict(labeled)
    if repeated := [name for name, label in labeled if labels[name] != label]:
        raise UserError(
            f"{path} has two scenes with different objects for {repeated[0]}. {_ADVICE}"
        )
    return labels
