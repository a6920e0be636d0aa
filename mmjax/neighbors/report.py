"""Reports of `mmjax neighbors`: the cost of a search, its result, and sampled records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmjax.errors import UserError
from mmjax.monitor import report
from mmjax.neighbors.cost import Cost
from mmjax.neighbors.search import SearchResult
from mmjax.neighbors.settings import Settings
from mmjax.plain_text import plain

if TYPE_CHECKING:  # imports TensorFlow
    from mmjax.data.sources.base import Source

_PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
_FIGURE_RECORDS = 8
_FIGURE_COLUMNS = 6


def describe_cost(
    cost: Cost, features: np.ndarray, *, k: int, settings: Settings, groups: np.ndarray | None
) -> str:
    """Returns a description of the time and memory of a search.

    Args:
      cost: The estimate.
      features: The features, [N, D].
      k: Number of neighbors.
      settings: The settings of the search.
      groups: int [N], or None.
    """
    count, width = features.shape
    cached = "kept in memory" if cost.cached else "read from the file each time"
    within = "" if groups is None else f" within its group ({len(np.unique(groups))} groups)"
    lines = [
        f"{count} features of {width} values ({features.dtype}), {k} nearest neighbors of each"
        f"{within}",
        f"devices: {len(settings.devices)}; matrix products in {settings.dtype}: "
        f"{cost.flops:.3g} floating point operations, about "
        f"{report.format_seconds(cost.seconds)} at the rate measured now",
        f"memory: {report.format_bytes(cost.device_bytes)} on each device, "
        f"{report.format_bytes(cost.host_bytes)} on the host; unit vectors are {cached}; "
        f"passes over the features: {cost.passes}",
    ]
    return "\n".join(lines)


def summarize(
    out: str, result: SearchResult, mutual: np.ndarray, texts: Sequence[str], num_below: int
) -> Iterator[str]:
    """Yields lines that summarize the pairs.

    Args:
      out: The directory of pairs.
      result: The pairs that were kept.
      mutual: bool [N, k]: which of them are mutual.
      texts: Normalized caption of each record; empty without a dataset.
      num_below: Number of pairs below --min-similarity.
    """
    exists, counts = result.neighbors >= 0, result.counts
    num_pairs = int(exists.sum())
    yield (
        f"{out}: {exists[:, 0].sum()} of {len(exists)} records have a neighbor; {num_pairs} pairs."
    )
    reasons = {
        "features that are zero": counts["zero"],
        "records without another record in their group": counts["alone"],
        "pairs below --min-similarity": num_below,
    }
    if excluded := ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count):
        yield f"excluded: {excluded}"
    yield (
        f"{counts['distinct']} distinct vectors; {counts['searched_again']} searched again in "
        f"float32, {counts['searched_exhaustively']} exhaustively"
    )
    if not num_pairs:
        return
    values = np.percentile(result.similarity[:, 0][exists[:, 0]], _PERCENTILES)
    pairs = zip(_PERCENTILES, values, strict=True)
    quantiles = "  ".join(f"{percent}%: {value:.3f}" for percent, value in pairs)
    yield f"similarity of the nearest neighbor: {quantiles}"
    yield f"mutual: {mutual.sum()} of {num_pairs} pairs ({mutual.sum() / num_pairs:.0%})"
    if texts:
        records, ranks = np.nonzero(exists)
        others = result.neighbors[records, ranks]
        equal = sum(texts[a] == texts[b] for a, b in zip(records, others, strict=True))
        yield f"same caption: {equal} pairs ({equal / num_pairs:.0%})"


def list_examples(
    result: SearchResult, captions: Sequence[Sequence[str]], count: int
) -> Iterator[str]:
    """Yields lines with the captions of `count` sampled records and of their neighbors."""
    for record in _sample(result, count):
        (head, text), *others = _labels(result, captions, record)
        yield from ("", f"{head}: {text}", *(f"  {h}: {t}" for h, t in others))


def draw_examples(
    path: str,
    result: SearchResult,
    captions: Sequence[Sequence[str]],
    source: Source,
    count: int,
) -> Iterator[str]:
    """Draws sampled records and their neighbors, and yields a line that names the file.

    Args:
      path: The PNG file.
      result: The pairs.
      captions: Captions of each record.
      source: The source of the records.
      count: Number of records; 0 for 8.
    """
    from mmjax.neighbors import figure

    rows = []
    for record in _sample(result, count or _FIGURE_RECORDS):
        indices = [record, *_neighbors_of(result, record)][:_FIGURE_COLUMNS]
        labels = _labels(result, captions, record)[:_FIGURE_COLUMNS]
        images = [_first_image(source, index) for index in indices]
        rows.append([(image, *label) for image, label in zip(images, labels, strict=True)])
    if not rows:
        return
    try:
        figure.draw(rows, path, title=f"{source.name}: records and their neighbors")
    except (OSError, ValueError) as error:
        raise UserError(f"--figure {path} cannot be written: {error}.") from error
    yield f"{path}: {len(rows)} records and their nearest neighbors."


def _sample(result: SearchResult, count: int) -> list[int]:
    """Returns `count` random records that have a neighbor, in order."""
    records = np.flatnonzero(result.neighbors[:, 0] >= 0)
    return sorted(np.random.default_rng(0).permutation(records)[:count].tolist())


def _neighbors_of(result: SearchResult, record: int) -> list[int]:
    return [int(index) for index in result.neighbors[record] if index >= 0]


def _labels(
    result: SearchResult, captions: Sequence[Sequence[str]], record: int
) -> list[tuple[str, str]]:
    """Returns (similarity and index, caption) of a record and its neighbors."""
    neighbors = _neighbors_of(result, record)
    similarity = result.similarity[record][: len(neighbors)]
    heads = [f"record {record}"]
    heads += [f"{s:.3f}  record {n}" for n, s in zip(neighbors, similarity, strict=True)]
    texts = [(*captions[index], "(no caption)")[0] for index in (record, *neighbors)]
    return list(zip(heads, map(plain, texts), strict=True))


def _first_image(source: Source, record: int) -> np.ndarray | None:
    """Returns the first image of a record, uint8 [H, W, 3]; None if it has none."""
    from mmjax.data.storage import record_images, schema

    example = schema.decode(
        source.fetch(record), waveform_format="unchecked", where=source.where(record)
    )
    images = (*example.frames, *example.touch)
    if not images:
        return None
    try:
        return record_images.decode(images[0])
    except UserError:
        return None
