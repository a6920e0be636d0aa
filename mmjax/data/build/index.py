"""Turns a directory of TFRecord shards into a dataset: indexes and `dataset.json`."""

from __future__ import annotations

import dataclasses
import os

from absl import logging

from mmjax.data.build import class_names
from mmjax.data.storage import dataset, tfrecord
from mmjax.errors import UserError


def index(path: str) -> dataset.DatasetInfo:
    """Writes an index next to each shard of a directory, and `dataset.json`.

    Values in an existing `dataset.json` are kept, except for shards and counts. An invalid
    `dataset.json` is renamed to `dataset.json.old`. The number and names of the classes are taken
    from the records, unless `dataset.json` has them.

    Args:
      path: The directory.

    Returns:
      The content of `dataset.json`.

    Raises:
      UserError: The directory does not exist, has no shards, or a shard is damaged.
    """
    if not os.path.isdir(path):
        raise UserError(f"{path}: no such directory.")
    info = _load_info(path)
    splits = {}
    for split, names in dataset.find_shards(path).items():
        counts = [len(tfrecord.build_index(os.path.join(path, name), save=True)) for name in names]
        splits[split] = dataset.SplitInfo(num_examples=sum(counts), shards=names)
    if info is None:
        file = os.path.join(path, dataset.FILE)
        if os.path.exists(file):
            os.replace(file, f"{file}.old")
        info = dataset.DatasetDir(path).info  # derived from the first record
    info = dataclasses.replace(info, splits=splits)
    info.save(path)
    if not info.num_classes:
        _find_classes(path, info)
    return info


def _find_classes(path: str, info: dataset.DatasetInfo) -> None:
    """Adds the number and the names of the classes in the records to `dataset.json`."""
    splits = [name for name, split in info.splits.items() if split.num_examples]
    found = class_names.read_class_names(path, splits)
    if not found.num_classes:
        return
    info.num_classes, info.class_names = found.num_classes, found.by_number()
    info.save(path)
    if conflicts := found.conflicts():
        logging.warning("%s: %s", path, class_names.advice(conflicts))
    elif not info.class_names:
        logging.warning(
            "%s: not every class number in [0, %d) has one name in the records, so class_names in "
            "dataset.json stays empty.",
            path,
            info.num_classes,
        )


def _load_info(path: str) -> dataset.DatasetInfo | None:
    """Returns the content of `dataset.json`, or None if it does not exist or is invalid."""
    if not os.path.exists(os.path.join(path, dataset.FILE)):
        return None
    try:
        return dataset.DatasetInfo.load(path)
    except UserError as error:
        logging.warning("Replacing an invalid dataset.json: %s", error)
        return None
