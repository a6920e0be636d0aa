"""Directories of pairs: the nearest neighbors of every record of a dataset split.

    DIRECTORY/pairs.json        {"format": 1, "dataset": "redcaps", "split": "train",
                                 "num_examples": N, ...}
    DIRECTORY/neighbors.npy     int32 [N, K]: record indices, nearest first; -1 for none
    DIRECTORY/similarity.npy    float32 [N, K]: cosine similarities; 0 where there is no neighbor

`mmjax neighbors` and `mmjax pairs` write them, and `config.data.pairs.path` reads them.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax import files
from mmjax.data.storage import metadata
from mmjax.errors import UserError
from mmjax.formats import npy

if TYPE_CHECKING:  # imports TensorFlow
    from mmjax.data.sources.base import Source

FILE, NEIGHBORS, SIMILARITY = "pairs.json", "neighbors.npy", "similarity.npy"
FORMAT = 1
_EARLIER_NEIGHBORS = "neighbours.npy"  # of directories without a format, which are still read
_KEYS = {"dataset": str, "split": str, "num_examples": int}


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The neighbors of every record of one source, nearest first.

    Attributes:
      neighbors: int32 [N, K]: record indices; -1 for none.
      similarity: float32 [N, K]: cosine similarities; 0 where there is no neighbor.
    """

    neighbors: np.ndarray
    similarity: np.ndarray


def write_pairs(
    directory: str | os.PathLike,
    neighbors: np.ndarray,
    similarity: np.ndarray,
    *,
    dataset: str,
    split: str,
    **metadata_entries: Any,
) -> None:
    """Writes a directory of pairs. The description is written last, so it marks completeness.

    Args:
      directory: Created if needed; pairs in it are replaced.
      neighbors: int [N, K]: record indices, nearest first; -1 for none.
      similarity: float [N, K]: cosine similarities.
      dataset: Name in the dataset's dataset.json.
      split: Split of the dataset.
      **metadata_entries: Further entries of pairs.json, for example how the pairs were computed.

    Raises:
      UserError: Arrays of a wrong shape, or with values out of range.
    """
    neighbors = np.asarray(neighbors, np.int32)
    similarity = np.where(neighbors >= 0, similarity, 0).astype(np.float32)
    _check_arrays(f"Pairs of {dataset}/{split}", neighbors, similarity, count=len(neighbors))
    directory = pathlib.Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).unlink(missing_ok=True)  # until both arrays are complete
    for name, array in ((NEIGHBORS, neighbors), (SIMILARITY, similarity)):
        with files.atomic_open(directory / name, "wb") as file:
            np.save(file, array)
    content = dict(format=FORMAT, dataset=dataset, split=split, num_examples=len(neighbors))
    files.write_json(directory / FILE, content | metadata_entries)


def read_description(directory: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the content of pairs.json, or None if the file does not exist.

    Raises:
      UserError: The file is damaged, or was written by a later version of mmjax.
    """
    return metadata.read(pathlib.Path(directory).expanduser() / FILE, "pairs", _check_description)


def _check_description(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, got a {type(content).__name__}")
    for key, expected in _KEYS.items():
        if key not in content:
            raise ValueError(f"the key {key!r} is missing")
        if not isinstance(content[key], expected):
            raise ValueError(f"{key!r} must be {expected.__name__}, got {content[key]!r}")
    if content.get("format", FORMAT) != FORMAT:
        raise ValueError(f"this version of mmjax reads format {FORMAT}, got {content['format']!r}")
    return content


def open_pairs(directory: str | os.PathLike, *, source: Source, split: str) -> Pairs:
    """Returns the pairs of a directory as memory maps.

    Args:
      directory: A directory that `write_pairs` has written.
      source: The source of the records.
      split: The split of `source`.

    Raises:
      UserError: A missing or damaged file, or pairs of another dataset, another split, or another
        number of records.
    """
    name, content = f"data.pairs.path={os.fspath(directory)}", read_description(directory)
    if content is None:
        raise UserError(
            f"{name} is not a directory of pairs: it has no {FILE}. `mmjax neighbors` and `mmjax "
            "pairs` write such directories."
        )
    paired = content["dataset"], content["split"], content["num_examples"]
    if paired != (source.info.name, split, source.num_examples):
        raise UserError(
            f"{name} contains pairs for {paired[2]} records of {paired[0]}/{paired[1]}, but the "
            f"training data are {source.num_examples} records of {source.info.name}/{split}. Run "
            "`mmjax neighbors` on features of these records."
        )
    arrays = []
    for file in (NEIGHBORS if "format" in content else _EARLIER_NEIGHBORS, SIMILARITY):
        path = pathlib.Path(directory).expanduser() / file
        try:
            arrays.append(npy.open_array(path))
        except UserError as error:
            raise UserError(f"{name}: {error} Run `mmjax neighbors` again.") from error
    _check_arrays(name, *arrays, count=source.num_examples)
    return Pairs(*arrays)


def _check_arrays(name: str, neighbors: np.ndarray, similarity: np.ndarray, *, count: int) -> None:
    """Raises UserError, beginning with `name`, unless the arrays are pairs of `count` records."""
    shape = neighbors.shape
    if len(shape) != 2 or shape != similarity.shape or len(neighbors) != count or not shape[-1]:
        raise UserError(
            f"{name}: both arrays must have the shape [{count}, K]; got neighbors {list(shape)} "
            f"and similarity {list(similarity.shape)}."
        )
    if not np.issubdtype(neighbors.dtype, np.integer):
        raise UserError(f"{name}: neighbors must be integers; got {neighbors.dtype}.")
    if not np.issubdtype(similarity.dtype, np.floating):
        raise UserError(f"{name}: similarity must be floating point; got {similarity.dtype}.")
    invalid = (neighbors < -1) | (neighbors >= count)
    if invalid.any():
        raise UserError(
            f"{name}: {_first('neighbors', neighbors, invalid)}, but record indices must be below "
            f"{count}, or -1 for no neighbor."
        )
    invalid = ~np.isfinite(similarity)
    if invalid.any():
        raise UserError(f"{name}: {_first('similarity', similarity, invalid)}; must be finite.")


def _first(name: str, array: np.ndarray, invalid: np.ndarray) -> str:
    """Returns 'NAME[ROW, COLUMN] is VALUE' for the first invalid element."""
    row, column = np.argwhere(invalid)[0].tolist()
    return f"{name}[{row}, {column}] is {array[row, column]}"
