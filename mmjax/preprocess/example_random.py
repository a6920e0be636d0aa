"""Random numbers for augmentation, one key per example.

The key of an example is derived from the key of the step and the id of the example. Its
augmentation therefore does not depend on its position in the batch or on the other examples, and
is another one at each visit.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mmjax.errors import UserError


def example_keys(key: jax.Array, batch: Mapping[str, jax.Array], count: int) -> jax.Array:
    """Returns one key per example of a batch, [B].

    Args:
      key: Key of the step.
      batch: The batch. Its fields `example_id` and, in mixtures, `source` identify an example.
        Without them, examples are identified by their position in the global batch.
      count: Number of examples B.
    """
    ids = batch.get("example_id")
    keys = fold_in(jnp.broadcast_to(key, (count,)), jnp.arange(count) if ids is None else ids)
    return fold_in(keys, batch["source"]) if "source" in batch else keys


def fold_in(keys: jax.Array, data: jax.Array) -> jax.Array:
    """Returns `jax.random.fold_in` of each key [B] with each integer [B]."""
    return jax.vmap(jax.random.fold_in)(keys, data)


def split(keys: jax.Array, count: int) -> tuple[jax.Array, ...]:
    """Returns `count` arrays of new keys, each [B] for keys [B]."""
    return tuple(jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys))


def uniform(keys: jax.Array, low: float = 0.0, high: float = 1.0) -> jax.Array:
    """Returns one float32 in [low, high) per key, [B]."""
    return jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, low, high))(keys)


def apply_to_some(
    keys: jax.Array, probability: float, changed: jax.Array, images: jax.Array
) -> jax.Array:
    """Returns each image of `changed` with some probability, else that of `images`.

    Args:
      keys: One key per image, [B].
      probability: Probability of `changed`.
      changed, images: [B, H, W, C].
    """
    return jnp.where(per_image(uniform(keys) < probability), changed, images)


def per_image(values: jax.Array) -> jax.Array:
    """Returns values [B] as [B, 1, 1, 1]."""
    return values[:, None, None, None]


def check_range(
    name: str, value: tuple[float, float] | None, lowest: float, highest: float
) -> None:
    """Raises UserError unless `value` is None or (low, high) within [lowest, highest]."""
    if value is None:
        return
    if len(value) != 2 or not lowest <= value[0] <= value[1] <= highest:
        raise UserError(
            f"{name}={value} must be (low, high) with {lowest:g} <= low <= high <= {highest:g}."
        )
