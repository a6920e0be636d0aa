"""Encodes each distinct input once, in batches of a fixed size.

The texts and images of a segmentation step repeat: pairs of an image and a class share the image,
and a negative may be a copy of another text. Runs on the host, around a compiled function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError


def find_distinct(inputs: np.ndarray | Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns where each distinct input occurs first, and which of them each input equals.

    Args:
      inputs: An array [N, …], compared along the first axis; or N hashable keys.

    Returns:
      `(first, index)`: int [U] in increasing order, and int [N] so that inputs[first][index]
      equals inputs.
    """
    keys = [x.tobytes() if isinstance(x, np.ndarray) else x for x in inputs]
    order = {key: position for position, key in enumerate(dict.fromkeys(keys))}
    index = np.array([order[key] for key in keys], int)
    first = np.unique(index, return_index=True)[1]
    return first, index


def encode_distinct(
    encode: Callable[[np.ndarray], Any],
    inputs: np.ndarray,
    *,
    batch_size: int,
    keys: Sequence[Any] | None = None,
) -> Any:
    """Returns the encodings of inputs, each distinct one of which is encoded once.

    The last batch is padded with copies of an input. All shapes depend only on N and
    `batch_size`, so that nothing is compiled again if the number of distinct inputs changes.

    Args:
      encode: Function from a batch [batch_size, …] to an array or a tree of arrays
        [batch_size, …]. Compile it with `jax.jit`.
      inputs: [N, …], N at least 1.
      batch_size: Number of inputs per call.
      keys: N hashable values that are equal if inputs are, to save comparing large inputs.

    Returns:
      The encodings, [N, …].

    Raises:
      UserError: No inputs, or a batch size less than 1.
    """
    if batch_size < 1 or not len(inputs):
        raise UserError(
            f"encode_distinct needs at least one input and a batch size of at least 1; got "
            f"{len(inputs)} inputs and batch_size={batch_size}."
        )
    inputs = np.asarray(inputs)
    first, index = find_distinct(inputs if keys is None else keys)
    starts = range(0, len(first), batch_size)
    batches = [encode(inputs[np.resize(first[n : n + batch_size], batch_size)]) for n in starts]
    # Unused batches repeat the last one: their number must not depend on the data.
    batches += batches[-1:] * (-(-len(inputs) // batch_size) - len(batches))
    return _gather(batches, index)


@jax.jit
def _gather(batches: list[Any], index: jax.Array) -> Any:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[index], *batches)
