"""Metrics of end tasks: values of pyVTAB's published code, and brute force over examples."""

import jax
import numpy as np
import pytest

from mmjax.end_tasks.declaration import EndTask
from mmjax.errors import UserError
from mmjax.evals.end_task_metrics import HIGHER_IS_BETTER, class_iou, compute, confidence, metrics
from mmjax.losses import end_task as losses
from tests.messages import raises

statistics = jax.jit(losses.statistics, static_argnames="target_type")


def evaluate(outputs, target, target_type, **options):
    """Returns the metrics of one head: {name: float}."""
    sums = jax.device_get(statistics(outputs, target, target_type=target_type))
    return metrics(sums, target_type=target_type, **options)


def one_hot(predictions, num_classes):
    return np.eye(num_classes, dtype=np.float32)[np.asarray(predictions)]


# Two label maps, and predictions of four classes.
SEGMENTED = np.array([[[0, 1, 1], [2, 2, 0]], [[0, 0, 0], [0, 1, 1]]])[..., None]
PREDICTED = one_hot([[[0, 1, 2], [2, 2, 0]], [[0, 0, 3], [0, 1, 0]]], 4)


@pytest.mark.parametrize(
    ("images", "batch_size", "expected"),
    [
        ([0, 1], 2, 0.6666667),
        ([0], 1, 0.5833333),
        ([1], 1, 0.5),
        ([0, 1], 1, 0.5416667),
        ([0, 1], 5, 0.6666667),
    ],
)
def test_iou_of_the_paper(images, batch_size, expected):
    result = evaluate(PREDICTED[images], SEGMENTED[images], "classes", batch_size=batch_size)
    assert result["paper_iou"] == pytest.approx(expected, abs=1e-7)


def test_mean_iou_of_the_data_set():
    result = evaluate(PREDICTED, SEGMENTED, "classes")
    assert result["miou"] == pytest.approx(0.5833333, abs=1e-7)
    assert result["pixel_accuracy"] == pytest.approx(9 / 12)
    assert "paper_iou" not in result
    sums = statistics(PREDICTED, SEGMENTED, target_type="classes")
    np.testing.assert_allclose(class_iou(sums), [5 / 7, 1 / 2, 2 / 3, 0], rtol=1e-6)
    assert class_iou(sums)[1:].mean() == pytest.approx(0.3888889, abs=1e-7)
    everything = evaluate(PREDICTED, SEGMENTED, "classes", void=None)["miou"]
    assert everything == pytest.approx((5 / 7 + 1 / 2 + 2 / 3) / 3)


def test_labels_of_only_void_have_no_iou():
    result = evaluate(PREDICTED, np.zeros_like(SEGMENTED), "classes", batch_size=2)
    assert np.isnan(result["miou"]) and np.isnan(result["paper_iou"])
    ignored = evaluate(PREDICTED, np.full_like(SEGMENTED, -1), "classes")
    assert np.isnan(ignored["miou"]) and np.isnan(ignored["pixel_accuracy"])


def brute_force_iou(predicted, labels, batch_size, drop_last):
    """Returns (paper_iou, miou) by loops over batches, classes and images."""
    values, sizes, classes = [], [], range(1, 5)
    for first in range(0, len(labels), batch_size):
        images = range(first, min(first + batch_size, len(labels)))
        if drop_last and len(images) < batch_size:
            continue
        ious = []
        for c in classes:
            if any((labels[i] == c).any() for i in images):
                ratios = []
                for i in images:
                    hit, own = (predicted[i] == c) & (labels[i] >= 0), labels[i] == c
                    ratios.append(((hit & own).sum() + 1e-8) / ((hit | own).sum() + 1e-8))
                ious.append(np.mean(ratios))
        values.append(np.mean(ious))
        sizes.append(len(images))
    whole = []
    for c in classes:
        hit, own = (predicted == c) & (labels >= 0), labels == c
        if own.any():
            whole.append((hit & own).sum() / (hit | own).sum())
    return np.average(values, weights=sizes), np.mean(whole)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 20])
@pytest.mark.parametrize("drop_last", [False, True])
def test_iou_equals_brute_force(batch_size, drop_last):
    random = np.random.default_rng(batch_size)
    labels = random.integers(-1, 4, size=(14, 3, 3))  # class 4 is predicted but never labeled
    labels[3] = np.where(labels[3] == 2, 0, labels[3])
    labels[:, 0, 0] = 1
    predicted = random.integers(5, size=labels.shape)
    options = dict(batch_size=batch_size, drop_last=drop_last)
    result = evaluate(one_hot(predicted, 5), labels[..., None], "classes", **options)
    if drop_last and batch_size > len(labels):  # no batch
        assert np.isnan(result["paper_iou"])
        drop_last = False
    else:
        paper, _ = brute_force_iou(predicted, labels, batch_size, drop_last)
        assert result["paper_iou"] == pytest.approx(paper, rel=1e-6)
    _, whole = brute_force_iou(predicted, labels, batch_size, drop_last)
    assert result["miou"] == pytest.approx(whole, rel=1e-6)


LOGITS = np.array([[[2, -1], [0.5, -3]], [[-1, -1], [-1, -1]], [[1, 1], [1, -1]]], np.float32)
MASKS = np.array([[[1, 0], [0, 1]], [[0, 0], [0, 0]], [[0, 0], [0, 1]]], np.float32)


def test_binary_iou():
    result = evaluate(LOGITS[..., None], MASKS[..., None], "binary")
    assert result["paper_binary_iou"] == pytest.approx(0.4444444, abs=1e-7)
    assert result["binary_iou"] == pytest.approx(1 / 7)
    # Maps without a union are not scored in the data set, and count as 1 in the paper.
    two = [
        np.stack([x, y], axis=-1) for x, y in ((LOGITS, -np.ones_like(LOGITS)), (MASKS, 0 * MASKS))
    ]
    result = evaluate(*two, "binary")
    assert result["paper_binary_iou"] == pytest.approx((4 / 3 + 3) / 6)
    assert result["binary_iou"] == pytest.approx(1 / 7)


KITTI = (
    np.array([[[0.10, 0.50], [0.30, 0.90]], [[0.20, 0.20], [0.00, 0.70]]], np.float32)[..., None],
    np.array([[[0.12, np.nan], [0.36, 0.86]], [[np.nan, 0.21], [0.10, np.nan]]], np.float32)[
        ..., None
    ],
)


def test_metric_of_kitti():
    result = evaluate(*KITTI, "values", batch_size=2)
    assert result["paper_within"] == pytest.approx(0.6)
    assert result["within"] == pytest.approx(0.6)
    assert result["l1"] == pytest.approx(0.046, abs=1e-6)
    by_image = evaluate(*KITTI, "values", batch_size=1)["paper_within"]
    assert by_image == pytest.approx((2 / 3 + 1 / 2) / 2)
    outputs, target = (np.concatenate([x, x[:1]]) for x in KITTI)
    kept = evaluate(outputs, target, "values", batch_size=2)["paper_within"]
    assert kept == pytest.approx((2 * 0.6 + 2 / 3) / 3)
    dropped = evaluate(outputs, target, "values", batch_size=2, drop_last=True)["paper_within"]
    assert dropped == pytest.approx(0.6)
    # A batch without labels has no value.
    target[2] = np.nan
    result = evaluate(outputs, target, "values", batch_size=2)
    assert np.isnan(result["paper_within"]) and result["within"] == pytest.approx(0.6)


def test_metrics_of_depth():
    random = np.random.default_rng(0)
    target = random.uniform(0.5, 5, size=(4, 3, 5, 1)).astype(np.float32)
    outputs = (target * random.uniform(0.5, 2, size=target.shape)).astype(np.float32)
    target[random.random(target.shape) < 0.3] = np.nan
    target[1], target[2, 0, 0] = np.nan, 0
    result = evaluate(outputs, target, "values")
    valid, positive = ~np.isnan(target), np.nan_to_num(target) > 0
    assert valid.sum() == positive.sum() + 1
    error = np.abs(outputs - target)
    o, t = outputs[positive], target[positive]
    expected = {
        "l1": error[valid].mean(),
        "rmse": np.sqrt(np.square(error[valid]).mean()),
        "abs_rel": (error[positive] / t).mean(),
        **{f"delta{i}": (np.maximum(o / t, t / o) < 1.25**i).mean() for i in (1, 2, 3)},
        "within": (error[valid] <= 0.05).mean(),
    }
    assert result.keys() == expected.keys() | {"loss"}
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, rel=1e-5), name


def test_metrics_of_flow():
    random = np.random.default_rng(0)
    target = random.normal(scale=30, size=(3, 4, 5, 2)).astype(np.float32)
    outputs = (target + random.normal(scale=3, size=target.shape)).astype(np.float32)
    target[random.random(target.shape[:3]) < 0.4] = np.nan
    target[0, 0, 0] = (np.nan, 1.0)  # not valid, because half of it is unknown
    error = np.linalg.norm(outputs - target, axis=-1)
    error, length = (x[~np.isnan(error)] for x in (error, np.linalg.norm(target, axis=-1)))
    result = evaluate(outputs, target, "values")
    assert result["epe"] == pytest.approx(error.mean(), rel=1e-5)
    outliers = (error > 3) & (error > 0.05 * length)
    assert result["f1_all"] == pytest.approx(outliers.mean()) and 0 < outliers.mean() < 1


def test_metrics_of_labels():
    labels = np.array([3, 3, 3, 5, 7, 7])
    logits = one_hot([3, 3, 1, 5, 0, 7], 8)
    result = evaluate(logits, labels, "label", labels=labels)
    assert result["top1"] == pytest.approx(4 / 6)
    assert result["mean_per_class"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert result["loss"] == pytest.approx(np.log(7 + np.e) - 4 / 6)
    assert 4 / 6 < result["top5"] < 1
    assert "mean_per_class" not in evaluate(logits, labels, "label")


@pytest.mark.parametrize(("encode_once", "expected"), [(True, 3 / 4), (False, 4 / 6)])
def test_metrics_of_an_end_task(encode_once, expected):
    """Two batches of four, the last one incomplete."""
    task = EndTask(name="n", title="t", reader="r", semantic=True, encode_once=encode_once)
    labels = np.array([3, 3, 3, 5, 7, 7])
    sums = statistics(one_hot([3, 3, 1, 5, 0, 7], 8), labels, target_type="label")
    result = compute(sums, task, labels=labels, paper_batch=4)
    assert result["paper_top1"] == pytest.approx(expected)
    assert result["top1"] == pytest.approx(4 / 6)
    assert set(result) == {"top1", "top5", "loss", "mean_per_class", "paper_top1"}
    assert "paper_top1" not in compute(sums, task)
    assert np.isnan(compute(sums, task, paper_batch=7)["paper_top1"]) == encode_once


def test_the_confidence_interval_of_a_mean_over_seeds():
    # Student's t for two degrees of freedom is 4.303 at 97.5 %.
    assert confidence(np.array([1.0, 2.0, 3.0])) == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert np.isnan(confidence(np.array([1.0])))


CASES = {
    "label": (np.random.default_rng(0).normal(size=(7, 6)), np.arange(7) % 5),
    "classes": (np.random.default_rng(0).normal(size=(7, 3, 4, 3)), np.arange(84) % 3),
    "binary": (np.random.default_rng(0).normal(size=(7, 3, 4, 2)), np.arange(168.0) % 2),
    "values": (np.random.default_rng(0).normal(size=(7, 3, 4, 2)), np.arange(168.0) % 5),
}


def case(target_type):
    outputs, target = CASES[target_type]
    shape = {"label": (7,), "classes": (7, 3, 4, 1)}.get(target_type, outputs.shape)
    target = target.reshape(shape)
    return outputs.astype(np.float32), target if target.dtype == int else target.astype(np.float32)


@pytest.mark.parametrize("target_type", CASES)
def test_metrics_of_several_heads_at_once(target_type):
    outputs, target = case(target_type)
    heads = np.stack([outputs, -outputs, outputs**2, outputs])
    heads[3, 2] = np.nan
    labels = target if target_type == "label" else None
    options = dict(target_type=target_type, labels=labels, batch_size=3)
    one = [metrics(statistics(h, target, target_type=target_type), **options) for h in heads]
    sums = jax.vmap(lambda h: statistics(h, target, target_type=target_type), out_axes=1)(heads)
    result = metrics(jax.device_get(sums), **options)
    assert result.keys() == one[0].keys()
    for name, values in result.items():
        assert values.shape == (4,)
        np.testing.assert_allclose(values, [float(o[name]) for o in one], rtol=1e-6, err_msg=name)
        assert np.isfinite(values[:3]).all() and np.isnan(values[3]), name


def test_every_metric_has_a_direction():
    names = set()
    for target_type in CASES:
        outputs, target = case(target_type)
        labels = target if target_type == "label" else None
        names |= set(evaluate(outputs, target, target_type, labels=labels, batch_size=3))
    assert names == set(HIGHER_IS_BETTER)
    lower = {name for name, higher in HIGHER_IS_BETTER.items() if not higher}
    assert lower == {"loss", "l1", "rmse", "abs_rel", "epe", "f1_all"}


def test_better_predictions_have_better_metrics():
    for target_type in CASES:
        _, target = case(target_type)
        exact = {
            "label": lambda t: 9 * one_hot(t, 6),
            "classes": lambda t: 9 * one_hot(t[..., 0], 3),
            "binary": lambda t: 2 * t - 1,
            "values": lambda t: t,
        }[target_type](target)
        outputs, _ = case(target_type)
        labels = target if target_type == "label" else None
        good, bad = (
            evaluate(o.astype(np.float32), target, target_type, labels=labels, batch_size=3)
            for o in (exact, 10 * outputs)
        )
        for name in good:
            assert (good[name] > bad[name]) == HIGHER_IS_BETTER[name], name


def test_invalid_arguments_are_an_error():
    with raises(UserError, "'lable'", "'label'"):
        metrics({"correct": np.ones(3)}, target_type="lable")
    with raises(UserError, "examples"):
        metrics({"correct": np.ones(0), "correct5": np.ones(0)}, target_type="label")
