"""The section `data.pairs`: which record provides the second view of each training example.

Source: El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv
2302.12248 (LGSSL): the positive of an image is the image with the nearest caption, instead of an
augmented copy.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmjax.data.pairs.pair_files import Pairs, open_pairs
from mmjax.errors import UserError

if TYPE_CHECKING:  # imports TensorFlow
    from mmjax.data.sources.base import Source

log = logging.getLogger(__name__)

WORDS = "words"
_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """The section `data.pairs`: the second view of each example is an image of another record.

    Attributes:
      path: Directory of pairs, or several, one for each source. 'words' finds the nearest captions
        by tf-idf when training starts.
      min_similarity: Records whose neighbors are less similar (cosine) are not used.
      neighbors: Number of nearest neighbors from which the positive is sampled at each visit.
    """

    path: str | tuple[str, ...] = ""
    min_similarity: float = 0.0
    neighbors: int = 1

    def __post_init__(self) -> None:
        if self.neighbors < 1:
            raise UserError(f"data.pairs.neighbors must be at least 1; got {self.neighbors}.")
        if not -1 <= self.min_similarity <= 1:
            raise UserError(
                f"data.pairs.min_similarity={self.min_similarity} must be a cosine between -1 and "
                "1."
            )


class Positives:
    """The records that have a positive, and their positives, for all training sources.

    Arguments and results of the methods are int64 [n], one value per example.

    Args:
      options: The section `data.pairs`.
      sources: The training sources.
      split: The split of all sources.

    Attributes:
      sizes: For each source, the number of records that have a positive.

    Raises:
      UserError: The pairs do not fit the sources, contain too few neighbors, or have no positive
        for any record of a source.
    """

    def __init__(self, options: PairsConfig, *, sources: Sequence[Source], split: str):
        self._neighbors, self._counts, self._records = [], [], []
        for path, source in zip(_paths(options, sources), sources, strict=True):
            if path == WORDS:
                pairs = _nearest_captions(source, k=options.neighbors)
            else:
                pairs = open_pairs(path, source=source, split=split)
            available = pairs.neighbors.shape[1]
            if options.neighbors > available:
                raise UserError(
                    f"data.pairs.neighbors={options.neighbors}, but {path} has only {available} "
                    f"per record. Reduce it, or run `mmjax neighbors` with --k {options.neighbors}."
                )
            neighbors = pairs.neighbors[:, : options.neighbors]
            similarity = pairs.similarity[:, : options.neighbors]
            similar = (neighbors >= 0) & (similarity >= options.min_similarity)
            counts = np.logical_and.accumulate(similar, axis=1).sum(1)  # sorted: nearest first
            records = np.flatnonzero(counts)
            nearest = np.asarray(pairs.similarity[:, 0])[np.asarray(neighbors[:, 0]) >= 0]
            _report(
                source.name,
                nearest,
                min_similarity=options.min_similarity,
                num_used=len(records),
                num_records=len(counts),
            )
            self._neighbors.append(neighbors)
            self._counts.append(counts)
            self._records.append(records)
        self.sizes = [len(records) for records in self._records]

    def pair(
        self, source: np.ndarray, index: np.ndarray, random: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns `(record, positive)`: record indices.

        Args:
          source: Index of the source.
          index: Index among the records of the source that have a positive.
          random: Random number >= 0 that selects one of several neighbors.
        """
        record, positive = np.empty_like(index), np.empty_like(index)
        for s in np.unique(source):
            selected = source == s
            records = self._records[s][index[selected]]
            rank = random[selected] % self._counts[s][records]
            record[selected], positive[selected] = records, self._neighbors[s][records, rank]
        return record, positive

    def following(
        self, source: np.ndarray, record: np.ndarray, steps: np.ndarray, random: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like `pair`, for the record `steps` positions after `record`, in cyclic order.

        Args:
          source: Index of the source.
          record: Index of a record of the source.
          steps: Positions to advance among the records that have a positive.
          random: See `pair`.
        """
        index = np.empty_like(record)
        for s in np.unique(source):
            selected, records = source == s, self._records[s]
            start = np.searchsorted(records, record[selected])
            index[selected] = (start + steps[selected]) % len(records)
        return self.pair(source, index, random)


def _paths(options: PairsConfig, sources: Sequence[Source]) -> Sequence[str]:
    """Returns a directory of pairs or 'words' for each source."""
    paths = (options.path,) if isinstance(options.path, str) else options.path
    if not all(paths) or not paths:
        raise UserError(
            f"data.pairs.path={options.path!r} is empty. Set it to a directory that `mmjax "
            f"neighbors` has written, or to {WORDS!r} for the nearest captions by tf-idf; or set "
            "data.pairs=None."
        )
    if paths == (WORDS,):
        return paths * len(sources)
    if len(paths) != len(sources):
        raise UserError(
            f"data.pairs.path has {len(paths)} directories, but data.train has {len(sources)} "
            "sources. List one directory for each source."
        )
    return paths


def _nearest_captions(source: Source, *, k: int) -> Pairs:
    """Returns the nearest neighbors of records by tf-idf of their first captions."""
    from mmjax.data.pairs.tfidf import nearest_by_tfidf
    from mmjax.data.sources.captions import read_captions  # imports TensorFlow

    start = time.monotonic()
    captions = [(*texts, "")[0] for texts in read_captions(source, range(source.num_examples))]
    pairs = Pairs(*nearest_by_tfidf(captions, k=k))
    log.info(
        "data.pairs: compared %d captions of %s by tf-idf in %.1f s.",
        len(captions),
        source.name,
        time.monotonic() - start,
    )
    return pairs


def _report(
    name: str,
    similarity: np.ndarray,
    *,
    min_similarity: float,
    num_used: int,
    num_records: int,
) -> None:
    """Logs how many records have a positive and how similar it is; raises if none has one.

    Args:
      name: Name of the source.
      similarity: float [n]: similarity of the nearest neighbor, for records with a neighbor.
      min_similarity: Minimum similarity of a positive.
      num_used: Number of records with a positive.
      num_records: Number of records.
    """
    quantiles = "none"
    if len(similarity):
        values = np.percentile(similarity, _PERCENTILES)
        pairs = zip(_PERCENTILES, values, strict=True)
        quantiles = ", ".join(f"{value:.3f} ({percent}%)" for percent, value in pairs)
    if not num_used:
        raise UserError(
            f"data.pairs: no record of {name} has a neighbor with a similarity of at least "
            f"data.pairs.min_similarity={min_similarity:g}. Reduce it; quantiles of the similarity "
            f"of the nearest neighbors: {quantiles}."
        )
    log.info(
        "data.pairs: %d of %d records of %s have a neighbor with a similarity of at least %g; the "
        "others are skipped. Quantiles of the similarity of the nearest neighbors: %s.",
        num_used,
        num_records,
        name,
        min_similarity,
        quantiles,
    )
