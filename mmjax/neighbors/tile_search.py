"""The first pass of a search: the tiles of vectors that contain the best scores of each query.

Vectors are divided into blocks, and blocks into tiles. The product of two blocks gives the scores
of all their pairs. Only the largest score of each vector in each tile is kept, for the vectors of
both blocks, so every product is computed once. The k best scores of a query are in its k best
tiles, and a maximum over a tile is much cheaper than a sort.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmjax.neighbors.prepared_features import SortedVectors
from mmjax.neighbors.scores import dot_products, masked_scores
from mmjax.neighbors.settings import AXIS, MAX_IN_FLIGHT, Settings

EXTRA_TILES = {"float32": 3, "bfloat16": 7}  # kept beyond k, because scores have rounding errors


@dataclasses.dataclass
class BestTiles:
    """The best tiles of each query, best first, and how far the search has progressed.

    Attributes:
      values: float32 [Q, T]: the largest score in each tile; -inf for none.
      tiles: int32 [Q, T]: indices of tiles.
      part: The part of the candidates to search next.
      query: The block of queries to search next.
      resident_values: Best tiles of the candidates of the current part, which are queries of the
        same products; float32 as the devices store them. None between parts.
      resident_tiles: Their indices.
    """

    values: np.ndarray
    tiles: np.ndarray
    part: int = 0
    query: int = 0
    resident_values: np.ndarray | None = None
    resident_tiles: np.ndarray | None = None

    @classmethod
    def empty(cls, num_queries: int, keep: int) -> BestTiles:
        """Returns the state before a search for `keep` tiles of each query."""
        shape = (num_queries, keep)
        return cls(np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32))

    def merge(self, start: int, values: np.ndarray, tiles: np.ndarray) -> None:
        """Merges further tiles [n, T] of the queries from index `start` on."""
        values = values[: len(self.values) - start]
        part = slice(start, start + len(values))
        all_values = np.concatenate([self.values[part], values], 1)
        all_tiles = np.concatenate([self.tiles[part], tiles[: len(values)]], 1)
        order = np.argsort(-all_values, 1, kind="stable")[:, : self.values.shape[1]]
        self.values[part] = np.take_along_axis(all_values, order, 1)
        self.tiles[part] = np.take_along_axis(all_tiles, order, 1)


def count_products(vectors: SortedVectors, settings: Settings) -> int:
    """Returns the number of block products in a search for the neighbors of all vectors."""
    last = _candidate_blocks(vectors, np.arange(len(vectors)), settings.block)[1]
    return int((last - np.arange(len(last))).sum())


def best_tiles(
    vectors: SortedVectors,
    *,
    keep: int,
    settings: Settings,
    queries: np.ndarray | None = None,
    state: BestTiles | None = None,
    on_progress: Callable[[int, Callable[[], BestTiles]], None] = lambda products, snapshot: None,
) -> BestTiles:
    """Returns the best tiles of each query.

    Args:
      vectors: The candidates, and the queries.
      keep: Number of tiles per query, T.
      settings: The settings of the search.
      queries: Ascending indices of the queries; None for all vectors.
      state: A snapshot from which to continue.
      on_progress: Called after each block of queries with the number of products computed for it,
        and a function that returns a snapshot.
    """
    search = _TileSearch(vectors, keep, settings, queries, state, on_progress)
    for part in range(search.state.part, search.num_parts):
        search.run(part)
    return search.state


class _TileSearch:
    """A search that goes over parts of the candidates that fit on the devices, and over queries."""

    def __init__(
        self,
        vectors: SortedVectors,
        keep: int,
        settings: Settings,
        queries: np.ndarray | None,
        state: BestTiles | None,
        on_progress: Callable[[int, Callable[[], BestTiles]], None],
    ):
        self._vectors, self._keep, self._settings = vectors, keep, settings
        self._symmetric = queries is None
        self._queries = np.arange(len(vectors)) if queries is None else queries
        self._on_progress = on_progress
        self.state = state or BestTiles.empty(len(self._queries), keep)
        self._low, self._high = _candidate_blocks(vectors, self._queries, settings.block)
        if self._symmetric:
            # Products below the diagonal are the transposes of those above it.
            self._low = np.arange(len(self._low))
        self._step = _make_step(settings, keep, self._symmetric)
        num_blocks = math.ceil(len(vectors) / settings.block)
        self._num_resident = settings.resident_blocks(num_blocks, vectors.width)
        self.num_parts = math.ceil(num_blocks / self._num_resident)

    def run(self, part: int) -> None:
        """Searches one part of the candidates for all queries."""
        state, symmetric, low, high = self.state, self._symmetric, self._low, self._high
        start, end = part * self._num_resident, (part + 1) * self._num_resident
        todo = [
            query
            for query in range(state.query, len(low))
            if max(low[query], start) < min(high[query], end)
        ]
        if not todo and state.resident_values is None:
            state.query = 0
            return
        candidates = _load(self._vectors, start, self._num_resident, self._settings)
        resident = self._resident_tiles()
        pending: collections.deque = collections.deque()

        def snapshot() -> BestTiles:
            self._collect(pending, limit=0)
            values, tiles = map(np.asarray, resident)
            return dataclasses.replace(
                state, part=part, resident_values=values, resident_tiles=tiles
            )

        for query in todo:
            first, last = max(low[query], start), min(high[query], end)
            arguments = self._query_arguments(query, first, last, start)
            *resident[:], values, tiles = self._step(*candidates, *resident, *arguments)
            pending.append((query * self._settings.block, values, tiles))
            self._collect(pending, limit=MAX_IN_FLIGHT)
            state.query = query + 1
            self._on_progress(int(last - first), snapshot)
        self._collect(pending, limit=0)
        if symmetric:
            values, tiles = (_by_vector(array, self._settings) for array in resident)
            state.merge(start * self._settings.block, values, tiles)
        state.part, state.query = part + 1, 0
        state.resident_values = state.resident_tiles = None

    def _query_arguments(self, query: int, first: int, last: int, start: int) -> tuple:
        """Returns the arguments of a step that depend on the block of queries, on all devices.

        Args:
          query: Index of the block of queries.
          first: The first block of candidates.
          last: The last block of candidates plus 1.
          start: The first resident block of candidates.
        """
        block, count = self._settings.block, self._num_resident
        indices = self._queries[query * block : (query + 1) * block]
        vectors, group, tag = self._vectors.padded(indices, block, self._settings.dtype)
        masked = np.ones(count, bool)
        if self._symmetric:
            masked = _needs_mask(self._vectors, query, start + np.arange(count), block)
        position = np.array([first - start, last - start, query - start, start], np.int32)
        replicated = NamedSharding(self._settings.mesh, PartitionSpec())
        return jax.device_put((vectors, group, tag, masked, position), replicated)

    def _resident_tiles(self) -> list[jax.Array]:
        """Returns the best tiles of the resident candidates, [count, T, block] on the devices."""
        shape = (self._num_resident, self._keep, self._settings.block)
        values, tiles = self.state.resident_values, self.state.resident_tiles
        if values is None:
            values, tiles = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32)
        split = NamedSharding(self._settings.mesh, PartitionSpec(AXIS))
        return [jax.device_put(array, split) for array in (values, tiles)]

    def _collect(self, pending: collections.deque, *, limit: int) -> None:
        """Merges results of the devices until at most `limit` are pending."""
        while len(pending) > limit:
            first, values, tiles = pending.popleft()
            self.state.merge(first, np.asarray(values), np.asarray(tiles))


def _candidate_blocks(
    vectors: SortedVectors, indices: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first, and the last plus 1, of the candidate blocks of each query block."""
    starts = np.arange(0, len(indices), block)
    ends = np.minimum(starts + block, len(indices)) - 1
    first, last = vectors.bounds
    return first[indices[starts]] // block, -(-last[indices[ends]] // block)


def _needs_mask(
    vectors: SortedVectors, query: int, candidates: np.ndarray, block: int
) -> np.ndarray:
    """Returns, for each candidate block, whether some pair with the query block is excluded."""
    top = len(vectors) - 1
    first, last = query * block, min((query + 1) * block - 1, top)
    left = np.minimum(candidates * block, top)
    right = (candidates + 1) * block - 1
    same_group = vectors.group[first] == vectors.group[np.minimum(right, top)]
    one_group = same_group & (right <= top)
    return ~(one_group & (candidates != query) & (vectors.tag[last] != vectors.tag[left]))


def _load(
    vectors: SortedVectors, start: int, count: int, settings: Settings
) -> tuple[jax.Array, ...]:
    """Returns `count` candidate blocks from index `start` on, split over the devices.

    Slot s of device d contains block `start + s · num_devices + d`. This interleaving balances the
    work above the diagonal. The host holds one block per device at a time.

    Returns:
      `(vectors [count, block, D], groups [count, block], tags [count, block])`.
    """
    block, num_devices = settings.block, len(settings.devices)
    split = NamedSharding(settings.mesh, PartitionSpec(AXIS))
    shapes = [((count, block, vectors.width), settings.dtype), *[((count, block), "int32")] * 2]
    loaded = tuple(jnp.full(shape, -1, dtype, device=split) for shape, dtype in shapes)
    put = _make_put(settings)
    for slot in range(count // num_devices):
        first = start + slot * num_devices
        bounds = (
            [min(edge * block, len(vectors)) for edge in (index, index + 1)]
            for index in range(first, first + num_devices)
        )
        parts = [vectors.padded(np.arange(*edges), block, settings.dtype) for edges in bounds]
        new = tuple(np.stack(arrays) for arrays in zip(*parts, strict=True))
        loaded = put(loaded, jax.device_put(new, split), np.int32(slot))
    return loaded


@functools.cache
def _make_put(settings: Settings) -> Callable:
    """Returns a compiled function that writes one block per device into a slot."""
    split = PartitionSpec(AXIS)

    def put(loaded, new, slot):
        return jax.tree.map(
            lambda all_, one: jax.lax.dynamic_update_slice_in_dim(all_, one, slot, 0), loaded, new
        )

    sharded = jax.shard_map(
        put, mesh=settings.mesh, in_specs=(split, split, PartitionSpec()), out_specs=split
    )
    return jax.jit(sharded, donate_argnums=0)


def _by_vector(array: jax.Array, settings: Settings) -> np.ndarray:
    """Converts [count, T, block] as on devices to [count · block, T] in the order of vectors."""
    num_devices = len(settings.devices)
    array = np.asarray(array)
    array = array.reshape(num_devices, -1, *array.shape[1:])
    array = array.swapaxes(0, 1)  # [slot, device, T, block]
    return array.swapaxes(2, 3).reshape(-1, array.shape[2])


@functools.cache
def _make_step(settings: Settings, keep: int, symmetric: bool) -> Callable:
    """Returns a compiled function that searches the resident candidates for a block of queries.

    Its arguments are the candidates (vectors, group, tag), their best tiles (values, tiles), the
    queries (vectors, group, tag), which candidate blocks need a mask, and the position (first and
    last candidate block, query block, relative to the resident blocks; first resident block). It
    returns the updated best tiles of the candidates, and the best tiles of the queries.
    """
    split, replicated = PartitionSpec(AXIS), PartitionSpec()
    sharded = jax.shard_map(
        functools.partial(_search_resident, settings=settings, keep=keep, symmetric=symmetric),
        mesh=settings.mesh,
        in_specs=(*[split] * 5, *[replicated] * 5),
        out_specs=(split, split, split, split),
    )

    @functools.partial(jax.jit, donate_argnums=(3, 4))
    def step(*arguments):
        values, tiles, best, best_tile = sharded(*arguments)
        best, best_tile = (
            x.swapaxes(0, 1).reshape(settings.block, -1) for x in (best, best_tile)
        )  # of all devices
        missing = max(keep - best.shape[1], 0)
        best = jnp.pad(best, ((0, 0), (0, missing)), constant_values=-jnp.inf)
        best_tile = jnp.pad(best_tile, ((0, 0), (0, missing)))
        best, order = jax.lax.top_k(best, keep)
        return values, tiles, best, jnp.take_along_axis(best_tile, order, 1)

    return step


def _search_resident(
    candidates,
    group,
    tag,
    values,
    tiles,
    query,
    query_group,
    query_tag,
    masked,
    position,
    *,
    settings: Settings,
    keep: int,
    symmetric: bool,
):
    """The part of `_make_step` that runs on each device; see there for arguments and results."""
    block, num_devices = settings.block, len(settings.devices)
    tiles_per_block = block // settings.tile
    device = jax.lax.axis_index(AXIS)
    low, high, query_block, base = position
    num_slots = candidates.shape[0]

    def search_slot(slot, carry):
        values, tiles, maxima = carry
        index = slot * num_devices + device

        def masked_maxima():
            scores = dot_products(query, candidates[slot])
            masked = masked_scores(scores, query_group, query_tag, group[slot], tag[slot])
            return _tile_maxima(masked, settings)

        # The condition contains the maxima, because a condition around the scores copies them.
        of_queries, of_candidates = jax.lax.cond(
            masked[index],
            masked_maxima,
            lambda: _tile_maxima(dot_products(query, candidates[slot]), settings),
        )
        maxima = maxima.at[slot].set(of_queries.T)
        if symmetric:
            of_candidates = jnp.where(index == query_block, -jnp.inf, of_candidates)
            new_tiles = (query_block + base) * tiles_per_block + jnp.arange(tiles_per_block)
            new = _insert(values[slot], tiles[slot], of_candidates, new_tiles)
            values, tiles = values.at[slot].set(new[0]), tiles.at[slot].set(new[1])
        return values, tiles, maxima

    maxima = jnp.full((num_slots, tiles_per_block, block), -jnp.inf)
    maxima = jax.lax.pcast(maxima, AXIS, to="varying")
    first, end = (jnp.maximum(-(-(edge - device) // num_devices), 0) for edge in (low, high))
    values, tiles, maxima = jax.lax.fori_loop(first, end, search_slot, (values, tiles, maxima))
    indices = (jnp.arange(num_slots) * num_devices + device + base)[:, None] * tiles_per_block
    indices = (indices + jnp.arange(tiles_per_block)).reshape(-1)
    best, order = jax.lax.top_k(maxima.reshape(-1, block).T, min(keep, len(indices)))
    return values, tiles, best[None], indices[order][None]  # the latter two: [1, block, T]


def _tile_maxima(scores: jax.Array, settings: Settings) -> tuple[jax.Array, jax.Array]:
    """Returns the maxima of scores [block, block] over tiles of candidates and of queries.

    Returns:
      `(of_queries [block, tiles], of_candidates [tiles, block])`.
    """
    block, tile = settings.block, settings.tile
    lanes = math.gcd(tile, 64)  # a maximum over the last axis in one go is slow on CPUs
    of_queries = scores.reshape(block, block // tile, tile // lanes, lanes).max(2).max(2)
    return of_queries, scores.reshape(block // tile, tile, block).max(1)


def _insert(values: jax.Array, tiles: jax.Array, new: jax.Array, new_tiles: jax.Array) -> tuple:
    """Inserts values [n, B] of the tiles [n] into sorted lists `values` and `tiles`, [T, B]."""
    values, tiles = list(values), list(tiles)
    for value, tile in zip(new, new_tiles, strict=True):
        tile = jnp.broadcast_to(tile, value.shape)
        for rank in range(len(values)):
            better = value > values[rank]
            values[rank], value = (
                jnp.where(better, value, values[rank]),
                jnp.where(better, values[rank], value),
            )
            tiles[rank], tile = (
                jnp.where(better, tile, tiles[rank]),
                jnp.where(better, tiles[rank], tile),
            )
    return jnp.stack(values), jnp.stack(tiles)
