"""Prepares features for a search: unit vectors, without duplicates, sorted by group."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.neighbors.settings import CHUNK, host_bytes


@dataclasses.dataclass(frozen=True)
class SortedVectors:
    """Distinct unit vectors, sorted by `group`, then by `tag`.

    Two vectors may be neighbors if they are of one group and have different tags.

    Attributes:
      read: Function from indices int [n] to vectors float32 [n, D].
      group: int32 [N].
      tag: int32 [N].
      width: Number of values of a vector, D.
    """

    read: Callable[[np.ndarray], np.ndarray]
    group: np.ndarray
    tag: np.ndarray
    width: int

    def __len__(self) -> int:
        return len(self.group)

    @functools.cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """The first index, and the last plus 1, of the group of each vector; int64 [N] each."""
        first = np.searchsorted(self.group, self.group, "left")
        return first, np.searchsorted(self.group, self.group, "right")

    def padded(self, indices: np.ndarray, size: int, dtype: Any = np.float32) -> tuple:
        """Returns `(vectors [size, D], groups, tags)`; the group of padding is -1."""
        missing = size - len(indices)
        return (
            np.pad(self.read(indices).astype(jnp.dtype(dtype)), ((0, missing), (0, 0))),
            np.pad(self.group[indices], (0, missing), constant_values=-1),
            np.pad(self.tag[indices], (0, missing), constant_values=-1),
        )


@dataclasses.dataclass(frozen=True)
class PreparedFeatures:
    """Features that are ready for a search.

    Attributes:
      vectors: The distinct unit vectors that can have neighbors.
      members: Indices of the features with each vector, in the order of `vectors`; ascending among
        duplicates.
      starts: int64 [len(vectors) + 1]: position in `members` of the first member of each vector.
      num_zero: Number of features that are zero.
      num_alone: Number of features that have no other feature in their group.
      rounding_error: The largest distance of a vector from its rounded value in bfloat16.
      fingerprint: Hash of the features, groups and duplicate ids.
      duplicates_are_neighbors: Whether features with the same vector are neighbors of each other.
      num_features: Number of features, N.
    """

    vectors: SortedVectors
    members: np.ndarray
    starts: np.ndarray
    num_zero: int
    num_alone: int
    rounding_error: float
    fingerprint: str
    duplicates_are_neighbors: bool
    num_features: int


def unit_vectors(features: np.ndarray) -> np.ndarray:
    """Returns features [n, D] scaled to length 1, as float32; zeros stay zeros."""
    wide = np.asarray(features, np.float64)
    norm = np.sqrt((wide * wide).sum(1, keepdims=True))
    return (wide / np.where(norm > 0, norm, 1)).astype(np.float32)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the cosines, float32 [n], of unit vectors [n, D], accumulated in float64."""
    wide = first.astype(np.float64) * second.astype(np.float64)
    return wide.sum(1).clip(-1, 1).astype(np.float32)


def prepare(
    features: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    duplicate_ids: np.ndarray | None = None,
    allow_equal: bool = True,
    cache_bytes: float | None = None,
    progress: Callable[[int], None] = lambda count: None,
    name: str = "features",
) -> PreparedFeatures:
    """Reads features once, checks them, finds duplicates, and sorts them for the search.

    Args:
      features: Floating point [N, D]; may be a memory map.
      groups: int [N]: only features of the same group are neighbors.
      duplicate_ids: int [N]: features with the same id are never neighbors.
      allow_equal: Whether features that are equal, bit for bit, may be neighbors. Without effect if
        `duplicate_ids` is set.
      cache_bytes: Unit vectors that need less memory are kept in memory. Default: a quarter of the
        machine's memory.
      progress: Called with the number of features read since the last call.
      name: Name of the features for messages, for example their file.

    Raises:
      UserError: Arrays of a wrong shape or type, or features that are not finite.
    """
    _check_arrays(features, groups=groups, duplicate_ids=duplicate_ids, name=name)
    count, width = features.shape
    hashes, zero, rounding_error = _scan(features, progress, name)
    group, duplicate = (_dense(values, count) for values in (groups, duplicate_ids))
    usable = np.flatnonzero(~zero)
    sizes = np.bincount(group[usable], minlength=1)
    members = usable[sizes[group[usable]] > 1]
    members = members[np.lexsort((members, hashes[members], duplicate[members], group[members]))]
    repeated = _equals_previous(features, members, (hashes, duplicate, group))
    begin = np.flatnonzero(~repeated)
    leader = np.repeat(members[begin], np.diff([*begin, len(members)]))
    order = np.lexsort((members, leader, duplicate[leader], group[leader]))
    members, leader = members[order], leader[order]
    starts = np.flatnonzero(np.diff(leader, prepend=-1))
    leaders = leader[starts]
    cache_bytes = host_bytes() / 4 if cache_bytes is None else cache_bytes
    tag = np.arange(len(leaders)) if duplicate_ids is None else duplicate[leaders]
    fingerprint = hashlib.sha256()
    for array in (hashes, group, duplicate, zero):
        fingerprint.update(array.tobytes())
    return PreparedFeatures(
        vectors=SortedVectors(
            _reader(features, leaders, cache_bytes),
            group[leaders].astype(np.int32),
            tag.astype(np.int32),
            width,
        ),
        members=members,
        starts=np.append(starts, len(members)),
        num_zero=int(zero.sum()),
        num_alone=len(usable) - len(members),
        rounding_error=rounding_error,
        fingerprint=fingerprint.hexdigest(),
        duplicates_are_neighbors=allow_equal and duplicate_ids is None,
        num_features=count,
    )


def _check_arrays(features: np.ndarray, *, name: str, **integers: np.ndarray | None) -> None:
    """Raises UserError unless `features` is floating point [N, D] and the others integers [N]."""
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        hint = "one vector per record"
        if features.ndim == 3:
            hint = f"not {features.shape[1]} variants per record"
        raise UserError(
            f"{name} must be floating point [N, D], {hint}; got {features.dtype} "
            f"{list(features.shape)}."
        )
    count = len(features)
    for key, array in integers.items():
        if array is None:
            continue
        if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
            raise UserError(
                f"{key} must be integers [{count}], one per feature; got {array.dtype} "
                f"{list(array.shape)}."
            )


def _scan(
    features: np.ndarray, progress: Callable[[int], None], name: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Reads all features and checks that they are finite.

    Returns:
      `(hashes, zero, rounding_error)`: a hash uint64 [N] of each unit vector, bool [N] of features
      that are zero, and the largest rounding error in bfloat16.
    """
    count, width = features.shape
    hashes, zero, rounding_error = np.zeros(count, np.uint64), np.zeros(count, bool), 0.0
    factors = np.random.default_rng(0).integers(1, 2**63, width, np.uint64) * 2 + 1
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        chunk = np.asarray(features[part])
        if not np.isfinite(chunk).all():
            row, column = np.argwhere(~np.isfinite(chunk))[0].tolist()
            raise UserError(
                f"{name}[{start + row}, {column}] is {chunk[row, column]}: features must be "
                "finite, without NaN. Compute the features again."
            )
        vectors = unit_vectors(chunk) + np.float32(0)  # makes -0 equal to 0
        zero[part] = ~vectors.any(1)
        hashes[part] = (vectors.view(np.uint32) * factors).sum(1, dtype=np.uint64)
        rounded = vectors.astype(jnp.bfloat16).astype(np.float32)
        errors = np.linalg.norm(vectors - rounded, axis=1)
        rounding_error = max(rounding_error, float(errors.max(initial=0)))
        progress(len(chunk))
    return hashes, zero, rounding_error


def _dense(values: np.ndarray | None, count: int) -> np.ndarray:
    """Returns values renumbered as 0, 1, ..., int64 [N]; zeros for None."""
    if values is None:
        return np.zeros(count, np.int64)
    return np.unique(values, return_inverse=True)[1].reshape(-1)


def _equals_previous(features: np.ndarray, members: np.ndarray, keys: tuple) -> np.ndarray:
    """Returns bool [M]: whether a sorted member equals its predecessor in all keys and values."""
    repeated = np.zeros(len(members), bool)
    repeated[1:] = np.all([key[members[1:]] == key[members[:-1]] for key in keys], 0)
    candidates = np.flatnonzero(repeated)
    for start in range(0, len(candidates), CHUNK):
        chunk = candidates[start : start + CHUNK]
        own, previous = (unit_vectors(features[members[chunk - back]]) for back in (0, 1))
        repeated[chunk] = (own == previous).all(1)
    return repeated


def _reader(features: np.ndarray, leaders: np.ndarray, cache_bytes: float) -> Callable:
    """Returns the function `SortedVectors.read`; it reads from memory if the vectors fit."""

    def read(indices: np.ndarray) -> np.ndarray:
        return unit_vectors(features[leaders[indices]])

    if len(leaders) * features.shape[1] * 4 > cache_bytes:
        return read
    cached = np.empty((len(leaders), features.shape[1]), np.float32)
    for start in range(0, len(cached), CHUNK):
        cached[start : start + CHUNK] = read(np.arange(start, min(start + CHUNK, len(cached))))
    return lambda indices: cached[indices]


def expand(
    prepared: PreparedFeatures, neighbors: np.ndarray, similarity: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Converts the neighbors of distinct vectors to neighbors of all features.

    Args:
      prepared: The features.
      neighbors: int [len(vectors), k]: indices of vectors, nearest first; -1 for none.
      similarity: float32 [len(vectors), k].

    Returns:
      `(neighbors, similarity)`: int32 [N, k] indices of features, and float32 [N, k].
    """
    k = neighbors.shape[1]
    shape = (prepared.num_features, k)
    result = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    sizes, total = np.diff(prepared.starts), len(prepared.members)
    vector_of = np.repeat(np.arange(len(sizes)), sizes)
    chunk = max(1, 2**22 // (k * k + k + 1))
    for start in range(0, total, chunk):
        features = prepared.members[start : start + chunk]
        vector = vector_of[start : start + chunk]
        indices = _members_of(prepared, neighbors[vector], k)  # [n, k, k]
        scores = np.broadcast_to(similarity[vector][..., None], indices.shape)
        indices, scores = (x.reshape(len(vector), -1) for x in (indices, scores))
        if prepared.duplicates_are_neighbors and (sizes[vector] > 1).any():
            equal = _members_of(prepared, vector, k + 1)
            equal = np.where(equal == features[:, None], -1, equal)
            values = prepared.vectors.read(vector)
            cosine = np.broadcast_to(cosines(values, values)[:, None], equal.shape)
            indices = np.concatenate([indices, equal], 1)
            scores = np.concatenate([scores, cosine], 1)
        scores = np.where(indices < 0, -np.inf, scores)
        order = np.lexsort((indices, -scores), axis=-1)[:, :k]
        indices, scores = (np.take_along_axis(x, order, 1) for x in (indices, scores))
        result[0][features] = indices
        result[1][features] = np.where(indices < 0, 0, scores)
    return result


def _members_of(prepared: PreparedFeatures, vectors: np.ndarray, limit: int) -> np.ndarray:
    """Returns the lowest feature indices of vectors [...], as int [..., limit]; -1 for none."""
    position = prepared.starts[vectors][..., None] + np.arange(limit)
    exists = (vectors[..., None] >= 0) & (position < prepared.starts[vectors + 1][..., None])
    last = len(prepared.members) - 1
    return np.where(exists, prepared.members[np.minimum(position, last)], -1)
