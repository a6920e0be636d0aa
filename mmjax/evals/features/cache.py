"""Features on disk, found again by what they were made from: weights, model, data and request."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging

from mmjax.cache import cache_dir

_FORMAT = 1  # of the files; another number finds none of them
_FIELDS = ("output", "field")  # what the model gave, and what the data did
# Keys of config.data that change nothing about an evaluation.
_INERT = (
    *("split", "weights", "limit", "pairs", "max_corrupt"),
    *("check_crc", "read", "threads", "prefetch"),
)
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)

Arrays = dict[str, np.ndarray]


def path_of(key: Mapping[str, Any], name: str) -> pathlib.Path:
    """The file of the features that `key` describes.

    Args:
      key: all that they depend on; written as JSON.
      name: of the dataset and split, for people who look into the folder.
    """
    text = json.dumps({"format": _FORMAT, **key}, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:24]
    slug = re.sub(r"[^\w.-]+", "_", name)[:60]
    return cache_dir() / "features" / f"{slug}-{digest}.npz"


def read(path: pathlib.Path, names: Collection[str]) -> tuple[Arrays, Arrays] | None:
    """`(outputs, fields)` of a file; None if it is not there, lacks one of the outputs, or is
    damaged, which is logged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            groups = {kind: {} for kind in _FIELDS}
            for entry in file.files:
                kind, _, name = entry.partition(":")
                if kind == _FIELDS[0] and name not in names:
                    continue
                groups[kind][name] = file[entry]
        sizes = {len(value) for group in groups.values() for value in group.values()}
        if len(sizes) != 1 or "example_id" not in groups[_FIELDS[1]]:
            raise ValueError(f"arrays of {sorted(sizes)} rows")
    except _DAMAGE as error:
        logging.warning("%s is damaged (%s); the features are computed again.", path, error)
        return None
    outputs, fields = groups.values()
    return (outputs, fields) if set(names) <= outputs.keys() else None


def write(path: pathlib.Path, outputs: Arrays, fields: Arrays) -> None:
    """Puts a file there, all at once. A disk that is full only costs the time of the next run."""
    groups = zip(_FIELDS, (outputs, fields), strict=True)
    arrays = {f"{kind}:{name}": value for kind, group in groups for name, value in group.items()}
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            partial = file.name
            np.savez(file, **arrays)
        os.replace(partial, path)
    except OSError as error:
        logging.warning("Features cannot be kept in %s: %s", path.parent, error)
        if partial and os.path.exists(partial):
            os.remove(partial)


# ---- what features depend on


def data_identity(data: Any, spec: str, data_cfg: Mapping[str, Any]) -> dict[str, Any] | None:
    """What tells data from others, short of reading them: names, sizes and dates of their files.

    Args:
      data: an evaluation dataset; None for a stream, which cannot be known without reading it.
      spec: its specification.
      data_cfg: the section that it was opened with; files and folders that it names count too.
    """
    if not hasattr(data, "sources"):
        return None
    section = {key: value for key, value in data_cfg.items() if key not in _INERT}
    return {
        "spec": spec,
        "num_examples": data.num_examples,
        "sources": [_source_identity(source) for source in data.sources],
        "config": section,
        "files": _stats([spec.partition(":")[2] or spec, *_strings(section)]),
    }


def _source_identity(source: Any) -> dict[str, Any]:
    info = source.info
    found = {
        "name": source.name,
        "num_examples": source.num_examples,
        "info": dataclasses.asdict(info) if dataclasses.is_dataclass(info) else vars(info),
    }
    if source.files is not None:
        described = os.path.join(source.directory, "dataset.json")
        return found | {"files": _stats([described, *map(os.fspath, source.files)])}
    places = [source.where(record) for record in range(source.num_examples)]
    files = dict.fromkeys(_file_of(place) for place in places)
    digest = hashlib.sha256(json.dumps([places, _stats(files)]).encode()).hexdigest()
    return found | {"records": digest, "labels": hashlib.sha256(source.labels()).hexdigest()}


def _file_of(place: str) -> str:
    """The file in what a source says of a record: `FILE`, `FILE, row 3` or `TABLE, row 3: FILE`."""
    return next(
        (
            part
            for part in (place, place.rpartition(": ")[2], place.rpartition(", ")[0])
            if os.path.isfile(part)
        ),
        place,
    )


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _stats(paths: Iterable[str]) -> list[tuple[str, int, int]]:
    """(path, bytes, date) of the files, and of what lies in the folders; others are passed over."""
    found = []
    for path in paths:
        path = os.path.expanduser(path)
        if os.path.isdir(path):
            files = sorted(entry.path for entry in os.scandir(path) if entry.is_file())
        else:
            files = [path] if path and os.path.exists(path) else []
        for file in files:
            stat = os.stat(file)
            found.append((file, stat.st_size, stat.st_mtime_ns))
    return found
