"""Losses of end tasks, and statistics of one example from which their metrics are computed.

A head predicts one of these targets (see `mmjax.end_tasks.declaration`):

    label     outputs [B, C]         target int [B]; -1 is ignored
    classes   outputs [B, H, W, C]   target int [B, H, W, 1]; -1 is ignored
    binary    outputs [B, H, W, K]   target [B, H, W, K] in {0, 1}; NaN is ignored
    values    outputs [B, H, W, K]   target [B, H, W, K]; NaN is ignored

Ignored elements affect neither values nor gradients. All functions are for one head; for several
on the same target, map them: `jax.vmap(lambda outputs: loss(outputs, target, name="l1"))`.

Source: Kotar et al. 2021, arXiv 2103.14005 (pyVTAB).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax import config, registry
from mmjax.errors import UserError
from mmjax.losses.classification import masked_mean


def loss(outputs: jax.Array, target: jax.Array, *, name: str, **options: Any) -> jax.Array:
    """Returns the loss of a batch, a float32 scalar.

    Args:
      outputs: Of a head; see above.
      target: Of the data; see above.
      name: A key of `LOSSES`, or `package.module:Name` of a function `(outputs, target, *, …)`.
      **options: Its keywords.

    Raises:
      UserError: An unknown name or option, or shapes that do not fit.
    """
    function = registry.resolve("config.loss.name", name, LOSSES)
    keywords = config.keywords(
        function, options, "loss", provided=("outputs", "target"), owner=name
    )
    return function(outputs, target, **keywords)


def cross_entropy(
    outputs: jax.Array,
    target: jax.Array,
    *,
    class_weights: tuple[float, ...] | None = None,
    ignore: int | None = None,
) -> jax.Array:
    """Returns the mean cross entropy over labels or labeled pixels; 0 if all are ignored.

    Args:
      outputs: Logits [B, C] or [B, H, W, C].
      target: int [B] or [B, H, W, 1].
      class_weights: A weight w for each class. The loss is Σ w_y ℓ / Σ w_y.
      ignore: A class that is ignored, besides -1.

    Raises:
      UserError: Another number of weights than classes, or shapes that do not fit.
    """
    losses, labels, valid = cross_entropies(outputs, target)
    weights = (valid if ignore is None else valid & (labels != ignore)).astype(jnp.float32)
    if class_weights is not None:
        num_classes = outputs.shape[-1]
        if len(class_weights) != num_classes or min(class_weights) < 0:
            raise UserError(
                f"config.loss.class_weights={tuple(class_weights)} must be {num_classes} numbers "
                f"that are at least 0, one for each class of the head."
            )
        weights *= jnp.asarray(class_weights, jnp.float32)[labels]
    return masked_mean(losses, weights)


def binary_cross_entropy(outputs: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean binary cross entropy of logits; 0 if all elements are ignored."""
    outputs, target, valid = valid_values(outputs, target)
    return masked_mean(optax.sigmoid_binary_cross_entropy(outputs, target), valid)


def l1(outputs: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean of |o − l|; 0 if all elements are ignored."""
    outputs, target, valid = valid_values(outputs, target)
    return masked_mean(jnp.abs(outputs - target), valid)


def weighted_l1(outputs: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean of |o − l| · l, which emphasizes edges; 0 if all elements are ignored."""
    outputs, target, valid = valid_values(outputs, target)
    return masked_mean(jnp.abs(outputs - target) * target, valid)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "l1": l1,
    "weighted_l1": weighted_l1,
}


def cross_entropies(
    outputs: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `(losses, labels, valid)`, each [B] or [B, H, W]; ignored labels become 0."""
    labels = check_labels(outputs, target)
    valid = labels >= 0
    labels = jnp.where(valid, labels, 0)
    logits = jnp.where(valid[..., None], outputs.astype(jnp.float32), 0.0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, labels, valid


def valid_values(outputs: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `(outputs, target, valid)` in float32, with 0 at ignored elements."""
    check_values(outputs, target)
    valid = ~jnp.isnan(target)
    outputs = jnp.where(valid, outputs.astype(jnp.float32), 0.0)
    return outputs, jnp.where(valid, target.astype(jnp.float32), 0.0), valid


def check_labels(outputs: jax.Array, target: jax.Array) -> jax.Array:
    """Returns labels [B] or [B, H, W] of the outputs' shape without classes.

    Raises:
      UserError: Targets of another shape or type.
    """
    labels = target[..., 0] if target.ndim == 4 else target
    if labels.shape != outputs.shape[:-1] or not jnp.issubdtype(target.dtype, jnp.integer):
        raise UserError(
            f"Outputs of shape {outputs.shape} need class labels of shape {outputs.shape[:-1]}; "
            f"got {target.dtype} {target.shape}. Check that the head, the loss and the data are of "
            "the same end task and image size."
        )
    return labels


def check_values(outputs: jax.Array, target: jax.Array) -> None:
    """Raises UserError unless targets are float maps of the shape of the outputs."""
    if target.shape != outputs.shape or not jnp.issubdtype(target.dtype, jnp.floating):
        raise UserError(
            f"Outputs of shape {outputs.shape} need target maps of the same shape; got "
            f"{target.dtype} {target.shape}. Check that the head, the loss and the data are of the "
            "same end task and image size."
        )
