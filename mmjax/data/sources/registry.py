"""Opens data sources by specification, for example `csv:labels.csv` in `config.data.train`.

| specification                        | source                                                   |
| ------------------------------------ | -------------------------------------------------------- |
| `DIRECTORY`                          | a dataset directory, see `mmjax.data.storage.dataset`    |
| `world`, `world:NAME`                | the built-in procedural world                            |
| `images:DIRECTORY`                   | images in DIRECTORY/SPLIT/CLASS/*.jpg                    |
| `csv:FILE`                           | a table of image paths and labels                        |
| `npz:FILE`, `npz:DIRECTORY`          | arrays of images and labels                              |
| `tfds:NAME[,label=…][,data_dir=…]`   | an image dataset of TensorFlow Datasets                  |
| `end_task:NAME[,root=DIRECTORY]`     | an end task, see `mmjax.data.sources.end_task`           |
| `package.module:Name`                | your own source, see `mmjax.data.sources.base`           |

DMVR factories (`dmvr:…`) are streams without random access. `mmjax.data.pipeline.dmvr` reads them.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any, Protocol

from mmjax import registry
from mmjax.data.sources import csv_table, end_task, image_folder, npz, split_slicing, tfds
from mmjax.data.sources.base import Source
from mmjax.data.sources.shards import ShardSource
from mmjax.data.storage.dataset import DatasetDir, DatasetInfo
from mmjax.data.world import build as world
from mmjax.errors import UserError, unknown


class _Opener(Protocol):
    def __call__(self, text: str, *, split: str, check_crc: bool) -> Source: ...


@dataclasses.dataclass(frozen=True)
class _Format:
    """A built-in format of sources.

    Attributes:
      open: Opens a split, given the text after the prefix.
      split_names: Lists the splits, given the text after the prefix; see `split_names`.
    """

    open: _Opener
    split_names: Callable[[str], list[str]]


def open_source(spec: str, *, split: str, check_crc: bool = True) -> Source:
    """Returns the source of a specification.

    Args:
      spec: A specification as listed in the module docstring.
      split: A split, a slice of one, or a sum of these; see `mmjax.data.sources.split_slicing`.
        Synonyms are accepted: 'validation' opens 'val' or 'valid' if the dataset has that.
      check_crc: Whether to check the CRC of each record of a TFRecord shard when it is read.

    Raises:
      UserError: The specification is invalid, or the dataset cannot be opened.
    """
    if not spec:
        raise UserError(
            "config.data.train is empty. This recipe needs a dataset: set "
            "--config.data.train=DIRECTORY. `mmjax build` writes one from your files."
        )
    prefix, text = _parse(spec)
    return _FORMATS[prefix].open(text, split=split, check_crc=check_crc)


def split_names(spec: str) -> list[str]:
    """Returns the names of the splits of a specification.

    Returns [] if every name is accepted, or if the names are not known before a split is opened.

    Raises:
      UserError: The specification is invalid, or the dataset cannot be opened.
    """
    prefix, text = _parse(spec)
    return _FORMATS[prefix].split_names(text)


def vocabulary(spec: str, *, split: str) -> str:
    """Returns the path of the vocabulary file in a dataset directory.

    Raises:
      UserError: The dataset has no vocabulary.
    """
    prefix, text = _parse(spec)
    if prefix in (_DIRECTORY, "world"):
        dataset = DatasetDir(world.ensure_world(text) if prefix == "world" else text)
        if dataset.info.vocabulary:
            return os.path.join(dataset.path, dataset.info.vocabulary)
    raise UserError(
        f"config.data.text.vocab is not set, and the dataset {spec} has no vocabulary. Write "
        "one from its captions with `mmjax vocab`, or set config.data.text.vocab to a file."
    )


# --------------------------------------------------------------------------------------------------
# Built-in formats.


def _without_shards(
    open_plain: Callable[..., Source], names: Callable[[str], list[str]]
) -> _Format:
    """Returns the format of sources without shards; `open_plain` opens a split by its name."""

    def open_parts(text: str, *, split: str, check_crc: bool) -> Source:
        return split_slicing.open_split(
            split, lambda name: open_plain(text, split=name), split_slicing.ConcatSource
        )

    return _Format(open_parts, names)


def _open_directory(path: str, *, split: str, check_crc: bool) -> Source:
    if not split_slicing.is_plain(split) and DatasetDir(path).info.stored_splits(split):
        # The name of the split itself contains '+': its shards belong to two splits.
        return ShardSource.open(path, split=split, check_crc=check_crc)
    return split_slicing.open_split(
        split,
        lambda name: ShardSource.open(path, split=name, check_crc=check_crc),
        ShardSource.concatenate,
    )


def _open_world(spec: str, *, split: str, check_crc: bool) -> Source:
    return _open_directory(world.ensure_world(spec), split=split, check_crc=check_crc)


def _open_tfds(text: str, *, split: str, check_crc: bool) -> Source:
    plain = split_slicing.is_plain(split)
    if not plain and (directory := tfds.earlier_slice(text, split)):
        return ShardSource.open(directory, split=split, check_crc=check_crc)

    def open_plain(name: str) -> ShardSource:
        directory, known = tfds.tfds_dir(text, split=name, any_order=plain)
        return ShardSource.open(directory, split=known, check_crc=check_crc)

    return split_slicing.open_split(split, open_plain, ShardSource.concatenate)


def _open_reference(reference: str, *, split: str) -> Source:
    """Opens a source that is not built in; see `mmjax.data.sources.base` for its contract."""
    source = registry.resolve("dataset", reference, {})(split=split)
    required = ("name", "info", "num_examples", "directory", "files", "index")
    missing = [
        name for name in (*required, "fetch", "where", "labels") if not hasattr(source, name)
    ]
    if missing:
        raise UserError(
            f"dataset={reference}: {type(source).__name__} lacks {', '.join(missing)}. A source "
            "needs all attributes and methods of mmjax.data.sources.base.Source; derive it from "
            "that class to inherit the defaults."
        )
    if not isinstance(source.info, DatasetInfo):
        raise UserError(
            f"dataset={reference}: info must be a mmjax.data.storage.dataset.DatasetInfo; got "
            f"{type(source.info).__name__}."
        )
    return source


def _reject_stream(text: str, **kwargs: Any) -> Any:
    raise UserError(
        f"dmvr:{text} is a stream, so its records cannot be read by index. A mixture of sources in "
        "config.data.train and the `mmjax` commands need that. Use a stream as the only source of "
        "config.data.train, or convert its records to a dataset directory."
    )


def _open_end_task(text: str, *, split: str) -> Source:
    return end_task.open_end_task(text, split=split, open_source=open_source)


_DIRECTORY = ""  # a path without prefix
_REFERENCE = "package.module:Name"  # a reference to a class or function
_FORMATS: dict[str, _Format] = {
    _DIRECTORY: _Format(_open_directory, lambda path: list(DatasetDir(path).info.split_sizes())),
    "world": _Format(
        _open_world, lambda spec: list(DatasetDir(world.ensure_world(spec)).info.split_sizes())
    ),
    "images": _without_shards(image_folder.open_images, image_folder.image_folder_splits),
    "csv": _without_shards(csv_table.open_csv, csv_table.csv_splits),
    "npz": _without_shards(npz.NpzSource, npz.npz_splits),
    "tfds": _Format(_open_tfds, tfds.tfds_splits),
    "end_task": _without_shards(_open_end_task, end_task.end_task_splits),
    "dmvr": _Format(_reject_stream, _reject_stream),
    _REFERENCE: _without_shards(_open_reference, lambda reference: []),
}


def _parse(spec: str) -> tuple[str, str]:
    """Returns `(key of _FORMATS, text for that format)`.

    Raises:
      UserError: The prefix is unknown, and no directory has this name.
    """
    prefix, colon, text = spec.partition(":")
    if prefix == "world":
        return prefix, spec
    if colon and prefix and prefix in _FORMATS:
        return prefix, text
    if os.path.isdir(os.path.expanduser(spec)) or not re.fullmatch(r"\w[\w.]*:(?!//).*", spec):
        return _DIRECTORY, spec
    prefixes = [f"{name}:" for name in _FORMATS if name.isidentifier()]
    misspelled = difflib.get_close_matches(f"{prefix}:", prefixes) and not _is_importable(prefix)
    if registry.is_reference(spec) and not misspelled:
        return _REFERENCE, spec
    raise unknown(f"prefix of the dataset {spec!r}:", f"{prefix}:", [*prefixes, _REFERENCE])


def _is_importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
