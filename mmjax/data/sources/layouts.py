"""Which files an end task reads: patterns of paths, and which of them are missing.

A pattern is a path relative to the root, for example `pets/train/*/*.jpg`:

* `*` in a directory name stands for any name. Directories that programs leave behind are skipped.
* A file name `*.SUFFIX` of an image matches every image file, because people convert datasets.
  Other file names match as in a shell.
* `{one,two}` lists alternatives. The first one with files is used.

A reader declares its patterns with `reads`, so that `missing` can compare them with the disk before
anything is read.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmjax import registry
from mmjax.data.sources.base import Source
from mmjax.data.sources.end_task_datasets import Prepared, find_prepared
from mmjax.data.storage import directories, image_files
from mmjax.end_tasks.declaration import EndTask
from mmjax.end_tasks.registry import find
from mmjax.errors import UserError

_ALTERNATIVES = re.compile(r"\{([^}]*)\}")


def reads(**patterns: Sequence[str]) -> Callable[[Any], Any]:
    """Returns a decorator that declares the files of a reader as its attribute `files`.

    Args:
      **patterns: {split: patterns of the files that it needs}.
    """

    def declare(reader: Any) -> Any:
        reader.files = {split: tuple(names) for split, names in patterns.items()}
        return reader

    return declare


def missing(name: str, root: str) -> list[str]:
    """Returns the patterns of an end task for which there are no files; [] if it can be read.

    Args:
      name: Name of the end task.
      root: Directory that contains the datasets, or 'world' for stand-ins, which are drawn when
        they are opened, also with their settings: 'world,train=2000'.

    Raises:
      UserError: The end task does not exist.
    """
    if root.partition(",")[0] == "world" or prepared(find(name), root):
        return []
    return [os.path.join(root, pattern) for pattern in _absent(reader_of(find(name)), root)]


def prepared(task: EndTask, root: str) -> Prepared | None:
    """Returns a dataset of `mmjax build` or TFDS to read instead of the published layout.

    Returns None if a part of the published layout exists, or there is no such dataset.

    Args:
      task: The end task.
      root: Directory that contains the datasets.
    """
    reader = reader_of(task)
    if any(_exists(os.path.expanduser(root), pattern) for pattern in _patterns(reader)):
        return None
    return find_prepared(task, os.path.expanduser(root), datasets(reader))


def reader_of(task: EndTask) -> Callable[[str, str, bool], Source]:
    """Returns the reader that an end task declares."""
    return registry.resolve(f"reader of {task.name}", task.reader, {})


def datasets(reader: Any) -> list[str]:
    """Returns the names of the directories below the root that a reader needs."""
    return list(dict.fromkeys(_expand(p)[0].split("/")[0] for p in _patterns(reader)))


def split_names(reader: Any) -> list[str]:
    """Returns the splits of a reader; [] if it does not declare its files."""
    return list(_files(reader))


def check(reader: Any, root: str, split: str) -> None:
    """Raises UserError if a split does not exist or none of its files does."""
    files = _files(reader)
    if split not in files:
        raise UserError(f"{root}: unknown split {split!r}. Its splits: {', '.join(files)}.")
    absent = [pattern for pattern in files[split] if not _exists(root, pattern)]
    if absent:
        listed = ", ".join(os.path.join(root, pattern) for pattern in absent)
        raise UserError(
            f"Missing files: {listed}. Copy the dataset there, or set the root to the directory "
            "that contains it (config.probe.root, `mmjax benchmark --root`, or root= in "
            "config.data.train). docs/end_tasks.md lists the files of all end tasks, and the "
            "datasets of `mmjax build` and TFDS that replace some."
        )


def find_files(root: str, pattern: str) -> list[str]:
    """Returns the paths of the files that match a pattern, in alphabetical order; [] if none do."""
    for alternative in _expand(pattern):
        *parents, name = alternative.split("/")
        paths = [
            os.path.join(directory, file)
            for directory in _directories(root, parents)
            for file in directories.list_files(directory)
            if _matches(directory, file, name)
        ]
        if paths:
            return sorted(paths)
    return []


def find_file(root: str, pattern: str) -> str:
    """Returns the first path that matches a pattern.

    Raises:
      UserError: None does.
    """
    paths = find_files(root, pattern)
    if not paths:
        raise UserError(f"Missing file: {os.path.join(root, pattern)}. Copy the dataset there.")
    return paths[0]


def _absent(reader: Any, root: str) -> list[str]:
    """Returns the patterns of a reader for which there are no files."""
    return [p for p in _patterns(reader) if not _exists(os.path.expanduser(root), p)]


def _patterns(reader: Any) -> list[str]:
    """Returns the patterns of all splits of a reader."""
    return list(dict.fromkeys(p for patterns in _files(reader).values() for p in patterns))


def _files(reader: Any) -> Mapping[str, Sequence[str]]:
    return getattr(reader, "files", {})


def _exists(root: str, pattern: str) -> bool:
    for alternative in _expand(pattern):
        *parents, name = alternative.split("/")
        for directory in _directories(root, parents):
            if any(_matches(directory, f, name) for f in directories.list_files(directory)):
                return True
    return False


def _expand(pattern: str) -> list[str]:
    match = _ALTERNATIVES.search(pattern)
    if not match:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [before + alternative + after for alternative in match[1].split(",")]


def _directories(root: str, parents: Sequence[str]) -> list[str]:
    """Returns the existing directories of a pattern, in alphabetical order."""
    paths = [root] if os.path.isdir(root) else []
    for name in parents:
        if "*" not in name:
            paths = [p for path in paths if os.path.isdir(p := os.path.join(path, name))]
            continue
        paths = [
            os.path.join(path, entry)
            for path in paths
            for entry in directories.list_directories(path)
            if fnmatch.fnmatchcase(entry, name)
        ]
    return paths


def _matches(directory: str, file: str, name: str) -> bool:
    if name.startswith("*.") and name[1:].lower() in image_files.IMAGE_SUFFIXES:
        return image_files.is_image(os.path.join(directory, file), gif=True)
    return fnmatch.fnmatchcase(file, name)
