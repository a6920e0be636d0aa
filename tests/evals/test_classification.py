"""The evaluator `classification`: metrics of the model's own logits."""

import numpy as np
import pytest

from mmjax.errors import UserError
from mmjax.evals import metrics
from tests.evals.synthetic import labeled_arrays
from tests.messages import assert_mentions, raises


def test_classification_metrics_cover_all_examples(make_harness):
    rng = np.random.default_rng(0)
    arrays = labeled_arrays(rng, 45, 0.5 * rng.normal(size=(8, 8)))
    results = make_harness({"test": arrays}, num_classes=8).run(
        c=dict(type="classification", batch_size=16)
    )
    logits = 2 * arrays["video"].mean(1)
    assert results["c/top1"] == pytest.approx((logits.argmax(1) == arrays["label"]).mean())
    assert results["c/loss"] == pytest.approx(
        metrics.softmax_cross_entropy(logits, arrays["label"])
    )
    assert results["c/top5_chance"] == pytest.approx(5 / 8)
    arrays["label"][0] = 8
    with raises(UserError, "fake", "label", 8):
        make_harness({"test": arrays}).run(c=dict(type="classification"))


def test_multi_label_classification_names_empty_classes(make_harness, caplog):
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=(45, 3)).astype(np.float32)
    label[:, 1] = 0
    video = (label[:, None] + rng.normal(size=(45, 2, 3))).astype(np.float32)
    with caplog.at_level("WARNING", logger="absl"):
        results = make_harness(
            {"test": {"video": video, "label": label}}, class_names=["a", "dog", "c"]
        ).run(c=dict(type="classification"))
    assert_mentions(caplog.text, "dog")
    assert results["c/skipped_classes"] == 1
    expected = metrics.multi_label_metrics(video.mean(1), label).means()
    for name, value in expected.items():
        assert results[f"c/{name}"] == pytest.approx(value)
    assert results["c/mAP_chance"] == pytest.approx(label[:, [0, 2]].mean())


def test_map_needs_a_class_with_positive_and_negative_examples(make_harness):
    arrays = {"video": np.zeros((6, 1, 3), np.float32), "label": np.ones((6, 3), np.float32)}
    with raises(UserError, "config.evals.c", "mAP", "split 'test' of fake", 3, 6):
        make_harness({"test": arrays}).run(c=dict(type="classification"))
