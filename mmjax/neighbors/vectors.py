"""Features as the search for neighbors sees them: unit vectors, distinct, sorted."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError

CHUNK = 2**14  # rows read at a time


@dataclasses.dataclass(frozen=True)
class Rows:
    """Unit vectors in the order of the search: sorted by `group`, then by `tag`.

    Two rows may be neighbors if they are of one group and have different tags.

    Attributes:
      read: (numbers of rows) → float32 [n, D].
      group, tag: int32 [N].
      width: D.
    """

    read: Callable[[np.ndarray], np.ndarray]
    group: np.ndarray
    tag: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.group)

    @functools.cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(first, end) of each row's group, int64 [N] each."""
        first = np.searchsorted(self.group, self.group, "left")
        return first, np.searchsorted(self.group, self.group, "right")

    def padded(self, numbers: np.ndarray, size: int, dtype: Any = np.float32) -> tuple:
        """(vectors [size, D], groups, tags) of these rows; what is added has no group."""
        missing = size - len(numbers)
        return (
            np.pad(self.read(numbers).astype(jnp.dtype(dtype)), ((0, missing), (0, 0))),
            np.pad(self.group[numbers], (0, missing), constant_values=-1),
            np.pad(self.tag[numbers], (0, missing), constant_values=-1),
        )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What one pass over the features tells.

    Attributes:
      rows: the distinct vectors that can have neighbors, sorted.
      members: numbers of the features, sorted as `rows`, ascending among equals.
      first: int64 [len(rows) + 1], where the members of each row begin.
      zero, alone: how many features have no direction, or nobody else in their group.
      rounding: the largest distance of a vector from itself in bfloat16.
      content: a hash of the vectors.
      own: whether equal rows are neighbors of each other.
      count: N, rows of the features.
    """

    rows: Rows
    members: np.ndarray
    first: np.ndarray
    zero: int
    alone: int
    rounding: float
    content: str
    own: bool
    count: int


def unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; rows of zeros stay."""
    wide = np.asarray(features, np.float64)
    norm = np.sqrt((wide * wide).sum(1, keepdims=True))
    return (wide / np.where(norm > 0, norm, 1)).astype(np.float32)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float32 [n]: what similarity means here, of unit rows [n, D], summed in float64."""
    wide = first.astype(np.float64) * second.astype(np.float64)
    return wide.sum(1).clip(-1, 1).astype(np.float32)


def host_bytes() -> float:
    """Memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # not on Linux
        return 2**33


def prepare(
    features: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    same: np.ndarray | None = None,
    equal: bool = True,
    cache_bytes: float | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Prepared:
    """Reads the features once: checks them, finds equal ones, and sorts them for the search.

    Args:
      features: floating point [N, D]; may be a memory map.
      groups: int [N]; neighbors are of one group.
      same: int [N]; rows with the same number are never neighbors.
      equal: rows that are equal, bit for bit, may be neighbors (not where `same` is given and
        the same for them).
      cache_bytes: unit vectors that need less are kept in memory (a quarter of the machine's).
      progress: called with the number of rows that were read.

    Raises:
      UserError: features that are none, or not finite.
    """
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        hint = ", a row for each record"
        if features.ndim == 3:
            hint = f": neighbors of {features.shape[1]} variants of each record are not defined"
        raise UserError(
            f"Features are {features.dtype} {list(features.shape)}; expected floating point "
            f"[N, D]{hint}."
        )
    count, width = features.shape
    for name, array in (("groups", groups), ("same", same)):
        if array is not None and (
            array.shape != (count,) or not np.issubdtype(array.dtype, np.integer)
        ):
            raise UserError(
                f"{name} are {array.dtype} {list(array.shape)}; expected integers [{count}], one "
                "for each row of the features."
            )
    codes, rounding = np.zeros(count, np.uint64), 0.0
    factors = np.random.default_rng(0).integers(1, 2**63, width, np.uint64) * 2 + 1
    zero = np.zeros(count, bool)
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        read = np.asarray(features[part])
        if not np.isfinite(read).all():
            row = start + int(np.flatnonzero(~np.isfinite(read).all(1))[0])
            raise UserError(f"Row {row} of the features has values that are NaN or infinite.")
        vectors = unit(read) + np.float32(0)  # -0 is 0
        zero[part] = ~vectors.any(1)
        codes[part] = (vectors.view(np.uint32) * factors).sum(1, dtype=np.uint64)
        short = vectors.astype(jnp.bfloat16).astype(np.float32)
        rounding = max(rounding, float(np.linalg.norm(vectors - short, axis=1).max(initial=0)))
        progress(len(read))

    groups = _dense(groups, count)
    usable = np.flatnonzero(~zero)
    sizes = np.bincount(groups[usable], minlength=1)
    members = usable[sizes[groups[usable]] > 1]
    kinds = _dense(same, count)
    keys = (codes[members], kinds[members], groups[members])
    members = members[np.lexsort((members, *keys))]
    repeated = _repeated(features, members, (codes, kinds, groups))
    begin = np.flatnonzero(~repeated)
    leader = np.repeat(members[begin], np.diff([*begin, len(members)]))
    order = np.lexsort((members, leader, kinds[leader], groups[leader]))
    members, leader = members[order], leader[order]
    first = np.flatnonzero(np.diff(leader, prepend=-1))
    leaders = leader[first]
    read = _reader(features, leaders, host_bytes() / 4 if cache_bytes is None else cache_bytes)
    tag = np.arange(len(leaders)) if same is None else kinds[leaders]
    content = hashlib.sha256()
    for array in (codes, groups, kinds, zero):
        content.update(array.tobytes())
    return Prepared(
        rows=Rows(read, groups[leaders].astype(np.int32), tag.astype(np.int32), width),
        members=members,
        first=np.append(first, len(members)),
        zero=int(zero.sum()),
        alone=len(usable) - len(members),
        rounding=rounding,
        content=content.hexdigest(),
        own=equal and same is None,
        count=count,
    )


def _dense(values: np.ndarray | None, count: int) -> np.ndarray:
    """The numbers 0, 1, … in place of any, int64 [N]; zeros for None."""
    if values is None:
        return np.zeros(count, np.int64)
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def _repeated(features: np.ndarray, members: np.ndarray, keys: tuple) -> np.ndarray:
    """Which of the sorted members are equal to the one before: keys first, then all values."""
    repeated = np.zeros(len(members), bool)
    repeated[1:] = np.all([key[members[1:]] == key[members[:-1]] for key in keys], 0)
    maybe = np.flatnonzero(repeated)
    for start in range(0, len(maybe), CHUNK):
        here = maybe[start : start + CHUNK]
        one, other = (unit(features[members[here - back]]) for back in (0, 1))
        repeated[here] = (one == other).all(1)
    return repeated


def _reader(features: np.ndarray, leaders: np.ndarray, cache_bytes: float) -> Callable:
    """The function of `Rows.read`: from memory if the vectors fit there."""

    def read(numbers: np.ndarray) -> np.ndarray:
        return unit(features[leaders[numbers]])

    if len(leaders) * features.shape[1] * 4 > cache_bytes:
        return read
    held = np.empty((len(leaders), features.shape[1]), np.float32)
    for start in range(0, len(held), CHUNK):
        held[start : start + CHUNK] = read(np.arange(start, min(start + CHUNK, len(held))))
    return lambda numbers: held[numbers]


def expand(
    prepared: Prepared, neighbors: np.ndarray, similarity: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbors of distinct rows → of all features, by their numbers; arrays [N, k]."""
    k = neighbors.shape[1]
    shape = (prepared.count, k)
    result = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    sizes, total = np.diff(prepared.first), len(prepared.members)
    row_of = np.repeat(np.arange(len(sizes)), sizes)
    chunk = max(1, 2**22 // (k * k + k + 1))
    for start in range(0, total, chunk):
        records = prepared.members[start : start + chunk]
        row = row_of[start : start + chunk]
        numbers = _members_of(prepared, neighbors[row], k)  # [n, k, k]
        scores = np.broadcast_to(similarity[row][..., None], numbers.shape)
        numbers, scores = (x.reshape(len(row), -1) for x in (numbers, scores))
        if prepared.own and (sizes[row] > 1).any():
            mine = _members_of(prepared, row, k + 1)
            mine = np.where(mine == records[:, None], -1, mine)
            vectors = prepared.rows.read(row)
            cosine = np.broadcast_to(cosines(vectors, vectors)[:, None], mine.shape)
            numbers, scores = (
                np.concatenate(both, 1) for both in ((numbers, mine), (scores, cosine))
            )
        scores = np.where(numbers < 0, -np.inf, scores)
        order = np.lexsort((numbers, -scores), axis=-1)[:, :k]
        numbers, scores = (np.take_along_axis(x, order, 1) for x in (numbers, scores))
        result[0][records] = numbers
        result[1][records] = np.where(numbers < 0, 0, scores)
    return result


def _members_of(prepared: Prepared, rows: np.ndarray, most: int) -> np.ndarray:
    """Numbers of the features of rows [...], the lowest so many: [..., most]; -1: no more."""
    place = prepared.first[rows][..., None] + np.arange(most)
    there = (rows[..., None] >= 0) & (place < prepared.first[rows + 1][..., None])
    last = len(prepared.members) - 1
    return np.where(there, prepared.members[np.minimum(place, last)], -1)
