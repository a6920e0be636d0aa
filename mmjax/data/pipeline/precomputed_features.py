"""Features of a frozen tower that were computed once, in place of what the tower looks at.

    FOLDER/features.json       {"dataset": "tvl", "num_examples": {"train": 39154, …}, …}
    FOLDER/train/image.npy     floating point [N, D], a row for each record
    FOLDER/train/text.npy      or [N, K, D], K variants, of which one is drawn at each visit

`data.image.features`, `data.touch.features` and `data.text.features` name such folders. Only
training takes them: evaluation runs the towers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mmjax.data.pipeline.phases import Features, Pipeline, seed_of
from mmjax.data.sources.registry import Source
from mmjax.data.storage import metadata
from mmjax.errors import UserError

FILE = "features.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DRAWS = 2**31 - 1  # among which the remainder of a division by a few variants favors none


def write_description(
    directory: str | os.PathLike, *, dataset: str, num_examples: Mapping[str, int], **more: Any
) -> None:
    """Writes `features.json`: whose features these are.

    Args:
      folder: of the features.
      dataset: the name in its dataset.json.
      num_examples: {split: number of records}.
      more: anything else that is to be remembered.
    """
    directory = os.path.expanduser(directory)
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, FILE)
    metadata.write(path, {"dataset": dataset, "num_examples": dict(num_examples), **more})


def read_description(directory: str | os.PathLike) -> dict[str, Any] | None:
    """What `write_description` wrote; None if nothing is there.

    Raises:
      UserError: the file is damaged or another one.
    """

    def checked(content: Any) -> dict[str, Any]:
        counts = {**content["num_examples"]}
        return {**content, "dataset": content["dataset"], "num_examples": counts}

    path = os.path.join(os.path.expanduser(directory), FILE)
    return metadata.read(path, "features", checked)


def features_path(directory: str | os.PathLike, split: str, name: str) -> str:
    """The file of a modality's features."""
    return os.path.join(os.path.expanduser(directory), split, f"{name}.npy")


def create_array(path: str | os.PathLike, shape: Sequence[int]) -> np.memmap:
    """A new .npy file of float32 zeros, to be written in place.

    Raises:
      UserError: there is no room for it.
    """
    rows = np.lib.format.open_memmap(path, "w+", np.float32, tuple(shape))
    size = os.path.getsize(path)
    # The room is taken now: who writes to mapped memory of a full disk is killed without a word.
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(path, "rb+") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in _FULL:  # some file systems cannot
                    return rows
                os.remove(path)
                raise UserError(
                    f"There is no room for {path}, {size / 2**30:.3g} GiB: {error.strerror}."
                ) from error
    return rows


def open_features(
    directories: str | Sequence[str], name: str, *, sources: Sequence[Source], split: str
) -> list[np.ndarray]:
    """The features of each source, [N, K, D], mapped into memory and not yet read.

    Args:
      folders: one for each source.
      name: the modality.
      sources: the training data.
      split: of all of them.

    Raises:
      UserError: a missing or damaged file, features of another dataset, or of another number of
        examples.
    """
    directories = (directories,) if isinstance(directories, str) else tuple(directories)
    if len(directories) != len(sources):
        raise UserError(
            f"data.{name}.features names {len(directories)} folders, but data.train {len(sources)} "
            "sources: give one for each."
        )
    opened = [
        _open(directory, name, source=source, split=split)
        for directory, source in zip(directories, sources, strict=True)
    ]
    widths = {
        directory: array.shape[-1] for directory, array in zip(directories, opened, strict=True)
    }
    if len(set(widths.values())) > 1:
        found = ", ".join(f"{directory} {width}" for directory, width in widths.items())
        raise UserError(f"data.{name}.features are of different sizes: {found}.")
    return opened


def _open(directory: str, name: str, *, source: Source, split: str) -> np.ndarray:
    what, content = f"data.{name}.features", read_description(directory)
    if content is None:
        raise UserError(f"{what}={directory} is no folder of features: it has no {FILE}.")
    dataset, number = content["dataset"], content["num_examples"].get(split)
    if dataset != source.info.name or number != source.num_examples:
        raise UserError(
            f"{what}={directory} is of {number or 0} examples of {dataset}/{split}, but the training "
            f"data are {source.num_examples} of {source.info.name}/{split}: compute the features "
            "of these again."
        )
    path, array = _mapped(directory, split, name)
    fits = array.ndim in (2, 3) and len(array) == number and min(array.shape) > 0
    if not fits or not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"{what}: {path} holds {array.dtype} {list(array.shape)}; expected floating point "
            f"[{number}, D] or [{number}, K, D]."
        )
    return array if array.ndim == 3 else array[:, None]


def width_of(directories: str | Sequence[str], split: str, name: str) -> int:
    """Features of a row, by the file of the first folder.

    Raises:
      UserError: the file is missing or damaged.
    """
    directory = directories if isinstance(directories, str) else directories[0]
    return _mapped(directory, split, name)[1].shape[-1]


def _mapped(directory: str, split: str, name: str) -> tuple[str, np.ndarray]:
    """The file of a modality's features, and its array."""
    path = features_path(directory, split, name)
    try:
        return path, np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise UserError(f"data.{name}.features: there is no {path}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"data.{name}.features: {path} is not an array: {error}.") from error


def add_precomputed(
    pipeline: Pipeline, name: str, arrays: Sequence[np.ndarray], *, shape: Sequence[int] = ()
) -> None:
    """Adds the field `name`, float32 [*shape, D]: the row of the record, of one of its variants.

    Functions: sample `name`, and postprocess `name_features`, which reads the rows of a batch. The
    caller gives the record's number as `_record`.
    """
    width = arrays[0].shape[-1]

    def sample(features: Features) -> Features:
        seed = seed_of(features, f"{name} features")
        draw = tf.random.stateless_uniform([], seed, 0, _DRAWS, tf.int64)
        return features | {name: tf.stack([features["_source"], features["_record"], draw])}

    def rows(keys: np.ndarray) -> np.ndarray:
        found = [
            arrays[source][record, draw % arrays[source].shape[1]]
            for source, record, draw in keys.tolist()
        ]
        return np.stack(found).astype(np.float32)

    def read(features: Features) -> Features:
        found = tf.numpy_function(rows, [features[name]], tf.float32, stateful=False)
        return features | {name: tf.reshape(found, [-1, *shape, width])}

    pipeline.add("sample", name, sample)
    pipeline.add("postprocess", f"{name}_features", read)
