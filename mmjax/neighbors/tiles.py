"""The costly part of a search for neighbors: which tiles of rows hold a row's best scores.

Rows are cut into blocks, and blocks into tiles. One product of two blocks gives the scores of all
their rows; the largest score of a row in each tile is kept, for the rows of both blocks, so that
every product is computed once. What remains of N scores of a row are its few best tiles: a row's k
best scores lie in its k best tiles, and a maximum over a tile is much cheaper than a sort.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.errors import UserError
from mmjax.neighbors.scores import masked_scores, scores_of
from mmjax.neighbors.vectors import Rows

_AXIS = "candidates"
SPARE = {"float32": 3, "bfloat16": 7}  # tiles that are kept beyond k
AHEAD = 4  # query blocks that the devices may be behind the host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a search runs; the result depends on none of it.

    Attributes:
      dtype: of the products: 'float32' or 'bfloat16'.
      block: rows of a block.
      tile: rows of a tile; divides `block`.
      device_bytes: for candidates on each device; what does not fit is searched in parts.
      devices: among which the candidates are split.
    """

    dtype: str
    block: int
    tile: int
    device_bytes: float
    devices: tuple[Any, ...]

    def __post_init__(self):
        if self.block < 1 or self.tile < 1 or self.block % self.tile:
            raise UserError(f"Tiles of {self.tile} rows do not divide blocks of {self.block}.")

    @property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (_AXIS,))

    def blocks_held(self, num_blocks: int, width: int) -> int:
        """Blocks on all devices at a time: a multiple of their number."""
        size = self.block * width * jnp.dtype(self.dtype).itemsize
        count = len(self.devices)
        fitting = max(int(self.device_bytes // size), 1)
        return count * min(fitting, math.ceil(num_blocks / count))


@dataclasses.dataclass
class Best:
    """The best tiles of queries, best first, as far as a search has come.

    Attributes:
      values: float32 [Q, T], the largest score in each tile; -inf: none.
      tiles: int32 [Q, T].
      part, query: the part of the candidates and the block of queries that come next.
      held_values, held_tiles: what the candidates at hand have found, as queries of the products.
    """

    values: np.ndarray
    tiles: np.ndarray
    part: int = 0
    query: int = 0
    held_values: np.ndarray | None = None
    held_tiles: np.ndarray | None = None

    @classmethod
    def empty(cls, queries: int, keep: int) -> Best:
        return cls(np.full((queries, keep), -np.inf, np.float32), np.zeros((queries, keep), "i4"))

    def merge(self, start: int, values: np.ndarray, tiles: np.ndarray) -> None:
        """Adds tiles found for the queries from `start` on, [n, T]."""
        values = values[: len(self.values) - start]
        where = slice(start, start + len(values))
        both = np.concatenate([self.values[where], values], 1)
        order = np.argsort(-both, 1, kind="stable")[:, : self.values.shape[1]]
        names = np.concatenate([self.tiles[where], tiles[: len(values)]], 1)
        self.values[where] = np.take_along_axis(both, order, 1)
        self.tiles[where] = np.take_along_axis(names, order, 1)


def products(rows: Rows, settings: Settings) -> int:
    """How many products of blocks a search of all rows takes."""
    last = _reach(rows, np.arange(len(rows)), settings.block)[1]
    return int((last - np.arange(len(last))).sum())


def best_tiles(
    rows: Rows,
    *,
    keep: int,
    settings: Settings,
    queries: np.ndarray | None = None,
    state: Best | None = None,
    advanced: Callable[[int, Callable[[], Best]], None] = lambda products, state: None,
) -> Best:
    """The best `keep` tiles of each row.

    Args:
      rows: candidates, and queries.
      keep: T.
      settings: see there.
      queries: numbers of rows, ascending, if not all are.
      state: where to go on, as `advanced` got it.
      advanced: called after each block of queries with the number of products done and a function
        that gives the state.
    """
    block, mesh = settings.block, settings.mesh
    symmetric = queries is None
    numbers = np.arange(len(rows)) if symmetric else queries
    state = state or Best.empty(len(numbers), keep)
    low, high = _reach(rows, numbers, block)
    if symmetric:
        low = np.arange(len(low))  # the products below the diagonal are those above it
    step = _make_step(settings, keep, symmetric)
    whole = NamedSharding(mesh, PartitionSpec())
    held_count = settings.blocks_held(math.ceil(len(rows) / block), rows.width)
    for part in range(state.part, math.ceil(len(rows) / block / held_count)):
        start, end = part * held_count, (part + 1) * held_count
        todo = [
            query
            for query in range(state.query, len(low))
            if max(low[query], start) < min(high[query], end)
        ]
        if not todo and state.held_values is None:
            state.query = 0
            continue
        held = _load(rows, start, held_count, settings)
        found = _found(state, held_count, keep, settings)
        waiting: collections.deque = collections.deque()

        def drain(waiting=waiting, limit=0) -> None:
            while len(waiting) > limit:
                first, values, tiles = waiting.popleft()
                state.merge(first, np.asarray(values), np.asarray(tiles))

        def snapshot(part=part, drain=drain, found=found) -> Best:
            drain()
            held = dict(zip(("held_values", "held_tiles"), map(np.asarray, found), strict=True))
            return dataclasses.replace(state, part=part, **held)

        for query in todo:
            mine = numbers[query * block : (query + 1) * block]
            vectors, group, tag = rows.padded(mine, block, settings.dtype)
            first, last = max(low[query], start), min(high[query], end)
            masked = np.ones(held_count, bool)
            if symmetric:
                masked = _needs_mask(rows, query, start + np.arange(held_count), block)
            at = np.array([first - start, last - start, query - start, start], np.int32)
            arguments = jax.device_put((vectors, group, tag, masked, at), whole)
            *found[:], values, tiles = step(*held, *found, *arguments)
            waiting.append((query * block, values, tiles))
            drain(limit=AHEAD)
            state.query = query + 1
            advanced(int(last - first), snapshot)
        drain()
        if symmetric:
            values, tiles = (_in_order(array, settings) for array in found)
            state.merge(start * block, values, tiles)
        state.part, state.query = part + 1, 0
        state.held_values = state.held_tiles = None
    return state


def _reach(rows: Rows, numbers: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """(first, end): the blocks of candidates that each block of queries may meet."""
    starts = np.arange(0, len(numbers), block)
    ends = np.minimum(starts + block, len(numbers)) - 1
    first, last = rows.bounds
    return first[numbers[starts]] // block, -(-last[numbers[ends]] // block)


def _needs_mask(rows: Rows, query: int, candidates: np.ndarray, block: int) -> np.ndarray:
    """Where some of the rows of a block and of later ones must not meet."""
    top = len(rows) - 1
    first, last = query * block, min((query + 1) * block - 1, top)
    left = np.minimum(candidates * block, top)
    right = (candidates + 1) * block - 1
    one_group = (rows.group[first] == rows.group[np.minimum(right, top)]) & (right <= top)
    return ~(one_group & (candidates != query) & (rows.tag[last] != rows.tag[left]))


def _load(rows: Rows, start: int, count: int, settings: Settings) -> tuple[jax.Array, ...]:
    """(vectors [count, block, D], groups, tags) of the blocks from `start` on, split over devices.

    Blocks are dealt out in turns: slot s of device d holds block `start + s · devices + d`, so that
    all have as much to do above the diagonal. The host holds one block for each device at a time.
    """
    block, ways = settings.block, len(settings.devices)
    split = NamedSharding(settings.mesh, PartitionSpec(_AXIS))
    shapes = [((count, block, rows.width), settings.dtype), *[((count, block), "int32")] * 2]
    held = tuple(jnp.full(shape, -1, dtype, device=split) for shape, dtype in shapes)
    put = _make_put(settings)
    for slot in range(count // ways):
        first = start + slot * ways
        parts = [
            rows.padded(
                np.arange(min(b * block, len(rows)), min((b + 1) * block, len(rows))),
                block,
                settings.dtype,
            )
            for b in range(first, first + ways)
        ]
        new = tuple(np.stack(arrays) for arrays in zip(*parts, strict=True))
        held = put(held, jax.device_put(new, split), np.int32(slot))
    return held


@functools.cache
def _make_put(settings: Settings) -> Callable:
    """The function that writes a block of each device into a slot of what they hold."""
    split = PartitionSpec(_AXIS)

    def put(held, new, slot):
        return jax.tree.map(
            lambda all_, one: jax.lax.dynamic_update_slice_in_dim(all_, one, slot, 0), held, new
        )

    sharded = jax.shard_map(
        put, mesh=settings.mesh, in_specs=(split, split, PartitionSpec()), out_specs=split
    )
    return jax.jit(sharded, donate_argnums=0)


def _found(state: Best, count: int, keep: int, settings: Settings) -> list[jax.Array]:
    """The best tiles of the candidates at hand, [count, T, block], as they are on the devices."""
    shape = (count, keep, settings.block)
    values, tiles = state.held_values, state.held_tiles
    if values is None:
        values, tiles = np.full(shape, -np.inf, np.float32), np.zeros(shape, np.int32)
    split = NamedSharding(settings.mesh, PartitionSpec(_AXIS))
    return [jax.device_put(array, split) for array in (values, tiles)]


def _in_order(array: jax.Array, settings: Settings) -> np.ndarray:
    """[count, T, block] as the devices hold it → [count · block, T] by rows."""
    ways = len(settings.devices)
    array = np.asarray(array)
    array = array.reshape(ways, -1, *array.shape[1:]).swapaxes(0, 1)  # [slot, device, T, block]
    return array.swapaxes(2, 3).reshape(-1, array.shape[2])


@functools.cache
def _make_step(settings: Settings, keep: int, symmetric: bool) -> Callable:
    """The function that searches the candidates at hand for a block of queries."""
    block, tile, ways = settings.block, settings.tile, len(settings.devices)
    tiles_of_block = block // tile
    lanes = math.gcd(tile, 64)  # CPUs are slow at maxima over the last axis in one go

    def maxima(scores):
        rows = scores.reshape(block, tiles_of_block, tile // lanes, lanes).max(2).max(2)
        return rows, scores.reshape(tiles_of_block, tile, block).max(1)

    def step(held, group, tag, values, tiles, query, query_group, query_tag, masked, at):
        device = jax.lax.axis_index(_AXIS)
        low, high, own, base = at
        slots = held.shape[0]

        def one(slot, carry):
            values, tiles, found = carry
            number = slot * ways + device

            def with_mask():
                scores = scores_of(query, held[slot])
                return maxima(masked_scores(scores, query_group, query_tag, group[slot], tag[slot]))

            # The condition is around all of it: one around the scores would copy them.
            rows, columns = jax.lax.cond(
                masked[number], with_mask, lambda: maxima(scores_of(query, held[slot]))
            )
            found = found.at[slot].set(rows.T)
            if symmetric:
                columns = jnp.where(number == own, -jnp.inf, columns)
                names = (own + base) * tiles_of_block + jnp.arange(tiles_of_block)
                new = _insert(values[slot], tiles[slot], columns, names)
                values, tiles = values.at[slot].set(new[0]), tiles.at[slot].set(new[1])
            return values, tiles, found

        found = jnp.full((slots, tiles_of_block, block), -jnp.inf)
        found = jax.lax.pcast(found, _AXIS, to="varying")
        first, end = (jnp.maximum(-(-(edge - device) // ways), 0) for edge in (low, high))
        values, tiles, found = jax.lax.fori_loop(first, end, one, (values, tiles, found))
        numbers = (jnp.arange(slots) * ways + device + base)[:, None] * tiles_of_block
        numbers = (numbers + jnp.arange(tiles_of_block)).reshape(-1)
        best, where = jax.lax.top_k(found.reshape(-1, block).T, min(keep, len(numbers)))
        best, where = best[None], numbers[where][None]  # [1, block, T]
        return values, tiles, best, where

    split, whole = PartitionSpec(_AXIS), PartitionSpec()
    sharded = jax.shard_map(
        step,
        mesh=settings.mesh,
        in_specs=(*[split] * 5, *[whole] * 5),
        out_specs=(split, split, split, split),
    )

    @functools.partial(jax.jit, donate_argnums=(3, 4))
    def merged(*arguments):
        values, tiles, best, where = sharded(*arguments)
        best, where = (x.swapaxes(0, 1).reshape(block, -1) for x in (best, where))
        missing = max(keep - best.shape[1], 0)
        best = jnp.pad(best, ((0, 0), (0, missing)), constant_values=-jnp.inf)
        where = jnp.pad(where, ((0, 0), (0, missing)))
        best, order = jax.lax.top_k(best, keep)
        return values, tiles, best, jnp.take_along_axis(where, order, 1)

    return merged


def _insert(values: jax.Array, tiles: jax.Array, new: jax.Array, names: jax.Array) -> tuple:
    """Sorted lists [T, B] with n further entries [n, B] put where they belong."""
    values, tiles = list(values), list(tiles)
    for value, name in zip(new, names, strict=True):
        name = jnp.broadcast_to(name, value.shape)
        for place in range(len(values)):
            better = value > values[place]
            values[place], value = (
                jnp.where(better, value, values[place]),
                jnp.where(better, values[place], value),
            )
            tiles[place], name = (
                jnp.where(better, name, tiles[place]),
                jnp.where(better, tiles[place], name),
            )
    return jnp.stack(values), jnp.stack(tiles)
