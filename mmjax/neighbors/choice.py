"""From the best tiles of rows to their neighbors, and the proof that none was missed."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from mmjax.neighbors.scores import bound, masked_scores, scores_of
from mmjax.neighbors.tiles import AHEAD, Best, Settings
from mmjax.neighbors.vectors import CHUNK, Rows, cosines

SPARE = 3  # rows of a tile that are kept beyond k


@dataclasses.dataclass(frozen=True)
class Choice:
    """The later steps, for some of the rows; they write to `found`: (rows, cosines), [N, k] each.

    Attributes:
      rows, k, settings: of the search.
      leaders: the number of the features that a row stands for, by which equals are ordered.
    """

    rows: Rows
    leaders: np.ndarray
    k: int
    settings: Settings

    @property
    def _margin(self) -> float:
        """A score in float32 that is farther below the k-th best cannot be among the k best."""
        return 2 * bound("float32", self.rows.width)

    def resolve(
        self, found: tuple[np.ndarray, np.ndarray], queries: np.ndarray, best: Best, error: float
    ) -> np.ndarray:
        """Neighbors from the best tiles; returns the queries of which they are not proven.

        Args:
          found: see the class.
          queries: numbers of rows.
          best: their tiles.
          error: how far the values of tiles are from the cosines.
        """
        values, k = best.values, self.k
        least = values[:, k - 1 : k]
        query, place = np.nonzero(np.isfinite(values) & (values >= least - 2 * error))
        order = np.argsort(best.tiles[query, place], kind="stable")
        query, place = query[order], place[order]
        width = min(k + SPARE, self.settings.tile)
        shape = (*values.shape, width)
        scores, numbers = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32)
        for which, score, number in open_tiles(
            self.rows,
            queries[query],
            best.tiles[query, place],
            keep=width,
            settings=self.settings,
        ):
            scores[query[which], place[which]] = score
            numbers[query[which], place[which]] = number
        unsure = np.zeros(len(queries), bool)
        all_kept = values.shape[1] * self.settings.tile >= len(self.rows)
        for start in range(0, len(queries), CHUNK):
            part = slice(start, start + CHUNK)
            flat = scores[part].reshape(len(scores[part]), -1)
            least = _kth(flat, k) - self._margin
            near = np.isfinite(flat) & (flat >= least)
            row, column = np.nonzero(near)
            candidates = numbers[part].reshape(len(flat), -1)[row, column]
            last = self._choose(found, queries[part], row, candidates)
            if width < self.settings.tile:  # as good ones may hide behind the last of a tile
                unsure[part] |= (near.reshape(scores[part].shape)[..., -1]).any(1)
            if not all_kept:
                unsure[part] |= np.isfinite(values[part, -1]) & (values[part, -1] + error >= last)
        return queries[unsure]

    def look_at_all(self, found: tuple[np.ndarray, np.ndarray], queries: np.ndarray) -> None:
        """Neighbors by all scores, for queries that are open after `resolve`."""
        block = self.settings.block

        low, high = self.rows.bounds
        for start in range(0, len(queries), 64):
            mine = queries[start : start + 64]
            query = self.rows.padded(mine, 64)
            best = np.full((len(mine), self.k), -np.inf, np.float32)
            pieces = []
            for first in range(low[mine[0]] // block * block, high[mine[-1]], block):
                numbers = np.arange(first, min(first + block, len(self.rows)))
                scores = np.asarray(_all_scores(query, self.rows.padded(numbers, block)))[
                    : len(mine)
                ]
                both = np.concatenate([best, scores], 1)
                best = -np.partition(-both, self.k - 1, 1)[:, : self.k]
                near = np.isfinite(scores) & (scores >= _kth(best, self.k) - self._margin)
                row, column = np.nonzero(near)
                pieces.append((row, column + first, scores[row, column]))
            row, number, score = (np.concatenate(part) for part in zip(*pieces, strict=True))
            near = score >= (_kth(best, self.k) - self._margin)[row, 0]
            self._choose(found, mine, row[near], number[near])

    def _choose(
        self,
        found: tuple[np.ndarray, np.ndarray],
        queries: np.ndarray,
        row: np.ndarray,
        candidates: np.ndarray,
    ) -> np.ndarray:
        """Writes the k best candidates of each query; returns the k-th cosines, -inf: fewer.

        Args:
          found: see the class.
          queries: numbers of rows [Q].
          row: int [P]: which of the queries.
          candidates: numbers of rows [P].
        """
        cosine = np.zeros(len(row), np.float32)
        for start in range(0, len(row), CHUNK):
            part = slice(start, start + CHUNK)
            cosine[part] = cosines(
                self.rows.read(queries[row[part]]), self.rows.read(candidates[part])
            )
        order = np.lexsort((self.leaders[candidates], -cosine, row))
        row, candidates, cosine = row[order], candidates[order], cosine[order]
        place = np.arange(len(row)) - np.searchsorted(row, row)
        kept = place < self.k
        found[0][queries], found[1][queries] = -1, -np.inf
        found[0][queries[row[kept]], place[kept]] = candidates[kept]
        found[1][queries[row[kept]], place[kept]] = cosine[kept]
        return found[1][queries, -1]


def _kth(scores: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest of each row, [n, 1]; -inf if there are fewer."""
    if scores.shape[1] < k:
        return np.full((len(scores), 1), -np.inf, np.float32)
    return -np.partition(-scores, k - 1, 1)[:, k - 1 : k]


@jax.jit
def _all_scores(query: tuple, candidates: tuple) -> jax.Array:
    (vectors, *marks), (others, *other_marks) = query, candidates
    return masked_scores(scores_of(vectors, others), *marks, *other_marks)


@functools.partial(jax.jit, static_argnums=2)
def _best_of(query: tuple, candidates: tuple, keep: int) -> list[jax.Array]:
    return jax.lax.top_k(_all_scores(query, candidates), keep)


def open_tiles(
    rows: Rows, queries: np.ndarray, tiles: np.ndarray, *, keep: int, settings: Settings
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The best rows of tiles, by scores in float32.

    Args:
      rows: all.
      queries, tiles: int [P]: which tile to open for which row; ascending tiles.
      keep: C.
      settings: their dtype is not used.

    Yields:
      (which of the P, scores float32 [p, C], numbers of rows [p, C]); -inf: there are fewer.
    """
    tile = settings.tile
    keep = min(keep, tile)
    edges = np.flatnonzero(np.diff(tiles)) + 1
    waiting: collections.deque = collections.deque()
    for number, here in enumerate(np.split(np.arange(len(tiles)), edges) if len(tiles) else ()):
        start = int(tiles[here[0]]) * tile
        device = settings.devices[number % len(settings.devices)]
        numbers = np.arange(start, min(start + tile, len(rows)))
        candidates = jax.device_put(rows.padded(numbers, tile), device)
        for first in range(0, len(here), tile):
            which = here[first : first + tile]
            size = max(min(tile, 32), 1 << (len(which) - 1).bit_length())  # few shapes to compile
            query = jax.device_put(rows.padded(queries[which], size), device)
            waiting.append((which, start, _best_of(query, candidates, keep)))
            if len(waiting) > AHEAD:
                yield _fetched(*waiting.popleft())
    while waiting:
        yield _fetched(*waiting.popleft())


def _fetched(which: np.ndarray, start: int, found: Sequence[jax.Array]) -> tuple:
    values, where = (np.asarray(array)[: len(which)] for array in found)
    return which, values, where + start
