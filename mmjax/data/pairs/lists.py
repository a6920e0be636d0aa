"""Lists of pairs as LGSSL publishes them, and folders of pairs: `mmjax pairs`.

A list is JSON, `[[[directory, id], [directory, id], similarity], …]` with an optional ratio at the
end of an entry. It pairs the image directory/id.jpg with the image of the most similar caption (El
Banani et al. 2023, Learning Visual Representations via Language-Guided Sampling, arXiv 2302.12248).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.pairs.scopes import directory_of
from mmjax.errors import UserError


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
    from mmjax.data.pairs import pair_files
    from mmjax.data.sources import captions
    from mmjax.data.sources import registry as sources

    source = sources.open_source(data, split=split)
    numbers = range(source.num_examples)
    names = [record_name(file) for _, file in captions.read_captions_and_filenames(source, numbers)]
    if os.path.isdir(path):
        if min_ratio is not None:
            raise UserError("--min-ratio is for lists: folders of pairs have no ratios.")
        found = pair_files.open_pairs(path, source=source, split=split)
        entries = to_list(found.neighbors, found.similarity, names, least=min_similarity)
        try:
            with open(out, "w", encoding="utf-8") as file:
                json.dump(entries, file, ensure_ascii=False)
        except OSError as error:
            raise UserError(f"{out} cannot be written: {error}.") from error
        return f"{out}: {len(entries)} pairs of {source.num_examples} records."
    neighbors, similarity, counts = from_list(
        read_list(path),
        names,
        least=min_similarity,
        least_ratio=min_ratio,
        where=path,
    )
    paired = int((neighbors[:, 0] >= 0).sum())
    told = (
        f"{paired} of {source.num_examples} records have a neighbor. Of {counts['entries']} "
        f"entries, {counts['missing']} name a record that {source.name} has not, "
        f"{counts['below']} are below the thresholds."
    )
    if not paired:
        raise UserError(
            f"{path} fits no record of {source.name}, so nothing is written: {told} Entries "
            f"name folder/id of a file; the dataset's first is {'/'.join(names[0])}."
        )
    pair_files.write_pairs(
        out,
        neighbors,
        similarity,
        dataset=source.info.name,
        split=split,
        made={"of": os.path.basename(path), "min_similarity": min_similarity} | counts,
    )
    return f"{out}: {told}"


def record_name(filename: str) -> tuple[str, str]:
    """(folder, id) of a record's file, folder/id.jpg; an id ends before its first dot."""
    return directory_of(filename), os.path.basename(filename).split(".")[0]


def read_list(path: str) -> list[Any]:
    """The entries of a list of pairs.

    Raises:
      UserError: no such file, or it is no list.
    """
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}.") from error
    if not isinstance(entries, list):
        raise UserError(f"{path} is no list of pairs [[folder, id], [folder, id], similarity].")
    return entries


def from_list(
    entries: Sequence[Any],
    names: Sequence[tuple[str, str]],
    *,
    least: float = -1.0,
    least_ratio: float | None = None,
    where: str = "The list",
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """(neighbors int32 [N, K], similarity float32 [N, K], counts), best first.

    Args:
      entries: of a list; several of one source are several neighbors.
      names: (folder, id) of each record.
      least: pairs of a smaller similarity are left out.
      least_ratio: pairs of a smaller ratio are; an entry without one has 1.
      where: the file, for messages.

    Raises:
      UserError: an entry that is none, or two records of one name.
    """
    numbers = {name: number for number, name in enumerate(names)}
    if len(numbers) < len(names):
        twice = next(name for number, name in enumerate(names) if numbers[name] != number)
        raise UserError(f"Two records are called {'/'.join(twice)}: pairs cannot tell them apart.")
    found: dict[int, dict[int, float]] = {}  # by source and target
    missing = below = 0
    for number, entry in enumerate(entries):
        try:
            (directory, one), (other_directory, other), value, *ratio = entry
            value, (ratio,) = float(value), map(float, ratio or [1.0])
            source, target = (
                numbers.get((str(f), str(i)))
                for f, i in ((directory, one), (other_directory, other))
            )
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{where}: entry {number} is not [[folder, id], [folder, id], similarity] with an "
                f"optional ratio: {json.dumps(entry)[:120]}."
            ) from error
        if source is None or target is None:
            missing += 1
        elif not (value >= least and (least_ratio is None or ratio >= least_ratio)):
            below += 1
        elif source != target:
            others = found.setdefault(source, {})
            others[target] = max(value, others.get(target, value))
    width = max(map(len, found.values()), default=1)
    neighbors = np.full((len(names), width), -1, np.int32)
    similarity = np.zeros((len(names), width), np.float32)
    for source, others in found.items():
        best = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))
        for place, (target, value) in enumerate(best):
            neighbors[source, place], similarity[source, place] = target, value
    return neighbors, similarity, {"entries": len(entries), "missing": missing, "below": below}


def to_list(
    neighbors: np.ndarray,
    similarity: np.ndarray,
    names: Sequence[tuple[str, str]],
    *,
    least: float = -1.0,
) -> list[list[Any]]:
    """The entries of a list, of records in order; arguments as in `from_list`."""
    rows, places = np.nonzero((neighbors >= 0) & (similarity >= least))
    return [
        [list(names[row]), list(names[neighbors[row, place]]), float(similarity[row, place])]
        for row, place in zip(rows.tolist(), places.tolist(), strict=True)
    ]
