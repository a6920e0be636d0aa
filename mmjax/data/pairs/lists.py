"""Lists of pairs in the format that LGSSL publishes, and their conversion to directories of pairs.

A list is JSON, `[[[directory, id], [directory, id], similarity], ...]` with an optional ratio at
the end of an entry. It pairs the image directory/id.jpg with the image of the most similar caption
(El Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv
2302.12248).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax import files
from mmjax.data.pairs import pair_files
from mmjax.data.pairs.scopes import directory_of
from mmjax.errors import UserError

if TYPE_CHECKING:  # imports TensorFlow
    from mmjax.data.sources.base import Source

_ENTRY = "[[directory, id], [directory, id], similarity]"


def convert(
    path: str,
    out: str,
    *,
    data: str,
    split: str = "train",
    min_similarity: float = -1.0,
    min_ratio: float | None = None,
) -> str:
    """Converts a list to a directory of pairs, or a directory of pairs to a list.

    Args:
      path: A list (.json), or a directory of pairs.
      out: The directory of pairs or list to write.
      data: The dataset of the records.
      split: Its split.
      min_similarity: Pairs of a lower similarity are dropped.
      min_ratio: Pairs of a list with a lower ratio are dropped; None keeps all.

    Returns:
      A description of the result for the user.

    Raises:
      UserError: The source or the dataset cannot be read, or they share no record.
    """
    from mmjax.data.sources import captions, registry

    source = registry.open_source(data, split=split)
    contexts = captions.read_captions_and_filenames(source, range(source.num_examples))
    names = [record_name(filename) for _, filename in contexts]
    if not os.path.isdir(path):
        thresholds = dict(min_similarity=min_similarity, min_ratio=min_ratio)
        return _write_directory(path, out, source, names, split=split, **thresholds)
    if min_ratio is not None:
        raise UserError(
            f"--min-ratio={min_ratio} requires a list, but {path} is a directory of pairs, which "
            "has no ratios. Remove the option."
        )
    pairs = pair_files.open_pairs(path, source=source, split=split)
    entries = to_list(pairs.neighbors, pairs.similarity, names, min_similarity=min_similarity)
    try:
        files.write_text(out, json.dumps(entries, ensure_ascii=False))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}.") from error
    return f"{out}: {len(entries)} pairs of {source.num_examples} records."


def _write_directory(
    path: str,
    out: str,
    source: Source,
    names: Sequence[tuple[str, str]],
    *,
    split: str,
    min_similarity: float,
    min_ratio: float | None,
) -> str:
    """Writes the directory of pairs of a list; returns a description of the result."""
    _check_unique(names, source)
    neighbors, similarity, counts = from_list(
        read_list(path), names, min_similarity=min_similarity, min_ratio=min_ratio, where=path
    )
    num_paired = int((neighbors[:, 0] >= 0).sum())
    summary = (
        f"{num_paired} of {source.num_examples} records have a neighbor. Of {counts['entries']} "
        f"entries, {counts['missing']} name a record that {source.name} does not have, and "
        f"{counts['below']} are below the thresholds."
    )
    if not num_paired:
        raise UserError(
            f"{path} has no pair for {source.name}, so nothing is written: {summary} Entries must "
            f"name records as [directory, id]; the first record of the dataset is "
            f"{'/'.join(names[0])}."
        )
    pair_files.write_pairs(
        out,
        neighbors,
        similarity,
        dataset=source.info.name,
        split=split,
        made={"of": os.path.basename(path), "min_similarity": min_similarity} | counts,
    )
    return f"{out}: {summary}"


def record_name(filename: str) -> tuple[str, str]:
    """Returns the (directory, id) of a record with this file name; the id ends at the first dot."""
    return directory_of(filename), os.path.basename(filename).split(".")[0]


def _check_unique(names: Sequence[tuple[str, str]], source: Source) -> None:
    """Raises UserError if two records have the same name."""
    first: dict[tuple[str, str], int] = {}
    for record, name in enumerate(names):
        if (other := first.setdefault(name, record)) != record:
            raise UserError(
                f"Two records of {source.name} have the name {'/'.join(name)}: records {other} and "
                f"{record} ({source.where(other)}; {source.where(record)}). A list cannot "
                "distinguish them; remove or rename one."
            )


def read_list(path: str) -> list[Any]:
    """Returns the entries of a list of pairs.

    Raises:
      UserError: The file does not exist or is not a list.
    """
    entries = files.read_json(path)
    if not isinstance(entries, list):
        raise UserError(
            f"{path} is not a list of pairs: expected [{_ENTRY}, ...], got a JSON "
            f"{type(entries).__name__}."
        )
    return entries


def from_list(
    entries: Sequence[Any],
    names: Sequence[tuple[str, str]],
    *,
    min_similarity: float = -1.0,
    min_ratio: float | None = None,
    where: str = "The list",
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Returns the pairs of a list as arrays.

    Args:
      entries: The entries; several entries of one record are several neighbors.
      names: Unique (directory, id) of each record.
      min_similarity: Pairs of a lower similarity are dropped.
      min_ratio: Pairs of a lower ratio are dropped; the ratio of an entry without one is 1.
      where: The file, for messages.

    Returns:
      `(neighbors, similarity, counts)`: int32 [N, K] and float32 [N, K], nearest first; and the
      number of `entries`, of those with a `missing` record, and of those `below` the thresholds.

    Raises:
      UserError: A malformed entry.
    """
    index = {name: record for record, name in enumerate(names)}
    similarities: dict[int, dict[int, float]] = {}  # by record and neighbor
    missing = below = 0
    for number, entry in enumerate(entries):
        anchor, neighbor, value, ratio = _parse_entry(entry, where=f"{where}: entry {number}")
        record, other = index.get(anchor), index.get(neighbor)
        if record is None or other is None:
            missing += 1
        elif not (value >= min_similarity and (min_ratio is None or ratio >= min_ratio)):
            below += 1
        elif record != other:
            others = similarities.setdefault(record, {})
            others[other] = max(value, others.get(other, value))
    width = max(map(len, similarities.values()), default=1)
    neighbors = np.full((len(names), width), -1, np.int32)
    similarity = np.zeros((len(names), width), np.float32)
    for record, others in similarities.items():
        best = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))
        for rank, (other, value) in enumerate(best):
            neighbors[record, rank], similarity[record, rank] = other, value
    return neighbors, similarity, {"entries": len(entries), "missing": missing, "below": below}


def _parse_entry(
    entry: Any, *, where: str
) -> tuple[tuple[str, str], tuple[str, str], float, float]:
    """Returns `(name, name of the neighbor, similarity, ratio)` of an entry."""
    try:
        (directory, name), (other_directory, other), value, *ratio = entry
        value, (ratio,) = float(value), map(float, ratio or [1.0])
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{where} must be {_ENTRY}, with an optional ratio; got {json.dumps(entry)[:120]}."
        ) from error
    return (str(directory), str(name)), (str(other_directory), str(other)), value, ratio


def to_list(
    neighbors: np.ndarray,
    similarity: np.ndarray,
    names: Sequence[tuple[str, str]],
    *,
    min_similarity: float = -1.0,
) -> list[list[Any]]:
    """Returns the entries of a list, in the order of the records.

    Args:
      neighbors: int [N, K]: record indices; -1 for none.
      similarity: float [N, K].
      names: (directory, id) of each record.
      min_similarity: Pairs of a lower similarity are dropped.
    """
    records, ranks = np.nonzero((neighbors >= 0) & (similarity >= min_similarity))
    return [
        [list(names[record]), list(names[neighbors[record, rank]]), float(similarity[record, rank])]
        for record, rank in zip(records.tolist(), ranks.tolist(), strict=True)
    ]
