"""Sufficient statistics of end tasks: sums over one example, from which metrics are computed.

Metrics of a data set are not means of metrics of its examples (intersection over union, RMSE), and
those of the paper depend on how examples are grouped into batches. So the device computes these
sums, and `mmjax.evals.end_task_metrics` all metrics. Counts are exact for images of up to 2^24
pixels. Outputs that are not finite, and labels that the head has no class for, make all statistics
of their example NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mmjax.errors import choose
from mmjax.losses.end_task import check_labels, cross_entropies, valid_values

Statistics = dict[str, jax.Array]


def statistics(
    outputs: jax.Array, target: jax.Array, *, target_type: str, threshold: float = 0.05
) -> Statistics:
    """Returns {name: float32 [B, …]}, sums over the valid elements of each example.

    | `target_type` | statistics |
    |---|---|
    | label | `correct`, `correct5` (among the 5 largest), `loss` (cross entropy) |
    | classes | `counts` [B, C, 3]: pixels in the intersection, predicted, labeled |
    | binary | `counts` [B, K, 3]: the same for each map; predicted where the logit is above 0 |
    | values | `valid`, `abs_error`, `squared_error`, `within` (|o − l| ≤ threshold); where l > 0: |
    |        | `positive`, `abs_relative` (|o − l| / l), `delta1` … `delta3` (max(o / l, l / o) |
    |        | < 1.25^i); for two maps: `flow_valid` (pixels), `endpoint_error`, `outliers` |
    |        | (endpoint error > 3 pixels and > 5 % of the length) |

    Args:
      outputs: Of one head; see `mmjax.losses.end_task`.
      target: Of the data.
      target_type: Type of the target, as in the first column.
      threshold: Of `within`.

    Raises:
      UserError: An unknown `target_type`, or shapes that do not fit.
    """
    functions: dict[str, Callable[[], Statistics]] = {
        "label": lambda: _label(outputs, target),
        "classes": lambda: _classes(outputs, target),
        "binary": lambda: _binary(outputs, target),
        "values": lambda: _values(outputs, target, threshold),
    }
    sums = choose("target type", target_type, functions)()
    good = _all(jnp.isfinite(outputs))
    if target_type in ("label", "classes"):
        good &= _all(target < outputs.shape[-1])
    return {
        name: jnp.where(good.reshape((-1,) + (1,) * (value.ndim - 1)), value, jnp.nan)
        for name, value in sums.items()
    }


def _all(condition: jax.Array) -> jax.Array:
    """Returns [B]: whether all elements of an example are true."""
    return condition.reshape(len(condition), -1).all(axis=1)


def _label(outputs: jax.Array, target: jax.Array) -> Statistics:
    """Ties are not resolved in favor of the model, as in `mmjax.evals.metrics`."""
    losses, labels, valid = cross_entropies(outputs, target)
    own = jnp.take_along_axis(outputs, labels[:, None], axis=1)
    greater, ties = (outputs > own).sum(axis=1), (outputs == own).sum(axis=1) - 1

    def hits(k):
        return jnp.where(valid, jnp.clip((k - greater) / (ties + 1.0), 0.0, 1.0), jnp.nan)

    return {
        "correct": hits(1),
        "correct5": hits(5),
        "loss": jnp.where(valid, losses, jnp.nan),
    }


def _classes(outputs: jax.Array, target: jax.Array) -> Statistics:
    labels = check_labels(outputs, target)[..., None]  # [B, H, W, 1]
    classes = jnp.arange(outputs.shape[-1])
    predicted = (outputs.argmax(axis=-1)[..., None] == classes) & (labels >= 0)
    return {"counts": _counts(predicted, labels == classes)}


def _binary(outputs: jax.Array, target: jax.Array) -> Statistics:
    outputs, target, valid = valid_values(outputs, target)
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


def _values(outputs: jax.Array, target: jax.Array, threshold: float) -> Statistics:
    outputs, target, valid = valid_values(outputs, target)
    error = jnp.abs(outputs - target)
    positive = target > 0  # false where not valid
    maps = {
        "valid": valid,
        "abs_error": error,
        "squared_error": error**2,
        "within": valid & (error <= threshold),
        "positive": positive,
        "abs_relative": jnp.where(positive, error / jnp.where(positive, target, 1.0), 0.0),
    }
    for i in (1, 2, 3):
        limit = 1.25**i
        maps[f"delta{i}"] = positive & (outputs < limit * target) & (target < limit * outputs)
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
