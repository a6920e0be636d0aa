"""Computation over blocks of queries, so that the queries × targets matrix is never complete."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np

MAX_BLOCK = 1024  # queries
MAX_SCORES = 2**24  # entries of a block's queries × targets matrix


def map_blocks(
    function: Callable[..., Sequence[jax.Array]],
    queries: Sequence[np.ndarray],
    *,
    num_targets: int,
) -> list[np.ndarray]:
    """Returns the results of a function of queries, computed in blocks of equal size.

    The last block is padded with zeros, so that the function is compiled for one shape.

    Args:
      function: Maps arrays [B, …] to several arrays [B, …].
      queries: Arrays [Q, …] that are split into blocks.
      num_targets: Number of targets that each query is compared with.

    Returns:
      Arrays [Q, …].
    """
    total = len(queries[0])
    block = max(1, min(total, MAX_BLOCK, MAX_SCORES // num_targets))
    results = []
    for start in range(0, total, block):
        parts = [array[start : start + block] for array in queries]
        padding = block - len(parts[0])
        parts = [np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for x in parts]
        results.append([np.asarray(x)[: block - padding] for x in function(*parts)])
    return [np.concatenate(column) for column in zip(*results, strict=True)]
