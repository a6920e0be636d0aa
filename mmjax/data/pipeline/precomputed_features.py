"""Features of a frozen tower that replace its input in training, computed once by `mmjax embed`.

    DIRECTORY/features.json      {"dataset": "tvl", "num_examples": {"train": 39154, …}, …}
    DIRECTORY/train/image.npy    floating point [N, D], one vector per record
    DIRECTORY/train/text.npy     or [N, K, D]: K variants, one of which is sampled at each visit

The config keys `data.image.features`, `data.touch.features` and `data.text.features` name such
directories. Only training reads them; evaluation runs the towers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from mmjax import files
from mmjax.data.pipeline.phases import Features, Pipeline, seed_of
from mmjax.data.sources.base import Source
from mmjax.data.storage import metadata
from mmjax.errors import UserError
from mmjax.formats import npy

FILE = "features.json"
# Range of the random number that selects a variant. It is large enough that the remainder of a
# division by a small number of variants is practically uniform.
_RANDOM_RANGE = 2**31 - 1


def write_description(
    directory: str | os.PathLike, *, dataset: str, num_examples: Mapping[str, int], **more: Any
) -> None:
    """Writes `features.json`, which identifies the dataset of the features.

    Args:
      directory: Directory of the features. It is created.
      dataset: Name of the dataset, as in its dataset.json.
      num_examples: {split: number of records}.
      **more: Further values to record.
    """
    directory = os.path.expanduser(directory)
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, FILE)
    files.write_json(path, {"dataset": dataset, "num_examples": dict(num_examples), **more})


def read_description(directory: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the content of `features.json`; None if it does not exist.

    Raises:
      UserError: The file is damaged or has another format.
    """

    def checked(content: Any) -> dict[str, Any]:
        counts = {**content["num_examples"]}
        return {**content, "dataset": content["dataset"], "num_examples": counts}

    path = os.path.join(os.path.expanduser(directory), FILE)
    return metadata.read(path, "features", checked)


def features_path(directory: str | os.PathLike, split: str, modality: str) -> str:
    """Returns the path of the features of a modality."""
    return os.path.join(os.path.expanduser(directory), split, f"{modality}.npy")


def create_array(
    path: str | os.PathLike, shape: Sequence[int], dtype: str = "float32"
) -> np.memmap:
    """Creates a .npy file of zeros, and returns it mapped into memory for writing.

    Raises:
      UserError: The disk has no space for it.
    """
    try:
        array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), tuple(shape))
        _reserve_space(path)
    except OSError as error:
        if error.errno not in files.NO_SPACE:
            raise
        files.remove(path)
        size = np.dtype(dtype).itemsize * math.prod(shape)
        raise UserError(
            f"Cannot write {path}: it needs {size / 2**30:.3g} GiB of disk space: "
            f"{error.strerror}. Free some space, or choose another directory."
        ) from error
    return array


def _reserve_space(path: str | os.PathLike) -> None:
    """Allocates a file: on a full disk, writing to mapped memory would kill the process later."""
    if not hasattr(os, "posix_fallocate"):  # on macOS
        return
    with open(path, "rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        except OSError as error:
            if error.errno in files.NO_SPACE:  # some file systems cannot reserve space
                raise


def open_features(
    directories: str | Sequence[str], modality: str, *, sources: Sequence[Source], split: str
) -> list[np.ndarray]:
    """Returns the features of each source, [N, K, D], mapped into memory.

    Args:
      directories: One directory per source.
      modality: The modality that they replace.
      sources: The training data.
      split: Split of all sources.

    Raises:
      UserError: A file is missing or damaged, or the features belong to another dataset or to
        another number of records.
    """
    key = f"data.{modality}.features"
    directories = (directories,) if isinstance(directories, str) else tuple(directories)
    if len(directories) != len(sources):
        raise UserError(
            f"{key} has {len(directories)} directories, but data.train has {len(sources)} "
            "sources. Set one directory per source."
        )
    arrays = [
        _open(directory, modality, source=source, split=split)
        for directory, source in zip(directories, sources, strict=True)
    ]
    widths = {
        directory: array.shape[-1] for directory, array in zip(directories, arrays, strict=True)
    }
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{directory}: {width}" for directory, width in widths.items())
        raise UserError(
            f"The directories of {key} have features of different dimensions ({listed}). Compute "
            "them with the same tower."
        )
    return arrays


def _open(directory: str, modality: str, *, source: Source, split: str) -> np.ndarray:
    what, content = f"data.{modality}.features={directory}", read_description(directory)
    if content is None:
        raise UserError(
            f"{what} is not a directory of features: it has no {FILE}. Write one with `mmjax "
            f"embed`, or set data.{modality}.features=''."
        )
    dataset, count = content["dataset"], content["num_examples"].get(split)
    if dataset != source.info.name or count != source.num_examples:
        raise UserError(
            f"{what} has features of {count or 0} records of {dataset}/{split}, but the training "
            f"data are {source.num_examples} records of {source.info.name}/{split}. Recompute the "
            "features with `mmjax embed`."
        )
    path, array = _map(directory, split, modality)
    valid_shape = array.ndim in (2, 3) and len(array) == count and min(array.shape) > 0
    if not valid_shape or not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"data.{modality}.features: {path} contains {array.dtype} {list(array.shape)}; "
            f"expected floating point [{count}, D] or [{count}, K, D]. Recompute the features with "
            "`mmjax embed`."
        )
    return array if array.ndim == 3 else array[:, None]


def width_of(directories: str | Sequence[str], split: str, modality: str) -> int:
    """Returns the dimension of the features in the first directory.

    Raises:
      UserError: The file is missing or damaged.
    """
    directory = directories if isinstance(directories, str) else directories[0]
    return _map(directory, split, modality)[1].shape[-1]


def _map(directory: str, split: str, modality: str) -> tuple[str, np.ndarray]:
    """Returns the file of the features of a modality, and the array mapped into memory."""
    path = features_path(directory, split, modality)
    try:
        return path, npy.open_array(path)
    except UserError as error:
        raise UserError(
            f"data.{modality}.features: {error} Write it with `mmjax embed`."
        ) from error


def add_precomputed(
    pipeline: Pipeline, modality: str, arrays: Sequence[np.ndarray], *, shape: Sequence[int] = ()
) -> None:
    """Adds the batch field `modality`, float32 [*shape, D]: a random variant of the features.

    Functions: sample `modality`, and postprocess `MODALITY_features`, which reads the features of
    a batch. The caller provides the index of the record as `_record`.

    Args:
      pipeline: The pipeline to add the functions to.
      modality: The modality to replace.
      arrays: Features of each source, [N, K, D].
      shape: Shape of the field without the last dimension.
    """
    width = arrays[0].shape[-1]

    def sample(features: Features) -> Features:
        seed = seed_of(features, f"{modality} features")
        random = tf.random.stateless_uniform([], seed, 0, _RANDOM_RANGE, tf.int64)
        key = tf.stack([features["_source"], features["_record"], random])
        return features | {modality: key}

    def vectors(keys: np.ndarray) -> np.ndarray:
        variants = [
            arrays[source][record, random % arrays[source].shape[1]]
            for source, record, random in keys.tolist()
        ]
        return np.stack(variants).astype(np.float32)

    def read(features: Features) -> Features:
        value = tf.numpy_function(vectors, [features[modality]], tf.float32, stateful=False)
        return features | {modality: tf.reshape(value, [-1, *shape, width])}

    pipeline.add("sample", modality, sample)
    pipeline.add("postprocess", f"{modality}_features", read)
