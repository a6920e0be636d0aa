"""The second pass of a search: exact neighbors from the best tiles, and the proof of exactness."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from mmjax.neighbors.prepared_features import SortedVectors, cosines
from mmjax.neighbors.scores import dot_products, error_bound, masked_scores
from mmjax.neighbors.settings import CHUNK, MAX_IN_FLIGHT, Settings
from mmjax.neighbors.tile_search import BestTiles

EXTRA_VECTORS = 3  # of a tile, kept beyond k
_EXHAUSTIVE_QUERIES = 64  # at a time


@dataclasses.dataclass(frozen=True)
class Reranker:
    """Computes the k nearest neighbors of queries and writes them to result arrays.

    The result is a pair of arrays [N, k]: the indices of vectors, and their cosines. Each call
    overwrites the entries of its queries.

    Attributes:
      vectors: All vectors.
      leaders: int [N]: the feature index of each vector; orders vectors of equal similarity.
      k: Number of neighbors.
      settings: The settings of the search.
    """

    vectors: SortedVectors
    leaders: np.ndarray
    k: int
    settings: Settings

    @property
    def _margin(self) -> float:
        """Vectors whose float32 score is this far below the k-th best are not among the k best."""
        return 2 * error_bound("float32", self.vectors.width)

    def resolve(
        self,
        result: tuple[np.ndarray, np.ndarray],
        queries: np.ndarray,
        best: BestTiles,
        error: float,
    ) -> np.ndarray:
        """Finds the neighbors of queries in their best tiles.

        Args:
          result: Arrays to write to; see the class.
          queries: Indices of the queries, [Q].
          best: The best tiles of the queries.
          error: Largest difference between the values of tiles and the cosines.

        Returns:
          The queries for which the result is not proven to be exact.
        """
        values, k = best.values, self.k
        threshold = values[:, k - 1 : k] - 2 * error
        query, rank = np.nonzero(np.isfinite(values) & (values >= threshold))
        order = np.argsort(best.tiles[query, rank], kind="stable")
        query, rank = query[order], rank[order]
        width = min(k + EXTRA_VECTORS, self.settings.tile)
        shape = (*values.shape, width)
        scores, indices = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32)
        opened = _best_of_tiles(
            self.vectors,
            queries[query],
            best.tiles[query, rank],
            keep=width,
            settings=self.settings,
        )
        for pairs, tile_scores, tile_indices in opened:
            scores[query[pairs], rank[pairs]] = tile_scores
            indices[query[pairs], rank[pairs]] = tile_indices
        unproven = np.zeros(len(queries), bool)
        all_tiles = values.shape[1] * self.settings.tile >= len(self.vectors)
        for start in range(0, len(queries), CHUNK):
            part = slice(start, start + CHUNK)
            flat = scores[part].reshape(len(scores[part]), -1)
            near = np.isfinite(flat) & (flat >= _kth_best(flat, k) - self._margin)
            position, entry = np.nonzero(near)
            candidates = indices[part].reshape(len(flat), -1)[position, entry]
            kth_cosine = self._write_best(result, queries[part], position, candidates)
            if width < self.settings.tile:
                # Vectors as good as the last one of a tile may have been cut off.
                unproven[part] |= near.reshape(scores[part].shape)[..., -1].any(1)
            if not all_tiles:
                last = values[part, -1]
                unproven[part] |= np.isfinite(last) & (last + error >= kth_cosine)
        return queries[unproven]

    def search_exhaustively(
        self, result: tuple[np.ndarray, np.ndarray], queries: np.ndarray
    ) -> None:
        """Finds the neighbors of ascending queries from the scores of all candidates."""
        block = self.settings.block
        low, high = self.vectors.bounds
        for start in range(0, len(queries), _EXHAUSTIVE_QUERIES):
            chunk = queries[start : start + _EXHAUSTIVE_QUERIES]
            query = self.vectors.padded(chunk, _EXHAUSTIVE_QUERIES)
            best = np.full((len(chunk), self.k), -np.inf, np.float32)
            parts = []
            for first in range(low[chunk[0]] // block * block, high[chunk[-1]], block):
                indices = np.arange(first, min(first + block, len(self.vectors)))
                scores = _all_scores(query, self.vectors.padded(indices, block))
                scores = np.asarray(scores)[: len(chunk)]
                merged = np.concatenate([best, scores], 1)
                best = -np.partition(-merged, self.k - 1, 1)[:, : self.k]
                near = np.isfinite(scores) & (scores >= _kth_best(best, self.k) - self._margin)
                position, entry = np.nonzero(near)
                parts.append((position, entry + first, scores[position, entry]))
            position, index, score = (np.concatenate(part) for part in zip(*parts, strict=True))
            near = score >= (_kth_best(best, self.k) - self._margin)[position, 0]
            self._write_best(result, chunk, position[near], index[near])

    def _write_best(
        self,
        result: tuple[np.ndarray, np.ndarray],
        queries: np.ndarray,
        position: np.ndarray,
        candidates: np.ndarray,
    ) -> np.ndarray:
        """Writes the k best candidates of each query.

        Args:
          result: Arrays to write to; see the class.
          queries: Indices of the queries, [Q].
          position: int [P]: index into `queries` of the query of each candidate.
          candidates: int [P]: indices of the candidates.

        Returns:
          The k-th best cosine of each query, [Q]; -inf with fewer candidates.
        """
        cosine = np.zeros(len(position), np.float32)
        for start in range(0, len(position), CHUNK):
            part = slice(start, start + CHUNK)
            cosine[part] = cosines(
                self.vectors.read(queries[position[part]]), self.vectors.read(candidates[part])
            )
        order = np.lexsort((self.leaders[candidates], -cosine, position))
        position, candidates, cosine = position[order], candidates[order], cosine[order]
        rank = np.arange(len(position)) - np.searchsorted(position, position)
        kept = rank < self.k
        result[0][queries], result[1][queries] = -1, -np.inf
        result[0][queries[position[kept]], rank[kept]] = candidates[kept]
        result[1][queries[position[kept]], rank[kept]] = cosine[kept]
        return result[1][queries, -1]


def _kth_best(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns the k-th largest of scores [n, m] as [n, 1]; -inf if m < k."""
    if scores.shape[1] < k:
        return np.full((len(scores), 1), -np.inf, np.float32)
    return -np.partition(-scores, k - 1, 1)[:, k - 1 : k]


@jax.jit
def _all_scores(query: tuple, candidates: tuple) -> jax.Array:
    (vectors, *marks), (others, *other_marks) = query, candidates
    return masked_scores(dot_products(vectors, others), *marks, *other_marks)


@functools.partial(jax.jit, static_argnums=2)
def _best_of(query: tuple, candidates: tuple, keep: int) -> list[jax.Array]:
    return jax.lax.top_k(_all_scores(query, candidates), keep)


def _best_of_tiles(
    vectors: SortedVectors,
    queries: np.ndarray,
    tiles: np.ndarray,
    *,
    keep: int,
    settings: Settings,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the best vectors of tiles, by float32 scores.

    Args:
      vectors: All vectors.
      queries: int [P]: index of the query of each pair.
      tiles: int [P]: index of the tile of each pair, ascending.
      keep: Number of vectors per tile, C.
      settings: The settings of the search; their dtype is not used.

    Yields:
      (positions of pairs [p], scores float32 [p, C], indices of vectors [p, C]). A score of -inf
      means that the tile has fewer candidates.
    """
    tile = settings.tile
    keep = min(keep, tile)
    edges = np.flatnonzero(np.diff(tiles)) + 1
    groups = np.split(np.arange(len(tiles)), edges) if len(tiles) else ()
    pending: collections.deque = collections.deque()
    for n, pairs in enumerate(groups):
        start = int(tiles[pairs[0]]) * tile
        device = settings.devices[n % len(settings.devices)]
        indices = np.arange(start, min(start + tile, len(vectors)))
        candidates = jax.device_put(vectors.padded(indices, tile), device)
        for first in range(0, len(pairs), tile):
            chunk = pairs[first : first + tile]
            # Rounded up to a power of 2, so that few shapes are compiled.
            size = max(min(tile, 32), 1 << (len(chunk) - 1).bit_length())
            query = jax.device_put(vectors.padded(queries[chunk], size), device)
            pending.append((chunk, start, _best_of(query, candidates, keep)))
            if len(pending) > MAX_IN_FLIGHT:
                yield _fetch(*pending.popleft())
    while pending:
        yield _fetch(*pending.popleft())


def _fetch(pairs: np.ndarray, start: int, best: Sequence[jax.Array]) -> tuple:
    scores, positions = (np.asarray(array)[: len(pairs)] for array in best)
    return pairs, scores, positions + start
