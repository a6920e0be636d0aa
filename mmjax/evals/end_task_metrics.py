"""Metrics of end tasks, in NumPy, from the statistics of all examples.

`mmjax.losses.end_task.statistics` computes one array per statistic, with the examples on the first
axis: [N, …], or [N, heads, …] for several heads. Every metric is computed for all heads at once and
has the shape of the heads, () for one. A head with outputs that are not finite has NaN.

The metrics that start with `paper_` are those of pyVTAB's published code. They depend on the order
of the examples and on the batch size, and are larger than those of the whole data set: an image
without a class counts as 1 in `paper_iou`. Use them only to compare with published numbers.

Source: Kotar et al. 2021, arXiv 2103.14005, and its published code.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from mmjax import config
from mmjax.end_tasks.declaration import EndTask
from mmjax.errors import UserError, choose

Statistics = Mapping[str, np.ndarray]
Metrics = dict[str, np.ndarray]

# Whether larger values of a metric are better.
HIGHER_IS_BETTER: dict[str, bool] = {
    "top1": True,
    "top5": True,
    "mean_per_class": True,
    "paper_top1": True,
    "loss": False,
    "miou": True,
    "pixel_accuracy": True,
    "paper_iou": True,
    "binary_iou": True,
    "paper_binary_iou": True,
    "l1": False,
    "rmse": False,
    "abs_rel": False,
    "delta1": True,
    "delta2": True,
    "delta3": True,
    "within": True,
    "paper_within": True,
    "epe": False,
    "f1_all": False,
}
_EPSILON = 1e-8  # of the paper's intersection over union


def metrics(
    statistics: Statistics,
    *,
    target_type: str,
    labels: np.ndarray | None = None,
    batch_size: int = 0,
    drop_last: bool = False,
    void: int | None = 0,
) -> Metrics:
    """Returns all metrics that the statistics of a data set allow.

    Args:
      statistics: {name: [N, …] or [N, heads, …]}.
      target_type: As in `mmjax.losses.end_task.statistics`.
      labels: int [N], for `mean_per_class`.
      batch_size: Of the paper's metrics that depend on it; 0 omits them.
      drop_last: Whether those ignore a last batch with fewer examples.
      void: A class of pixels that is not scored, or None.

    Raises:
      UserError: An unknown `target_type`, or no example.
    """
    function = choose(
        "target type",
        target_type,
        {
            "label": label_metrics,
            "classes": class_metrics,
            "binary": binary_metrics,
            "values": value_metrics,
        },
    )
    statistics = {name: np.asarray(value, np.float64) for name, value in statistics.items()}
    if not len(next(iter(statistics.values()))):
        raise UserError("No examples to compute metrics from. Check the split of the data.")
    options = dict(labels=labels, batch_size=batch_size, drop_last=drop_last, void=void)
    known = config.parameters(function)
    result = function(statistics, **{key: options[key] for key in options if key in known})
    return result | {"loss": statistics["loss"].mean(axis=0)}


def compute(
    statistics: Statistics,
    end_task: EndTask,
    *,
    labels: np.ndarray | None = None,
    paper_batch: int = 0,
) -> Metrics:
    """Returns the metrics of an end task.

    Args:
      statistics: {name: [N, …] or [N, heads, …]}.
      end_task: The end task.
      labels: int [N], for `mean_per_class`.
      paper_batch: Batch size of the paper's metrics, with which pyVTAB evaluated; 0 omits them. As
        there, a last, smaller batch is ignored where features are computed before training.
    """
    return metrics(
        statistics,
        target_type=end_task.target,
        labels=labels,
        batch_size=paper_batch,
        drop_last=end_task.encode_once,
    )


def confidence(values: np.ndarray) -> float:
    """Returns half of the 95 % confidence interval of the mean of values of several seeds.

    The interval is that of Student's t distribution; NaN for one value.
    """
    count = len(values)
    if count < 2:
        return float("nan")
    quantile = stats.t.ppf(0.975, count - 1)
    return float(quantile * np.std(values, ddof=1) / np.sqrt(count))


# --------------------------------------------------------------------------------------------------
# One class per example.


def label_metrics(
    statistics: Statistics,
    *,
    labels: np.ndarray | None = None,
    batch_size: int = 0,
    drop_last: bool = False,
) -> Metrics:
    """Returns `top1` and `top5` accuracy, and `mean_per_class` with `labels`.

    `mean_per_class` is the top-1 accuracy of each class, averaged over the classes that occur. With
    a batch size, `paper_top1` is the accuracy of the examples in batches: with `drop_last`, without
    those of a last, smaller batch.
    """
    correct = statistics["correct"]
    result = {
        "top1": correct.mean(axis=0),
        "top5": statistics["correct5"].mean(axis=0),
    }
    if batch_size:
        examples, sizes = _batches(correct, batch_size, drop_last)
        result["paper_top1"] = _ratio(examples.sum(axis=0), sizes.sum())
    if labels is not None:
        _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        sums = np.zeros((len(counts), *correct.shape[1:]))
        np.add.at(sums, index, correct)
        result["mean_per_class"] = np.mean((sums.T / counts).T, axis=0)
    return result


# --------------------------------------------------------------------------------------------------
# One class per pixel. Counts are [N, …, C, 3]: intersection, predicted, labeled.


def class_metrics(
    statistics: Statistics, *, batch_size: int = 0, drop_last: bool = False, void: int | None = 0
) -> Metrics:
    """Returns `miou` and `pixel_accuracy`, and `paper_iou` with a batch size.

    `miou` is the mean of `class_iou` over classes that occur in the labels, without `void`;
    `pixel_accuracy` the fraction of valid pixels, of any class, that have the right one.
    """
    counts = statistics["counts"]
    totals = counts.sum(axis=0)
    scored = (totals[..., 2] > 0) & _is_scored(totals.shape[-2], void)
    result = {
        "miou": _mean_where(class_iou(statistics), scored),
        "pixel_accuracy": _ratio(totals[..., 0].sum(axis=-1), totals[..., 2].sum(axis=-1)),
    }
    if batch_size:
        result["paper_iou"] = paper_iou(
            counts, batch_size=batch_size, drop_last=drop_last, void=void
        )
    return result


def class_iou(statistics: Statistics) -> np.ndarray:
    """Returns Σ intersection / Σ union of each class over all examples, […, C].

    It is NaN for a class that is neither labeled nor predicted.
    """
    totals = np.asarray(statistics["counts"], np.float64).sum(axis=0)
    return _ratio(totals[..., 0], _union(totals))


def paper_iou(
    counts: np.ndarray, *, batch_size: int, drop_last: bool = False, void: int | None = 0
) -> np.ndarray:
    """Returns the intersection over union of the paper, a mean over batches.

    The value of a batch is the mean over the classes in its labels, without `void`, of the mean
    over *all* its images of (I + 1e-8) / (U + 1e-8). So an image with neither labels nor
    predictions of a class counts as 1. Batches are weighted by their number of examples. A batch
    without any class makes the result NaN, and so does a data set without batches.

    Args:
      counts: [N, …, C, 3] in the order of the examples.
      batch_size: Number of examples per batch.
      drop_last: Whether to ignore a last batch with fewer examples.
      void: A class that is not scored.
    """
    counts, sizes = _batches(counts, batch_size, drop_last)
    ratios = _sum_batches((counts[..., 0] + _EPSILON) / (_union(counts) + _EPSILON), batch_size)
    labeled = _sum_batches(counts[..., 2], batch_size)  # [batches, …, C]
    present = (labeled > 0) & _is_scored(counts.shape[-2], void)
    values = _mean_where((ratios.T / sizes).T, present)
    return _mean_over_batches(values, sizes)


def binary_metrics(statistics: Statistics) -> Metrics:
    """Returns `binary_iou` and `paper_binary_iou`, from counts [N, …, K, 3].

    `binary_iou` is Σ intersection / Σ union over all examples, averaged over maps with a union.
    `paper_binary_iou` is the mean over examples and maps of (I + 1e-8) / (U + 1e-8), which is 1 for
    an empty union.
    """
    counts = statistics["counts"]
    iou = class_iou(statistics)
    ratios = (counts[..., 0] + _EPSILON) / (_union(counts) + _EPSILON)
    return {
        "binary_iou": _mean_where(iou, ~np.isnan(iou)),
        "paper_binary_iou": ratios.mean(axis=(0, -1)),
    }


# --------------------------------------------------------------------------------------------------
# Real-valued maps.


def value_metrics(
    statistics: Statistics, *, batch_size: int = 0, drop_last: bool = False
) -> Metrics:
    """Returns metrics of depth and, for two maps, of optical flow.

    All are means over all valid elements of all examples. `l1`: |o − l|. `rmse`: root of the mean
    of (o − l)². `abs_rel`: |o − l| / l where l > 0. `delta1` … `delta3`: fraction of these with
    max(o / l, l / o) < 1.25^i. `within`: fraction with |o − l| ≤ the threshold of the statistics.
    `epe`: mean endpoint error in pixels. `f1_all`: fraction of pixels whose endpoint error is above
    3 pixels and 5 % of the length of the flow. `paper_within`: see `paper_within`.
    """
    totals = {name: values.sum(axis=0) for name, values in statistics.items()}
    result = {
        "l1": _ratio(totals["abs_error"], totals["valid"]),
        "rmse": np.sqrt(_ratio(totals["squared_error"], totals["valid"])),
        "abs_rel": _ratio(totals["abs_relative"], totals["positive"]),
        **{f"delta{i}": _ratio(totals[f"delta{i}"], totals["positive"]) for i in (1, 2, 3)},
        "within": _ratio(totals["within"], totals["valid"]),
    }
    if "flow_valid" in totals:
        result["epe"] = _ratio(totals["endpoint_error"], totals["flow_valid"])
        result["f1_all"] = _ratio(totals["outliers"], totals["flow_valid"])
    if batch_size:
        result["paper_within"] = paper_within(
            statistics, batch_size=batch_size, drop_last=drop_last
        )
    return result


def paper_within(statistics: Statistics, *, batch_size: int, drop_last: bool = False) -> np.ndarray:
    """Returns the fraction of labeled pixels with |o − l| ≤ 0.05 (KITTI), a mean over batches.

    The fraction is that of all labeled pixels of a batch. Batches are weighted by their number of
    examples. A batch without labels makes the result NaN.
    """
    valid, sizes = _batches(statistics["valid"], batch_size, drop_last)
    within, _ = _batches(statistics["within"], batch_size, drop_last)
    values = _ratio(_sum_batches(within, batch_size), _sum_batches(valid, batch_size))
    return _mean_over_batches(values, sizes)


# --------------------------------------------------------------------------------------------------
# Sums and means.


def _union(counts: np.ndarray) -> np.ndarray:
    return counts[..., 1] + counts[..., 2] - counts[..., 0]


def _is_scored(num_classes: int, void: int | None) -> np.ndarray:
    """Returns bool [C]."""
    return np.arange(num_classes) != (-1 if void is None else void)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns a / b, or NaN where b is 0."""
    return np.where(b == 0, np.nan, a / np.where(b == 0, 1.0, b))


def _mean_where(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis of the values at `mask`; NaN if there are none."""
    return _ratio(np.where(mask, values, 0.0).sum(axis=-1), mask.sum(axis=-1))


def _batches(values: np.ndarray, batch_size: int, drop_last: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples that are in batches, and the number of examples of each batch."""
    count = len(values)
    sizes = [min(batch_size, count - first) for first in range(0, count, batch_size)]
    if drop_last and sizes[-1] < batch_size:
        sizes.pop()
    return np.asarray(values[: sum(sizes)], np.float64), np.array(sizes, np.float64)


def _sum_batches(values: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns [batches, …] from [N, …]."""
    if not len(values):
        return values
    return np.add.reduceat(values, np.arange(0, len(values), batch_size), axis=0)


def _mean_over_batches(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns the mean over the first axis; NaN without batches."""
    return _ratio(np.tensordot(sizes, values, axes=1), sizes.sum())
