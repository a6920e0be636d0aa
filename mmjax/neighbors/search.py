"""Exact nearest neighbors among unit vectors, on any number of devices, larger than memory.

A search has three stages. Each has a bound on its rounding errors, so the result is exact:

1. the best tiles of each vector (`tile_search.py`), in float32 or bfloat16;
2. the best vectors of these tiles (`rerank.py`), in float32;
3. the cosines of the remaining candidates, in float64.

Vectors for which the bounds do not prove exactness are searched again in float32. If that is not
enough, because more candidates than were kept are equal up to rounding errors, all their scores are
computed. Vectors that are equal, bit for bit, are searched once.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable

import numpy as np

from mmjax import files
from mmjax.errors import UserError
from mmjax.formats import npy
from mmjax.neighbors.prepared_features import PreparedFeatures, expand
from mmjax.neighbors.rerank import Reranker
from mmjax.neighbors.scores import error_bound
from mmjax.neighbors.settings import CHUNK, Settings, choose_settings
from mmjax.neighbors.tile_search import EXTRA_TILES, BestTiles, best_tiles

log = logging.getLogger(__name__)

_SAVE_SECONDS = 60.0  # between snapshots, at least
_SAVE_FRACTION = 20  # snapshots take at most 1/20 of the time


@dataclasses.dataclass
class SearchResult:
    """The neighbors of all features.

    Attributes:
      neighbors: int32 [N, k]: indices of features, nearest first, ties in order of the index; -1
        for none.
      similarity: float32 [N, k]: cosines; 0 where a neighbor is missing.
      counts: Number of features that are `zero`, of features that are the only ones in their group
        (`alone`), of `distinct` vectors, and of vectors that were `searched_again` in float32 or
        `searched_exhaustively`.
    """

    neighbors: np.ndarray
    similarity: np.ndarray
    counts: dict[str, int]


def nearest(
    prepared: PreparedFeatures,
    *,
    k: int = 1,
    settings: Settings | None = None,
    resume_file: str | os.PathLike | None = None,
    progress: Callable[[int], None] = lambda products: None,
) -> SearchResult:
    """Returns the k nearest neighbors of each feature, by cosine similarity.

    Args:
      prepared: The features, from `prepare`.
      k: Number of neighbors.
      settings: Default: `choose_settings()`.
      resume_file: File for snapshots of the search. If it exists, the search continues from it.
      progress: Called with the number of block products computed since the last call; their total
        is `count_products`.

    Raises:
      UserError: k is less than 1.
    """
    if k < 1:
        raise UserError(f"k must be at least 1; got {k}.")
    settings = settings or choose_settings()
    vectors = prepared.vectors
    count = len(vectors)
    result = np.full((count, k), -1, np.int64), np.full((count, k), -np.inf, np.float32)
    again = remaining = np.zeros(0, np.int64)
    if count:
        reranker = Reranker(vectors, prepared.members[prepared.starts[:-1]], k, settings)
        keep = k + EXTRA_TILES[settings.dtype]
        best = _first_pass(prepared, keep, settings, resume_file, progress)
        error = error_bound(settings.dtype, vectors.width, prepared.rounding_error)
        again = reranker.resolve(result, np.arange(count), best, error)
        if settings.dtype != "float32" and len(again):
            log.info("Searching %d of %d vectors again in float32.", len(again), count)
            in_float32 = dataclasses.replace(settings, dtype="float32")
            best = best_tiles(vectors, keep=keep, settings=in_float32, queries=again)
            error = error_bound("float32", vectors.width)
            remaining = reranker.resolve(result, again, best, error)
        else:
            again, remaining = again[:0], again
        if len(remaining):
            log.info("Searching exhaustively for %d of %d vectors.", len(remaining), count)
            reranker.search_exhaustively(result, remaining)
    neighbors, similarity = expand(prepared, *result)
    counts = {
        "zero": prepared.num_zero,
        "alone": prepared.num_alone,
        "distinct": count,
        "searched_again": len(again),
        "searched_exhaustively": len(remaining),
    }
    return SearchResult(neighbors, similarity, counts)


def _first_pass(
    prepared: PreparedFeatures,
    keep: int,
    settings: Settings,
    resume_file: str | os.PathLike | None,
    progress: Callable[[int], None],
) -> BestTiles:
    """Runs `best_tiles` for all vectors, with snapshots in `resume_file`."""
    vectors = prepared.vectors
    resident = settings.resident_blocks(math.ceil(len(vectors) / settings.block), vectors.width)
    key = [prepared.fingerprint, len(vectors), keep, resident, len(settings.devices)]
    key = repr([*key, settings.dtype, settings.block, settings.tile])
    done, state = _restore(resume_file, key)
    progress(done)
    saved, duration = time.perf_counter(), 0.0

    def on_progress(products: int, snapshot: Callable[[], BestTiles]) -> None:
        nonlocal done, saved, duration
        done += products
        progress(products)
        interval = max(_SAVE_SECONDS, _SAVE_FRACTION * duration)
        if resume_file and time.perf_counter() - saved > interval:
            start = time.perf_counter()
            _save(resume_file, key, done, snapshot())
            saved = time.perf_counter()
            duration = saved - start

    best = best_tiles(vectors, keep=keep, settings=settings, state=state, on_progress=on_progress)
    if resume_file:
        _save(resume_file, key, done, best)
    return best


def _save(path: str | os.PathLike, key: str, done: int, state: BestTiles) -> None:
    fields = {name: value for name, value in vars(state).items() if value is not None}
    with files.atomic_open(path, "wb") as file:
        np.savez(file, key=np.array(key), done=np.array(done), **fields)


def _restore(path: str | os.PathLike | None, key: str) -> tuple[int, BestTiles | None]:
    """Returns `(products computed, state)` of an interrupted search; (0, None) without one."""
    if not path or not os.path.exists(path):
        return 0, None
    try:
        with npy.Archive(path) as file:
            content = {name: file.read(name) for name in file.names}
        if str(content.pop("key")) != key:
            log.warning("%s is from other features or options. Starting a new search.", path)
            return 0, None
        done = int(content.pop("done"))
        content |= {name: int(content[name]) for name in ("part", "query")}
        return done, BestTiles(**content)
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s cannot be read (%s). Starting a new search.", path, error)
        return 0, None


def mutual(result: SearchResult) -> np.ndarray:
    """Returns bool [N, k]: whether a feature is also among the k neighbors of its neighbor."""
    neighbors = result.neighbors
    own = np.arange(len(neighbors))[:, None, None]
    chunks = (
        (neighbors[np.maximum(neighbors[s : s + CHUNK], 0)] == own[s : s + CHUNK]).any(2)
        for s in range(0, len(neighbors), CHUNK)
    )
    return np.concatenate([*chunks, np.zeros((0, neighbors.shape[1]), bool)]) & (neighbors >= 0)
