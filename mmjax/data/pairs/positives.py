"""Pairs of records: which other record of its dataset each record is trained with.

    FOLDER/pairs.json        {"dataset": "redcaps", "split": "train", "num_examples": N, …}
    FOLDER/neighbors.npy    int32 [N, K], record numbers, best first; -1 is none
    FOLDER/similarity.npy    float32 [N, K], cosines; 0 where there is no neighbor

`data.pairs.path` names such folders; `mmjax neighbors` and `mmjax pairs` write them.

Source: El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv
2302.12248 (LGSSL): the image of the nearest caption in place of an augmented copy.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.data.storage import metadata
from mmjax.errors import UserError

if TYPE_CHECKING:  # which imports TensorFlow
    from mmjax.data.sources.registry import Source

log = logging.getLogger(__name__)

FILE, NEIGHBORS, SIMILARITY = "pairs.json", "neighbors.npy", "similarity.npy"
WORDS = "words"
_KEYS = {"dataset": str, "split": str, "num_examples": int}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """The section `data.pairs`: each example gets the image of another record as a second view.

    Attributes:
      path: a folder of pairs, or several, one for each source; or 'words': the nearest captions by
        their words, which are looked for when training starts.
      min_similarity: records whose neighbors are less similar are left out.
      neighbors: draw the neighbor among the best so many, anew at each visit.
    """

    path: str | tuple[str, ...] = ""
    min_similarity: float = 0.0
    neighbors: int = 1

    def __post_init__(self):
        if self.neighbors < 1:
            raise UserError(f"data.pairs.neighbors must be at least 1, not {self.neighbors}.")
        if not -1 <= self.min_similarity <= 1:
            raise UserError(
                f"data.pairs.min_similarity={self.min_similarity} is a cosine, between -1 and 1."
            )


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The neighbors of every record of one source, best first.

    Attributes:
      neighbors: int32 [N, K], record numbers; -1 is none.
      similarity: float32 [N, K], cosines; 0 where there is no neighbor.
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
    **more: Any,
) -> None:
    """Writes a folder of pairs; its description comes last, so that a folder with one is whole.

    Args:
      folder: made if need be; pairs that are there are replaced.
      neighbors: [N, K], record numbers of the dataset, best first, -1 = none.
      similarity: [N, K], cosines.
      dataset: the name in its dataset.json.
      split: of it.
      more: anything else that is to be remembered, such as how they were made.

    Raises:
      UserError: arrays of other shapes, or numbers of records that there are not.
    """
    neighbors = np.asarray(neighbors, np.int32)
    similarity = np.where(neighbors >= 0, similarity, 0).astype(np.float32)
    if problem := _problem(neighbors, similarity, number=len(neighbors)):
        raise UserError(f"Pairs of {dataset}/{split}: {problem}.")
    directory = os.path.expanduser(directory)
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, FILE)
    if os.path.exists(path):  # until the arrays are whole again
        os.remove(path)
    for name, array in ((NEIGHBORS, neighbors), (SIMILARITY, similarity)):
        with open(os.path.join(directory, f"{name}.tmp"), "wb") as file:
            np.save(file, array)
        os.replace(os.path.join(directory, f"{name}.tmp"), os.path.join(directory, name))
    content = {"dataset": dataset, "split": split, "num_examples": len(neighbors), **more}
    metadata.write(path, content)


def read_description(directory: str | os.PathLike) -> dict[str, Any] | None:
    """The content of `pairs.json`; None if nothing is there.

    Raises:
      UserError: the file is damaged or another one.
    """

    def checked(content: Any) -> dict[str, Any]:
        if wrong := [key for key, kind in _KEYS.items() if not isinstance(content[key], kind)]:
            raise ValueError(f"{wrong[0]}={content[wrong[0]]!r}")
        return content

    return metadata.read(os.path.join(os.path.expanduser(directory), FILE), "pairs", checked)


def open_pairs(directory: str | os.PathLike, *, source: Source, split: str) -> Pairs:
    """The pairs of a folder, mapped into memory.

    Args:
      folder: that `write_pairs` wrote.
      source: whose records they are of.
      split: of it.

    Raises:
      UserError: a missing or damaged file, or pairs of another dataset, another split, or another
        number of records.
    """
    what, content = f"data.pairs.path={os.fspath(directory)}", read_description(directory)
    if content is None:
        raise UserError(f"{what} is no folder of pairs: it has no {FILE}.")
    source_keys = content["dataset"], content["split"], content["num_examples"]
    if source_keys != (source.info.name, split, source.num_examples):
        name, part, number = source_keys
        raise UserError(
            f"{what} has the neighbors of {number} records of {name}/{part}, but the training "
            f"data are {source.num_examples} of {source.info.name}/{split}: find the neighbors "
            "of these."
        )
    arrays = []
    for name in (NEIGHBORS, SIMILARITY):
        path = os.path.join(os.path.expanduser(directory), name)
        try:
            arrays.append(np.lib.format.open_memmap(path, mode="r"))
        except (OSError, ValueError) as error:
            raise UserError(f"{what}: {path} is missing or no array: {error}.") from error
    if problem := _problem(*arrays, number=source.num_examples):
        raise UserError(f"{what}: {problem}.")
    return Pairs(*arrays)


def _problem(neighbors: np.ndarray, similarity: np.ndarray, *, number: int) -> str | None:
    """What is wrong with the arrays of `number` records; None if nothing is."""
    shape = neighbors.shape
    if len(shape) != 2 or shape != similarity.shape or len(neighbors) != number or not shape[-1]:
        return (
            f"neighbors {list(shape)} and similarity {list(similarity.shape)} are not both "
            f"[{number}, K]"
        )
    integers = np.issubdtype(neighbors.dtype, np.integer)
    if not integers or not np.issubdtype(similarity.dtype, np.floating):
        return f"neighbors are {neighbors.dtype} and similarity {similarity.dtype}"
    if number and not -1 <= neighbors.min() <= neighbors.max() < number:
        return (
            f"neighbors between {neighbors.min()} and {neighbors.max()} are not among the "
            f"{number} records (-1 is none)"
        )
    if not np.isfinite(similarity).all():
        return "a similarity is not a number"
    return None


class Positives:
    """Which records are trained on, and with which other: `data.pairs` on the training data.

    Arguments and results of the methods are int64 [n], one of each example.

    Args:
      options: the section.
      sources: the training data.
      split: of all of them.

    Attributes:
      sizes: of each source, how many of its records have a neighbor.

    Raises:
      UserError: folders that do not fit the sources, too few neighbors in them, or a source of
        which no record has a neighbor.
    """

    def __init__(self, options: PairsConfig, *, sources: Sequence[Source], split: str):
        self._neighbors, self._counts, self._records = [], [], []
        for path, source in zip(_paths(options, sources), sources, strict=True):
            if path == WORDS:
                pairs = _by_words(source, number=options.neighbors)
            else:
                pairs = open_pairs(path, source=source, split=split)
            stored = pairs.neighbors.shape[1]
            if options.neighbors > stored:
                raise UserError(
                    f"data.pairs.neighbors={options.neighbors}, but {path} has {stored} for each "
                    "record: find more, or ask for fewer."
                )
            neighbors = pairs.neighbors[:, : options.neighbors]
            similarity = pairs.similarity[:, : options.neighbors]
            near = (neighbors >= 0) & (similarity >= options.min_similarity)
            counts = np.logical_and.accumulate(near, axis=1).sum(1)  # the best come first
            records = np.flatnonzero(counts)
            best = np.asarray(pairs.similarity[:, 0])[np.asarray(neighbors[:, 0]) >= 0]
            _log_pairs(source.name, len(records), best, options.min_similarity, len(counts))
            self._neighbors.append(neighbors)
            self._counts.append(counts)
            self._records.append(records)
        self.sizes = [len(records) for records in self._records]

    def pair(
        self, source: np.ndarray, number: np.ndarray, draw: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """A record that has a neighbor, and this neighbor.

        Args:
          source: numbers of the sources.
          number: which one of the records that have a neighbor.
          draw: a random number from 0, for the choice among several neighbors.
        """
        record, positive = np.empty_like(number), np.empty_like(number)
        for which in np.unique(source):
            rows = source == which
            found = self._records[which][number[rows]]
            rank = draw[rows] % self._counts[which][found]
            record[rows], positive[rows] = found, self._neighbors[which][found, rank]
        return record, positive

    def following(
        self, source: np.ndarray, record: np.ndarray, steps: np.ndarray, draw: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `pair`, so many steps after the `record`, and at the end again from the first."""
        number = np.empty_like(record)
        for which in np.unique(source):
            rows, records = source == which, self._records[which]
            at = np.searchsorted(records, record[rows])
            number[rows] = (at + steps[rows]) % len(records)
        return self.pair(source, number, draw)


def _paths(options: PairsConfig, sources: Sequence[Source]) -> Sequence[str]:
    """A folder of pairs for each source, or 'words'."""
    paths = (options.path,) if isinstance(options.path, str) else options.path
    if not all(paths) or not paths:
        raise UserError(
            f"data.pairs.path={options.path!r}: name the folder of pairs that `mmjax neighbors` "
            f"wrote, or {WORDS!r} for the nearest captions by their words; or set data.pairs=None."
        )
    if paths == (WORDS,):
        return paths * len(sources)
    if len(paths) != len(sources):
        raise UserError(
            f"data.pairs.path names {len(paths)} folders, but data.train {len(sources)} sources: "
            "give one for each."
        )
    return paths


def _by_words(source: Source, *, number: int) -> Pairs:
    """The pairs of a source's first captions by the words in them."""
    from mmjax.data.pairs.tfidf import nearest_by_tfidf
    from mmjax.data.sources.captions import read_captions  # imports TensorFlow

    start = time.monotonic()
    captions = [(*found, "")[0] for found in read_captions(source, range(source.num_examples))]
    pairs = Pairs(*nearest_by_tfidf(captions, k=number))
    log.info(
        "data.pairs: found the nearest of %d captions of %s by their words in %.1f s.",
        len(captions),
        source.name,
        time.monotonic() - start,
    )
    return pairs


def _log_pairs(name: str, used: int, similarity: np.ndarray, minimum: float, number: int) -> None:
    """Says how many records have a neighbor, and how near these are; raises if none has."""
    points = (0, 5, 25, 50, 75, 95, 100)
    quantiles = "none"
    if len(similarity):
        values = np.percentile(similarity, points)
        quantiles = ", ".join(f"{v:.3f} ({p} %)" for p, v in zip(points, values, strict=True))
    if not used:
        raise UserError(
            f"data.pairs: no record of {name} has a neighbor of similarity {minimum:g} or more "
            f"(data.pairs.min_similarity); quantiles of the nearest ones: {quantiles}."
        )
    log.info(
        "data.pairs: %d of %d records of %s have a neighbor of similarity %g or more; quantiles "
        "of the nearest ones: %s.",
        used,
        number,
        name,
        minimum,
        quantiles,
    )
