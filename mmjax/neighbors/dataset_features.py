"""Opens what a search of `mmjax neighbors` needs: features, their dataset, captions and groups."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from mmjax.errors import UserError
from mmjax.formats import npy

if TYPE_CHECKING:  # imports TensorFlow
    from mmjax.data.sources.base import Source


@dataclasses.dataclass(frozen=True)
class DatasetFeatures:
    """The features of a dataset split.

    Attributes:
      features: Memory map, floating point [N, D].
      path: The .npy file of the features.
      modality: Modality of the features; '' if it is not known.
      dataset: Name of the dataset.
    """

    features: np.ndarray
    path: str
    modality: str
    dataset: str


def open_features(path: str, *, split: str, modality: str = "") -> DatasetFeatures:
    """Opens the features of a dataset split.

    Args:
      path: A directory of precomputed features, or a .npy file of floats [N, D].
      split: The split of the dataset.
      modality: The modality; '' for the only one in the directory.

    Raises:
      UserError: A file is missing or damaged, there are several modalities, or the features have
        a wrong shape.
    """
    root = os.path.expanduser(path)
    if root.endswith(".npy"):
        name = os.path.basename(root)[: -len(".npy")]
        return DatasetFeatures(_open_array(root), root, modality, name)
    from mmjax.data.pipeline import precomputed_features

    content = precomputed_features.read_description(root)
    if content is None:
        raise UserError(
            f"{path} is not a directory of features: it has no {precomputed_features.FILE}. Pass a "
            "directory that `mmjax sentences` or `mmjax embed` has written, or a .npy file."
        )
    modality = modality or _only_modality(os.path.join(root, split))
    file = precomputed_features.features_path(root, split, modality)
    if not os.path.exists(file):
        available = ", ".join(_modalities(os.path.dirname(file))) or "none"
        raise UserError(f"{file} does not exist. Modalities with features: {available}.")
    features = _open_array(file)
    expected = content["num_examples"].get(split, 0)
    if expected != len(features):
        raise UserError(
            f"{file} has {len(features)} features, but {precomputed_features.FILE} specifies "
            f"{expected}. Compute the features again."
        )
    return DatasetFeatures(features, file, modality, content["dataset"])


def _open_array(path: str) -> np.ndarray:
    features = npy.open_array(path)
    if features.ndim != 2:
        raise UserError(
            f"{path} must have the shape [N, D], one feature per record; got "
            f"{list(features.shape)}. Compute it without `mmjax sentences --captions all` or "
            "`mmjax embed --variants`, which write several per record for training."
        )
    return features


def _modalities(directory: str) -> list[str]:
    """Returns the modalities that have features in a directory."""
    entries = sorted(os.listdir(directory)) if os.path.isdir(directory) else ()
    return [entry[: -len(".npy")] for entry in entries if entry.endswith(".npy")]


def _only_modality(directory: str) -> str:
    modalities = _modalities(directory)
    if not modalities:
        raise UserError(
            f"{directory} has no features. Pass another --split, or compute its features."
        )
    if len(modalities) > 1:
        raise UserError(
            f"{directory} has features of several modalities: {', '.join(modalities)}. Select one "
            "with --modality."
        )
    return modalities[0]


def open_dataset(
    data: str, *, split: str, features: DatasetFeatures, check_name: bool = True
) -> Source:
    """Opens the dataset of features.

    Args:
      data: Specification of the dataset.
      split: Its split.
      features: The features, which must be of this split.
      check_name: Whether the name of the dataset must agree, too.

    Raises:
      UserError: The dataset cannot be opened, or the features are of other data.
    """
    from mmjax.data.sources import registry

    source = registry.open_source(data, split=split)
    count = len(features.features)
    if source.num_examples != count or (check_name and source.info.name != features.dataset):
        raise UserError(
            f"--data {data} has {source.num_examples} records of {source.info.name}/{split}, but "
            f"there are {count} features of {features.dataset}/{split}. Pass the dataset for which "
            "the features were computed."
        )
    return source


def read_contexts(source: Source, *, progress: bool) -> tuple[list[list[str]], list[str]]:
    """Returns the captions and the file name of each record.

    Args:
      source: The source of the records.
      progress: Whether to show a progress bar.
    """
    from mmjax.data.sources import captions

    contexts = captions.read_captions_and_filenames(source, range(source.num_examples))
    texts, filenames = [], []
    for own, filename in tqdm(
        contexts, "captions", source.num_examples, unit=" records", disable=not progress
    ):
        texts.append(own)
        filenames.append(filename)
    return texts, filenames


def read_groups(path: str, *, count: int) -> np.ndarray:
    """Returns the groups in a .npy file, integers [count], as a memory map.

    Raises:
      UserError: The file cannot be read, or has another shape or type.
    """
    try:
        groups = npy.open_array(os.path.expanduser(path))
    except UserError as error:
        raise UserError(f"--groups {path}: {error}") from error
    if groups.shape != (count,) or not np.issubdtype(groups.dtype, np.integer):
        raise UserError(
            f"--groups {path} must be integers [{count}], one per feature; got {groups.dtype} "
            f"{list(groups.shape)}."
        )
    return groups


def caption_ids(texts: Sequence[str]) -> np.ndarray:
    """Returns an id per text, int64 [N]; equal texts have equal ids."""
    ids: dict[str, int] = {}
    return np.array([ids.setdefault(text, len(ids)) for text in texts], np.int64)
