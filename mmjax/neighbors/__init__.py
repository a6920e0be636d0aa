"""Exact nearest neighbors of unit vectors among themselves, on any number of devices, out of core.

Three steps, each with a bound on its rounding errors, so that the result is exact:

1. the best tiles of each row (`tiles.py`), in float32 or bfloat16;
2. the best rows of these tiles, in float32 (`choice.py`);
3. the cosines of what is left, in float64.

A row whose bound does not prove that nothing better was missed is searched again, in float32, and
what is then still open (more rows are equal, but for rounding errors, than were kept) by looking at
all its scores. Rows that are equal, bit for bit, are searched once.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
import zipfile
from collections.abc import Callable

import jax
import numpy as np

from mmjax.errors import UserError, choose
from mmjax.neighbors import tiles as tiles_lib
from mmjax.neighbors.choice import Choice
from mmjax.neighbors.estimate import plan
from mmjax.neighbors.scores import bound
from mmjax.neighbors.tiles import Best, Settings, products
from mmjax.neighbors.vectors import CHUNK, Prepared, expand, host_bytes, prepare

__all__ = [
    "Found",
    "Settings",
    "choose_settings",
    "mutual",
    "nearest",
    "plan",
    "prepare",
    "products",
]

log = logging.getLogger(__name__)

_SAVE_SECONDS = 60.0  # between two notes of how far it is
_PATIENCE = 20  # and so many times what a note takes


@dataclasses.dataclass
class Found:
    """The result of a search.

    Attributes:
      neighbors: int32 [N, k], row numbers, best first, the lowest number first among equals; -1:
        none.
      similarity: float32 [N, k]; 0 where there is no neighbor.
      counts: rows that are zero; alone in their group; distinct; searched_again (in float32);
        searched_whole (all scores looked at).
    """

    neighbors: np.ndarray
    similarity: np.ndarray
    counts: dict[str, int]


def choose_settings(
    dtype: str = "auto", *, block: int | None = None, device_bytes: float | None = None
) -> Settings:
    """Settings for the devices of this process.

    Args:
      dtype: 'auto' is float32 on CPUs and bfloat16 elsewhere.
      block: rows of a block (1024 on CPUs, where products should stay in the cache, else 8192).
      device_bytes: for candidates on each device (a part of what it has).
    """
    devices = tuple(jax.local_devices())
    cpu = devices[0].platform == "cpu"
    kinds = {"auto": "float32" if cpu else "bfloat16", "float32": "float32", "bfloat16": "bfloat16"}
    block = block or (1024 if cpu else 8192)
    stats = devices[0].memory_stats() or {}
    own = host_bytes() / 4 / len(devices) if cpu else 0.6 * stats.get("bytes_limit", 2**33)
    return Settings(
        dtype=choose("--dtype", dtype, kinds),
        block=block,
        tile=math.gcd(block, 1024),
        device_bytes=device_bytes or own,
        devices=devices,
    )


def nearest(
    prepared: Prepared,
    *,
    k: int = 1,
    settings: Settings | None = None,
    work: str | os.PathLike | None = None,
    progress: Callable[[int], None] = lambda products: None,
) -> Found:
    """The k nearest neighbors of each row of the features.

    Args:
      prepared: of `prepare`.
      k: neighbors of each.
      settings: of `choose_settings`.
      work: a file that remembers how far the search has come: the same call goes on from there.
      progress: called with the number of products of blocks that are done
        (`products` in all).
    """
    if k < 1:
        raise UserError(f"{k} neighbors: there must be at least 1.")
    settings = settings or choose_settings()
    rows = prepared.rows
    counts = {"zero": prepared.zero, "alone": prepared.alone, "distinct": len(rows)}
    found = np.full((len(rows), k), -1, np.int64), np.full((len(rows), k), -np.inf, np.float32)
    again = whole = np.zeros(0, np.int64)
    if len(rows):
        leaders = prepared.members[prepared.first[:-1]]
        search = Choice(rows, leaders, k, settings)
        keep = k + tiles_lib.SPARE[settings.dtype]
        best = _first_pass(prepared, keep, settings, work, progress)
        again = search.resolve(
            found, np.arange(len(rows)), best, bound(settings.dtype, rows.width, prepared.rounding)
        )
        if settings.dtype != "float32" and len(again):
            log.info("%d of %d rows are searched again in float32.", len(again), len(rows))
            exact = dataclasses.replace(settings, dtype="float32")
            best = tiles_lib.best_tiles(rows, keep=keep, settings=exact, queries=again)
            whole = search.resolve(found, again, best, bound("float32", rows.width))
        else:
            again, whole = again[:0], again
        if len(whole):
            log.info("All scores of %d of %d rows are looked at.", len(whole), len(rows))
            search.look_at_all(found, whole)
    counts |= {"searched_again": len(again), "searched_whole": len(whole)}
    neighbors, similarity = expand(prepared, *found)
    return Found(neighbors, similarity, counts)


def _first_pass(
    prepared: Prepared,
    keep: int,
    settings: Settings,
    work: str | os.PathLike | None,
    progress: Callable[[int], None],
) -> Best:
    """`best_tiles` of all rows, resumed from and saved to the file `work`."""
    blocks = math.ceil(len(prepared.rows) / settings.block)
    held = settings.blocks_held(blocks, prepared.rows.width)
    key = [prepared.content, len(prepared.rows), keep, held, len(settings.devices)]
    key = repr([*key, settings.dtype, settings.block, settings.tile])
    done, state = _restore(work, key)
    progress(done)
    saved, took = time.perf_counter(), 0.0

    def advanced(products: int, snapshot: Callable[[], Best]) -> None:
        nonlocal done, saved, took
        done += products
        progress(products)
        if work and time.perf_counter() - saved > max(_SAVE_SECONDS, _PATIENCE * took):
            began = time.perf_counter()
            _save(work, key, done, snapshot())
            saved = time.perf_counter()
            took = saved - began

    best = tiles_lib.best_tiles(
        prepared.rows, keep=keep, settings=settings, state=state, advanced=advanced
    )
    if work:
        _save(work, key, done, best)
    return best


def _save(path: str | os.PathLike, key: str, done: int, state: Best) -> None:
    fields = {name: value for name, value in vars(state).items() if value is not None}
    with open(f"{path}.tmp", "wb") as file:
        np.savez(file, key=np.array(key), done=np.array(done), **fields)
    os.replace(f"{path}.tmp", path)


def _restore(path: str | os.PathLike | None, key: str) -> tuple[int, Best | None]:
    """(products done, state) of an interrupted search; (0, None) if there is none."""
    if not path or not os.path.exists(path):
        return 0, None
    try:
        with np.load(path) as file:
            content = dict(file)
        if str(content.pop("key")) != key:
            log.warning("%s is of other features or options: the search starts over.", path)
            return 0, None
        done = int(content.pop("done"))
        content |= {name: int(content[name]) for name in ("part", "query")}
        return done, Best(**content)
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s): the search starts over.", path, error)
        return 0, None


def mutual(found: Found) -> np.ndarray:
    """bool [N, k]: where a row is also among the k neighbors of its neighbor."""
    neighbors = found.neighbors
    mine = np.arange(len(neighbors))[:, None, None]
    chunks = (
        (neighbors[np.maximum(neighbors[s : s + CHUNK], 0)] == mine[s : s + CHUNK]).any(2)
        for s in range(0, len(neighbors), CHUNK)
    )
    return np.concatenate([*chunks, np.zeros((0, neighbors.shape[1]), bool)]) & (neighbors >= 0)
