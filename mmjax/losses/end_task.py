"""Losses of end tasks, and the statistics from which their metrics are computed.

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

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax import config, registry
from mmjax.errors import UserError, check_choice
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


def cross_entropies(
    outputs: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the cross entropy of each label or labeled pixel.

    Args:
      outputs: Logits [B, C] or [B, H, W, C].
      target: int [B] or [B, H, W, 1]; -1 is ignored.

    Returns:
      `(losses, labels, valid)`, each [B] or [B, H, W]: float32; int, 0 where ignored; bool.

    Raises:
      UserError: Shapes that do not fit.
    """
    labels = _labels(outputs, target)
    valid = labels >= 0
    labels = jnp.where(valid, labels, 0)
    logits = jnp.where(valid[..., None], outputs.astype(jnp.float32), 0.0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, labels, valid


def binary_cross_entropy(outputs: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean binary cross entropy of logits; 0 if all elements are ignored."""
    outputs, target, valid = _valid_values(outputs, target)
    return masked_mean(optax.sigmoid_binary_cross_entropy(outputs, target), valid)


def l1(outputs: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean of |o − l|; 0 if all elements are ignored."""
    outputs, target, valid = _valid_values(outputs, target)
    return masked_mean(jnp.abs(outputs - target), valid)


def weighted_l1(outputs: jax.Array, target: jax.Array) -> jax.Array:
    """Returns the mean of |o − l| · l, which emphasizes edges; 0 if all elements are ignored."""
    outputs, target, valid = _valid_values(outputs, target)
    return masked_mean(jnp.abs(outputs - target) * target, valid)


LOSSES: dict[str, Callable[..., jax.Array]] = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "l1": l1,
    "weighted_l1": weighted_l1,
}


# --------------------------------------------------------------------------------------------------
# Valid elements.


def _valid_values(outputs: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `(outputs, target, valid)` in float32, with 0 at ignored elements."""
    _check_values(outputs, target)
    valid = ~jnp.isnan(target)
    outputs = jnp.where(valid, outputs.astype(jnp.float32), 0.0)
    return outputs, jnp.where(valid, target.astype(jnp.float32), 0.0), valid


def _labels(outputs: jax.Array, target: jax.Array) -> jax.Array:
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


def _check_values(outputs: jax.Array, target: jax.Array) -> None:
    """Raises UserError unless targets are float maps of the shape of the outputs."""
    if target.shape != outputs.shape or not jnp.issubdtype(target.dtype, jnp.floating):
        raise UserError(
            f"Outputs of shape {outputs.shape} need target maps of the same shape; got "
            f"{target.dtype} {target.shape}. Check that the head, the loss and the data are of the "
            "same end task and image size."
        )


# --------------------------------------------------------------------------------------------------
# Statistics.

Statistics = dict[str, jax.Array]
Pair = tuple[float, float]

_DEFAULT_LOSSES = {
    "label": dict(name="cross_entropy"),
    "classes": dict(name="cross_entropy"),
    "binary": dict(name="binary_cross_entropy"),
    "values": dict(name="l1"),
}


def statistics(
    outputs: jax.Array,
    target: jax.Array,
    *,
    target_type: str,
    loss: Mapping[str, Any] | None = None,
    threshold: float = 0.05,
    depth: Pair = (1.0, 0.0),
) -> Statistics:
    """Returns {name: float32 [B, …]}, sums over the valid elements of each example.

    Metrics of a data set are not means of metrics of its examples (intersection over union, RMSE),
    and those of the paper depend on how examples are grouped into batches. So they are computed
    from these sums. Counts are exact for images of up to 2^24 pixels. Outputs that are not finite,
    and labels that the head has no class for, make all statistics of their example NaN.

    | `target_type` | statistics, and `loss` |
    |---|---|
    | label | `correct`, `correct5` (among the 5 largest) |
    | classes | `counts` [B, C, 3]: pixels in the intersection, predicted, labeled |
    | binary | `counts` [B, K, 3]: the same for each map; predicted where the logit is above 0 |
    | values | `valid`, `abs_error`, `squared_error`, `within` (|o − l| ≤ threshold); where l > 0: |
    |        | `positive`, `abs_relative` (|o − l| / l), `delta1` … `delta3` (max(o / l, l / o) |
    |        | < 1.25^i); for two maps: `flow_valid` (pixels), `endpoint_error`, `outliers` |
    |        | (endpoint error > 3 pixels and > 5 % of the length) |

    Args:
      outputs: Of one head; see the module.
      target: Of the data.
      target_type: Type of the target, as in the first column.
      loss: Name and options of the loss, as for `loss`; by default cross entropies or L1. It is
        computed for each example on its own.
      threshold: Of `within`.
      depth: (a, b) of the transformation a · x + b of outputs and targets that precedes the
        statistics where l > 0, for depths that are not in proportion to the distance.

    Raises:
      UserError: An unknown `target_type`, shapes that do not fit, or an invalid loss.
    """
    check_choice("target type", target_type, _DEFAULT_LOSSES)
    if target_type == "label":
        sums = _hits(outputs, target)
    elif target_type == "classes":
        sums = _class_counts(outputs, target)
    elif target_type == "binary":
        sums = _binary_counts(outputs, target)
    else:
        sums = _errors(outputs, target, threshold, depth)
    sums["loss"] = _losses(outputs, target, **(loss or _DEFAULT_LOSSES[target_type]))
    good = _all(jnp.isfinite(outputs))
    if target_type in ("label", "classes"):
        good &= _all(target < outputs.shape[-1])
    return {
        name: jnp.where(good.reshape((-1,) + (1,) * (value.ndim - 1)), value, jnp.nan)
        for name, value in sums.items()
    }


def statistic_names(target_type: str, num_outputs: int) -> tuple[str, ...]:
    """Returns the names of the results of `statistics`.

    Args:
      target_type: Type of the target.
      num_outputs: Number of classes, or of maps.

    Raises:
      UserError: An unknown `target_type`.
    """
    check_choice("target type", target_type, _DEFAULT_LOSSES)
    shapes = {"label": ((1, num_outputs), (1,)), "classes": ((1, 1, 1, num_outputs), (1, 1, 1, 1))}
    outputs, target = shapes.get(target_type, ((1, 1, 1, num_outputs),) * 2)
    dtype = jnp.int32 if target_type in shapes else jnp.float32
    result = jax.eval_shape(
        lambda *inputs: statistics(*inputs, target_type=target_type),
        jax.ShapeDtypeStruct(outputs, jnp.float32),
        jax.ShapeDtypeStruct(target, dtype),
    )
    return tuple(result)


def _losses(outputs: jax.Array, target: jax.Array, **options: Any) -> jax.Array:
    """Returns the loss of each example, [B]."""
    return jax.vmap(lambda o, t: loss(o[None], t[None], **options))(outputs, target)


def _all(condition: jax.Array) -> jax.Array:
    """Returns [B]: whether all elements of an example are true."""
    return condition.reshape(len(condition), -1).all(axis=1)


def _hits(outputs: jax.Array, target: jax.Array) -> Statistics:
    """Ties are not resolved in favor of the model, as in `mmjax.evals.metrics`."""
    _, labels, valid = cross_entropies(outputs, target)
    own = jnp.take_along_axis(outputs, labels[:, None], axis=1)
    greater, ties = (outputs > own).sum(axis=1), (outputs == own).sum(axis=1) - 1

    def hits(k):
        return jnp.where(valid, jnp.clip((k - greater) / (ties + 1.0), 0.0, 1.0), jnp.nan)

    return {"correct": hits(1), "correct5": hits(5)}


def _class_counts(outputs: jax.Array, target: jax.Array) -> Statistics:
    labels = _labels(outputs, target)[..., None]  # [B, H, W, 1]
    classes = jnp.arange(outputs.shape[-1])
    predicted = (outputs.argmax(axis=-1)[..., None] == classes) & (labels >= 0)
    return {"counts": _counts(predicted, labels == classes)}


def _binary_counts(outputs: jax.Array, target: jax.Array) -> Statistics:
    outputs, target, valid = _valid_values(outputs, target)
    return {"counts": _counts((outputs > 0) & valid, target != 0)}


def _counts(predicted: jax.Array, labeled: jax.Array) -> jax.Array:
    """Returns [B, K, 3] from bool [B, H, W, K]: intersection, predicted, labeled."""
    counts = [_sum_pixels(mask) for mask in (predicted & labeled, predicted, labeled)]
    return jnp.stack(counts, axis=-1)


def _sum_pixels(maps: jax.Array) -> jax.Array:
    """Returns sums [B, K] of maps [B, H, W, K]; of bools exactly."""
    if maps.dtype == bool:
        return maps.sum(axis=(1, 2), dtype=jnp.int32).astype(jnp.float32)
    # Rows first, because a long sum in float32 loses digits. XLA would merge two sums.
    return jax.lax.optimization_barrier(maps.sum(axis=2)).sum(axis=1)


def _errors(outputs: jax.Array, target: jax.Array, threshold: float, depth: Pair) -> Statistics:
    outputs, target, valid = _valid_values(outputs, target)
    error = jnp.abs(outputs - target)
    distance, actual = (depth[0] * values + depth[1] for values in (outputs, target))
    positive = valid & (actual > 0)
    relative = jnp.abs(distance - actual) / jnp.where(positive, actual, 1.0)
    maps = {
        "valid": valid,
        "abs_error": error,
        "squared_error": error**2,
        "within": valid & (error <= threshold),
        "positive": positive,
        "abs_relative": jnp.where(positive, relative, 0.0),
    }
    for i in (1, 2, 3):
        limit = 1.25**i
        maps[f"delta{i}"] = positive & (distance < limit * actual) & (actual < limit * distance)
    sums = {name: _sum_pixels(values).sum(axis=-1) for name, values in maps.items()}
    return sums | _flow(outputs, target, valid) if outputs.shape[-1] == 2 else sums


def _flow(outputs: jax.Array, target: jax.Array, valid: jax.Array) -> Statistics:
    """Statistics of displacements in pixels, of the KITTI 2015 benchmark."""
    both = valid.all(axis=-1, keepdims=True)
    error = jnp.linalg.norm(outputs - target, axis=-1, keepdims=True)
    length = jnp.linalg.norm(target, axis=-1, keepdims=True)
    maps = {
        "flow_valid": both,
        "endpoint_error": jnp.where(both, error, 0.0),
        "outliers": both & (error > 3.0) & (error > 0.05 * length),
    }
    return {name: _sum_pixels(values)[:, 0] for name, values in maps.items()}
