"""A cache of features on disk.

Files are keyed by everything that determines the features: weights, model, data and request. A
change of the code of mmjax is not detected.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging

from mmjax import files
from mmjax.cache import cache_dir
from mmjax.formats import npy

_FORMAT = 1  # version of the files; a change invalidates all of them
_GROUPS = ("output", "field")  # arrays from the model, and arrays from the data
# Keys of config.data that do not affect an evaluation.
_INERT = (
    *("split", "weights", "limit", "pairs", "max_corrupt"),
    *("check_crc", "read", "threads", "prefetch"),
)

Arrays = dict[str, np.ndarray]


def path_of(key: Mapping[str, Any], name: str) -> pathlib.Path:
    """Returns the file of the features that `key` describes.

    Args:
      key: Everything that determines the features; must be JSON-serializable.
      name: Name of the dataset and split. It precedes the hash in the file name, to make the
        directory readable.
    """
    text = json.dumps({"format": _FORMAT, **key}, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    slug = re.sub(r"[^\w.-]+", "_", name)[:60]
    return cache_dir() / "features" / f"{slug}-{digest}.npz"


def read(path: pathlib.Path, names: Collection[str]) -> tuple[Arrays, Arrays] | None:
    """Returns `(outputs, fields)` of a file.

    Args:
      path: From `path_of`.
      names: Names of the outputs to read.

    Returns:
      None if the file does not exist, lacks an output, or is damaged; the latter is logged.
    """
    if not path.exists():
        return None
    try:
        with npy.Archive(path) as file:
            groups: dict[str, Arrays] = {group: {} for group in _GROUPS}
            for entry in file.names:
                group, _, name = entry.partition(":")
                if group == _GROUPS[0] and name not in names:
                    continue
                groups[group][name] = file.read(entry)
        sizes = {len(value) for group in groups.values() for value in group.values()}
        if len(sizes) != 1 or "example_id" not in groups[_GROUPS[1]]:
            raise ValueError(f"arrays of {sorted(sizes)} examples")
    except (ValueError, KeyError, TypeError) as error:
        logging.warning("%s is damaged (%s). Recomputing the features.", path, error)
        return None
    outputs, fields = groups.values()
    return (outputs, fields) if set(names) <= outputs.keys() else None


def write(path: pathlib.Path, outputs: Arrays, fields: Arrays) -> None:
    """Writes a file atomically. If that fails, logs a warning: only the next run takes longer."""
    groups = zip(_GROUPS, (outputs, fields), strict=True)
    arrays = {f"{group}:{name}": value for group, part in groups for name, value in part.items()}
    try:
        with files.atomic_open(path, "wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        logging.warning(
            "Cannot write features to %s: %s. They will be computed again next time.",
            path.parent,
            error,
        )


def data_identity(data: Any, spec: str, data_cfg: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns a description that changes if the data change, without reading the records.

    It consists of the names, sizes and modification times of their files.

    Args:
      data: An evaluation dataset.
      spec: Its specification, as in `config.data.train`.
      data_cfg: The data config that it was opened with, including files that it refers to.

    Returns:
      None for a stream, which cannot be identified without reading it.
    """
    if not hasattr(data, "sources"):
        return None
    section = {key: value for key, value in data_cfg.items() if key not in _INERT}
    return {
        "spec": spec,
        "num_examples": data.num_examples,
        "sources": [source_identity(source) for source in data.sources],
        "config": section,
        "files": _stats([spec.partition(":")[2] or spec, *_strings(section)]),
    }


def source_identity(source: Any) -> dict[str, Any]:
    """Returns a description of a source that changes if its files change."""
    info = source.info
    result = {
        "name": source.name,
        "num_examples": source.num_examples,
        "info": dataclasses.asdict(info) if dataclasses.is_dataclass(info) else vars(info),
    }
    if source.files is not None:
        metadata = os.path.join(source.directory, "dataset.json")
        return result | {"files": _stats([metadata, *map(os.fspath, source.files)])}
    locations = [source.where(record) for record in range(source.num_examples)]
    paths = dict.fromkeys(_file_of(location) for location in locations)
    digest = hashlib.sha256(json.dumps([locations, _stats(paths)]).encode()).hexdigest()
    return result | {"records": digest, "labels": hashlib.sha256(source.labels()).hexdigest()}


def _file_of(location: str) -> str:
    """Returns the file in a record's location: `FILE`, `FILE, …` or `TABLE, line 3: FILE`."""
    candidates = (location, location.rpartition(": ")[2], location.rpartition(", ")[0])
    return next((path for path in candidates if os.path.isfile(path)), location)


def _strings(value: Any) -> Iterable[str]:
    """Yields all strings in nested mappings and sequences."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _stats(paths: Iterable[str]) -> list[tuple[str, int, int]]:
    """Returns (path, size in bytes, modification time in ns) of files.

    For a directory, these are the files directly in it. Paths that do not exist are ignored.
    """
    result = []
    for path in paths:
        path = os.path.expanduser(path)
        if os.path.isdir(path):
            existing = sorted(entry.path for entry in os.scandir(path) if entry.is_file())
        else:
            existing = [path] if path and os.path.exists(path) else []
        for file in existing:
            stat = os.stat(file)
            result.append((file, stat.st_size, stat.st_mtime_ns))
    return result
