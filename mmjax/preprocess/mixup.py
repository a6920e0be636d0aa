"""Mixup on the device, inside jit (Zhang et al. 2018, arXiv 1710.09412)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def mixup(key: jax.Array, tree: Any, *, alpha: float, beta: float | None = None) -> Any:
    """Mixes every example with another one of the batch: λ x + (1 - λ) x'.

    λ ~ Beta(alpha, beta) and x' are sampled once per example, for all leaves: mix inputs and
    targets together.

    Args:
      key: A key.
      tree: float arrays [B, ...].
      alpha: First parameter of the Beta distribution. VATT uses 5.
      beta: Second parameter; None for `alpha`.

    Raises:
      TypeError: A leaf is not floating point, for example class indices. Convert these to targets
        [B, C] first.
    """
    size = jax.tree.leaves(tree)[0].shape[0]
    weight_key, order_key = jax.random.split(key)
    weight = jax.random.beta(weight_key, alpha, alpha if beta is None else beta, (size,))
    return mix(tree, weight, jax.random.permutation(order_key, size))


def mix(tree: Any, weight: jax.Array, other: jax.Array) -> Any:
    """Returns weight · x + (1 - weight) · x[other] of every leaf.

    Args:
      tree: float arrays [B, ...].
      weight: Weight of each example, [B].
      other: Index of the example to mix with, [B].

    Raises:
      TypeError: A leaf is not floating point.
    """

    def mix_leaf(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"mixup needs floating-point arrays; got {x.dtype} {x.shape}.")
        w = weight.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
        return w * x + (1 - w) * x[other]

    return jax.tree.map(mix_leaf, tree)
