"""Retrieval where every example with a similar caption is a positive, as in TVL."""

import itertools

import numpy as np
import pytest
from scipy import stats

from mmjax.errors import UserError
from mmjax.evals import metrics
from mmjax.evals.semantic_retrieval import count_exact, count_similar
from tests.evals.synthetic import unit
from tests.messages import raises

# For these vectors, the published code of TVL computes the accuracies asserted below.
TOUCH = np.array([[1, 0.2, 0], [0.1, 1, 0.3], [0.3, 0.2, 1], [0.9, 0.1, 0.3]], np.float32)
TEXT = np.array([[1, 0.1, 0.1], [0.2, 1, 0.1], [0.1, 0.3, 1], [0.95, 0.3, 0]], np.float32)


def by_sorting(queries, targets, captions, threshold, k):
    """Returns for each query whether a positive is among its k nearest targets."""
    hits = []
    for query, own in zip(unit(queries), unit(captions), strict=True):
        nearest = np.argsort(-(unit(targets) @ query), kind="stable")[:k]
        hits.append(any(unit(captions)[j] @ own > threshold for j in nearest))
    return np.array(hits)


def tvl_like(rng, size, *, views=1):
    """Embeddings of touch, images and captions; several captions are nearly equal."""
    base = rng.normal(size=(size, 1, 6))
    shared = unit(rng.normal(size=(max(size // 3, 1), 6)))[
        rng.integers(max(size // 3, 1), size=size)
    ]
    text = (shared + 0.3 * base[:, 0])[:, None]
    noisy = {m: base + 2 * rng.normal(size=(size, views, 6)) + text for m in ("touch", "image")}
    arrays = {
        "touch/text": noisy["touch"],
        "touch/image": noisy["touch"],
        "image/text": noisy["image"],
        "image/touch": noisy["image"],
        "text/touch": text,
        "text/image": text,
        "text_mask": np.ones((size, 1)),
    }
    return {name: value.astype(np.float32) for name, value in arrays.items()}


@pytest.mark.parametrize("threshold, expected", [(0.5, 1.0), (0.9, 1.0), (0.98, 0.625)])
def test_accuracy_equals_published_tvl_code(make_harness, threshold, expected):
    arrays = {"touch/text": TOUCH[:, None], "text/touch": TEXT[:, None]}
    results = make_harness({"test": arrays}).run(
        r=dict(type="semantic_retrieval", pairs="touch_text", thresholds=threshold, batch_size=3)
    )
    assert results[f"r/touch_text@{threshold}/top1"] == expected
    assert results[f"r/touch_text@{threshold}/top5"] == 1.0  # there are only four targets


def test_without_text_only_the_paired_example_is_positive(make_harness):
    arrays = {"touch/image": TOUCH[:, None], "image/touch": TEXT[:, None]}
    results = make_harness({"test": arrays}).run(
        r=dict(type="semantic_retrieval", pairs="touch_image")
    )
    assert results["r/touch_image/top1"] == 0.625
    assert (
        results["r/touch_to_image/top1"] == 0.75 - 0.25 and results["r/image_to_touch/top1"] == 0.75
    )
    assert results["r/touch_image/top1_chance"] == 0.25
    assert not any("@" in name for name in results)


@pytest.mark.parametrize("block", [7, 1024])
def test_all_pairs_directions_and_thresholds_equal_sorting(make_harness, monkeypatch, block):
    monkeypatch.setattr("mmjax.evals.blocks.MAX_BLOCK", block)
    arrays = tvl_like(np.random.default_rng(0), 41, views=2)
    thresholds = (0.5, 0.7, 0.95)
    results = make_harness({"test": arrays}).run(
        r=dict(type="semantic_retrieval", thresholds=thresholds, batch_size=16)
    )
    pooled = {name: value.mean(axis=1) for name, value in arrays.items()}
    for pair, threshold, k in itertools.product(
        (("touch", "text"), ("image", "text")), thresholds, (1, 5)
    ):
        first, second = pair
        parts = []
        for query, target in (pair, pair[::-1]):
            hits = by_sorting(
                pooled[f"{query}/{target}"],
                pooled[f"{target}/{query}"],
                pooled[f"text/{first}"],
                threshold,
                k,
            )
            name = f"r/{query}_to_{target}@{threshold}/top{k}"
            assert results[name] == pytest.approx(hits.mean())
            deviation = np.sqrt(hits.mean() * (1 - hits.mean()) / 41)
            assert results[f"{name}_ci95"] == pytest.approx(1.96 * deviation)
            parts.append(hits.mean())
        assert 0 < min(parts) and (k == 5 or max(parts) < 1)
        assert results[f"r/{first}_{second}@{threshold}/top{k}"] == pytest.approx(np.mean(parts))
        similar = unit(pooled["text/touch"]) @ unit(pooled["text/touch"]).T > threshold
        chance = stats.hypergeom.sf(0, 41, similar.sum(axis=1), k).mean()
        assert results[f"r/{first}_{second}@{threshold}/top{k}_chance"] == pytest.approx(chance)


def test_the_confidence_interval_over_both_directions_resamples_examples(make_harness):
    arrays = tvl_like(np.random.default_rng(0), 60)
    results = make_harness({"test": arrays}).run(
        r=dict(type="semantic_retrieval", pairs="touch_text", thresholds=0.9)
    )
    touch, text = arrays["touch/text"][:, 0], arrays["text/touch"][:, 0]
    both = (by_sorting(touch, text, text, 0.9, 1) + 0.0 + by_sorting(text, touch, text, 0.9, 1)) / 2
    rng = np.random.default_rng(0)
    means = [rng.choice(both, 60).mean() for _ in range(4000)]  # bootstrap
    low, high = np.quantile(means, (0.025, 0.975))
    assert results["r/touch_text@0.9/top1_ci95"] == pytest.approx((high - low) / 2, rel=0.05)


def test_subsets_are_grouped_by_the_prefix_of_the_class_name(make_harness):
    arrays = tvl_like(np.random.default_rng(1), 40)
    arrays["label"] = (np.arange(40) % 4 - 1).astype(np.int32)  # a quarter is unlabeled
    results = make_harness({"test": arrays}, class_names=["ssvtp", "hct/data1", "hct/data2"]).run(
        r=dict(type="semantic_retrieval", pairs="touch_text", thresholds=0.8)
    )
    touch, text = arrays["touch/text"][:, 0], arrays["text/touch"][:, 0]
    hits = by_sorting(touch, text, text, 0.8, 1) + 0.0 + by_sorting(text, touch, text, 0.8, 1)
    for subset, labels in (("ssvtp", (0,)), ("hct", (1, 2))):
        chosen = np.isin(arrays["label"], labels)
        assert results[f"r/{subset}/touch_text@0.8/top1"] == pytest.approx(hits[chosen].mean() / 2)
    single = make_harness({"test": arrays}, class_names=["hct/1", "hct/2", "hct/3"]).run(
        r=dict(type="semantic_retrieval", pairs="touch_text", thresholds=0.8)
    )
    assert not any(name.startswith("r/hct") for name in single)
    arrays["label"] = np.arange(40, dtype=np.int32)
    many = make_harness({"test": arrays}, class_names=[f"c{i}" for i in range(40)]).run(
        r=dict(type="semantic_retrieval", pairs="touch_text", thresholds=0.8)
    )
    assert not any(name.startswith("r/c") for name in many)


def test_a_collapsed_model_is_at_chance(make_harness):
    arrays = tvl_like(np.random.default_rng(0), 30)
    for name in ("touch/text", "touch/image", "image/touch"):
        arrays[name] = np.full_like(arrays[name], 0.4)
    results = make_harness({"test": arrays}).run(
        r=dict(type="semantic_retrieval", pairs=("touch_text", "touch_image"), thresholds=0.6)
    )
    # Captions are not collapsed, but the touch embeddings that they retrieve are.
    for name in ("text_to_touch@0.6/top1", "text_to_touch@0.6/top5", "touch_image/top5"):
        assert results[f"r/{name}"] == pytest.approx(results[f"r/{name}_chance"])
    assert 1 / 30 < results["r/text_to_touch@0.6/top1"] < 0.9


def test_ties_count_as_the_average_over_random_orders():
    scores, positives = np.array([[3.0, 2, 2, 2, 1]]), np.array([[0, 1, 1, 0, 0]], bool)
    # Possible rankings of the five targets by score.
    orders = [[0, *order, 4] for order in itertools.permutations((1, 2, 3))]
    for k in (1, 2, 3, 9):
        expected = np.mean([positives[0, order[:k]].any() for order in orders])
        assert metrics.top_k_any(scores, positives, k) == pytest.approx(expected)
    counts = count_similar(
        np.array([[1.0]]), np.array([[2.0]]), np.array([[1.0]], np.float32), [0.5, 1.5]
    )
    assert [c.hits(1)[0] for c in counts] == [
        1.0,
        0.0,
    ]  # no cosine is above 1, so no target is positive
    assert count_exact(np.eye(3), np.eye(3)).hits(1).tolist() == [1, 1, 1]


def test_examples_without_a_modality_are_excluded(make_harness, caplog):
    arrays = tvl_like(np.random.default_rng(0), 33)
    arrays["touch_mask"] = np.ones(33, np.float32)
    arrays["touch_mask"][4] = 0
    arrays["text_mask"][9] = 0
    remaining = {name: np.delete(value, (4, 9), axis=0) for name, value in arrays.items()}
    cfg = dict(type="semantic_retrieval", pairs="touch_text", thresholds=0.8)
    with caplog.at_level("INFO", logger="absl"):
        results = make_harness({"test": arrays}).run(r=cfg)
    assert results == make_harness({"test": remaining}).run(r=cfg)
    messages = [message for message in caplog.messages if "33" in message and "2" in message]
    assert any("touch" in message and "text" in message for message in messages), caplog.text
    arrays["text_mask"][:] = 0
    with raises(UserError, "fake", "touch", "text"):
        make_harness({"test": arrays}).run(r=cfg)


class KeywordSubsets:
    """Data whose captions depend on `data.text.keywords`; trials must not load images."""

    def __init__(self, make_harness, size=36, **options):
        self.arrays = tvl_like(np.random.default_rng(2), size)
        self.harness = make_harness({}, **options)
        self.harness.splits = self
        self.harness.data_cfg = dict(
            corrupt="fail", touch={}, image={}, text=dict(keywords=dict(prompt="p"))
        )

    def captions(self, seed):
        noise = np.random.default_rng(seed).normal(size=self.arrays["text/touch"].shape)
        return (self.arrays["text/touch"] + 0.5 * noise).astype(np.float32)

    def __getitem__(self, split):
        cfg = self.harness.requested
        arrays = dict(self.arrays)
        keywords = cfg["text"]["keywords"]
        if keywords.get("eval_subset"):
            assert keywords["prompt"] == "p" and cfg["touch"] is None and cfg["image"] is None
            arrays = {name: arrays[name] for name in ("text/touch", "text/image", "text_mask")}
            arrays["text/touch"] = arrays["text/image"] = self.captions(keywords["seed"])
        return arrays


def test_random_caption_subsets_are_averaged_over_trials(make_harness):
    case = KeywordSubsets(make_harness)
    results = case.harness.run(
        r=dict(type="semantic_retrieval", thresholds=(0.7, 0.9), trials=3, batch_size=16)
    )
    touch, accuracies = case.arrays["touch/text"][:, 0], []
    for seed in range(3):
        text = case.captions(seed)[:, 0]
        to_text, to_touch = (
            by_sorting(*pair, text, 0.9, 1) for pair in ((touch, text), (text, touch))
        )
        accuracies.append((to_text.mean() + to_touch.mean()) / 2)
    assert len(set(accuracies)) > 1
    assert results["r/touch_text@0.9_random/top1"] == pytest.approx(np.mean(accuracies))
    assert results["r/touch_text@0.9_random/top1_std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert "r/touch_text@0.9_random/top1_chance" in results
    assert "r/touch_text@0.9_random/top1_ci95" not in results
    assert not any("touch_image_random" in name for name in results)
    opened = [o.cfg["touch"] for o in case.harness.opened]
    assert len(opened) == 4 and opened.count(None) == 3  # images once, captions three times
    without_trials = case.harness.run(r=dict(type="semantic_retrieval", thresholds=(0.7, 0.9)))
    assert without_trials.items() <= results.items()


def test_trials_skip_examples_with_a_corrupt_image(make_harness):
    """A record with a corrupt image still has a caption."""
    case = KeywordSubsets(make_harness, policy="skip")
    case.harness.data_cfg["corrupt"] = "skip"
    make = case.harness.make_eval_data

    def make_corrupt(data_cfg, **options):
        dataset = make(data_cfg, **options)
        dataset.corrupt = [5] if data_cfg["touch"] is not None else []
        return dataset

    case.harness.make_eval_data = make_corrupt
    results = case.harness.run(r=dict(type="semantic_retrieval", thresholds=0.9, trials=1))
    keep = np.arange(36) != 5
    touch, text = case.arrays["touch/text"][keep, 0], case.captions(0)[keep, 0]
    assert results["r/touch_to_text@0.9_random/top1"] == pytest.approx(
        by_sorting(touch, text, text, 0.9, 1).mean()
    )


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(pairs="touch"), ("pairs", "'touch'", "touch_text")),
        (dict(pairs=("touch_touch",)), ("pairs", "'touch_touch'", "touch_text")),
        (dict(pairs=()), ("pairs", "()")),
        (dict(thresholds=(0.5001, 0.5002)), ("thresholds", 0.5001, 0.5002)),
        (dict(thresholds=1.0), ("thresholds", 1.0, "[-1, 1)")),
        (dict(trials=-1), ("trials", -1)),
        (dict(pairs="touch_image", trials=2), ("trials", 2, "text")),
        (dict(trials=2), ("config.data.text.keywords={}", "trials=0")),
    ],
)
def test_invalid_options_are_refused(make_harness, options, facts):
    with raises(UserError, *facts):
        make_harness({}).make(r=dict(type="semantic_retrieval", **options))
