import itertools

import numpy as np
import pytest
from scipy import stats

from mmjax.errors import UserError
from mmjax.evals import metrics, semantic_retrieval
from mmjax.evals.semantic_retrieval import count_exact, count_similar

# Published code of TVL gives these accuracies for these vectors.
TOUCH = np.array([[1, 0.2, 0], [0.1, 1, 0.3], [0.3, 0.2, 1], [0.9, 0.1, 0.3]], np.float32)
TEXT = np.array([[1, 0.1, 0.1], [0.2, 1, 0.1], [0.1, 0.3, 1], [0.95, 0.3, 0]], np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_sorting(queries, targets, captions, threshold, k):
    """Whether a positive is among the first k of each query, one query at a time."""
    hits = []
    for query, own in zip(unit(queries), unit(captions), strict=True):
        first = np.argsort(-(unit(targets) @ query), kind="stable")[:k]
        hits.append(any(unit(captions)[j] @ own > threshold for j in first))
    return np.array(hits)


def tvl_like(rng, size, *, views=1):
    """Touch, pictures and captions, of which several are equal."""
    base = rng.normal(size=(size, 1, 6))
    words = unit(rng.normal(size=(max(size // 3, 1), 6)))[
        rng.integers(max(size // 3, 1), size=size)
    ]
    text = (words + 0.3 * base[:, 0])[:, None]
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
def test_the_accuracy_of_tvl(bench, threshold, expected):
    arrays = {"touch/text": TOUCH[:, None], "text/touch": TEXT[:, None]}
    found = bench({"test": arrays}).run(
        r=dict(type="semantic_retrieval", pairs="touch_text", thresholds=threshold, batch_size=3)
    )
    assert found[f"r/touch_text@{threshold}/top1"] == expected
    assert found[f"r/touch_text@{threshold}/top5"] == 1.0  # four targets, so five are all


def test_without_text_only_the_own_example_counts(bench):
    arrays = {"touch/image": TOUCH[:, None], "image/touch": TEXT[:, None]}
    found = bench({"test": arrays}).run(r=dict(type="semantic_retrieval", pairs="touch_image"))
    assert found["r/touch_image/top1"] == 0.625
    assert found["r/touch_to_image/top1"] == 0.75 - 0.25 and found["r/image_to_touch/top1"] == 0.75
    assert found["r/touch_image/top1_chance"] == 0.25
    assert not any("@" in name for name in found)


@pytest.mark.parametrize("block", [7, 1024])
def test_all_pairs_directions_and_thresholds_equal_sorting(bench, monkeypatch, block):
    monkeypatch.setattr(semantic_retrieval, "_MAX_BLOCK", block)
    arrays = tvl_like(np.random.default_rng(0), 41, views=2)
    thresholds = (0.5, 0.7, 0.95)
    found = bench({"test": arrays}).run(
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
            assert found[name] == pytest.approx(hits.mean())
            spread = np.sqrt(hits.mean() * (1 - hits.mean()) / 41)
            assert found[f"{name}_ci95"] == pytest.approx(1.96 * spread)
            parts.append(hits.mean())
        assert 0 < min(parts) and (k == 5 or max(parts) < 1)
        assert found[f"r/{first}_{second}@{threshold}/top{k}"] == pytest.approx(np.mean(parts))
        alike = unit(pooled["text/touch"]) @ unit(pooled["text/touch"]).T > threshold
        chance = stats.hypergeom.sf(0, 41, alike.sum(axis=1), k).mean()
        assert found[f"r/{first}_{second}@{threshold}/top{k}_chance"] == pytest.approx(chance)


def test_the_confidence_interval_of_both_directions_knows_that_they_share_examples(bench):
    arrays = tvl_like(np.random.default_rng(0), 60)
    found = bench({"test": arrays}).run(
        r=dict(type="semantic_retrieval", pairs="touch_text", thresholds=0.9)
    )
    touch, text = arrays["touch/text"][:, 0], arrays["text/touch"][:, 0]
    both = (by_sorting(touch, text, text, 0.9, 1) + 0.0 + by_sorting(text, touch, text, 0.9, 1)) / 2
    rng = np.random.default_rng(0)
    means = [rng.choice(both, 60).mean() for _ in range(4000)]  # bootstrap
    low, high = np.quantile(means, (0.025, 0.975))
    assert found["r/touch_text@0.9/top1_ci95"] == pytest.approx((high - low) / 2, rel=0.05)


def test_subsets_by_the_first_part_of_their_names(bench):
    arrays = tvl_like(np.random.default_rng(1), 40)
    arrays["label"] = (np.arange(40) % 4 - 1).astype(np.int32)  # a quarter has none
    found = bench({"test": arrays}, class_names=["ssvtp", "hct/data1", "hct/data2"]).run(
        r=dict(type="semantic_retrieval", pairs="touch_text", thresholds=0.8)
    )
    touch, text = arrays["touch/text"][:, 0], arrays["text/touch"][:, 0]
    hits = by_sorting(touch, text, text, 0.8, 1) + 0.0 + by_sorting(text, touch, text, 0.8, 1)
    for subset, labels in (("ssvtp", (0,)), ("hct", (1, 2))):
        rows = np.isin(arrays["label"], labels)
        assert found[f"r/{subset}/touch_text@0.8/top1"] == pytest.approx(hits[rows].mean() / 2)
    alone = bench({"test": arrays}, class_names=["hct/1", "hct/2", "hct/3"]).run(
        r=dict(type="semantic_retrieval", pairs="touch_text", thresholds=0.8)
    )
    assert not any(name.startswith("r/hct") for name in alone)
    arrays["label"] = np.arange(40, dtype=np.int32)
    many = bench({"test": arrays}, class_names=[f"c{i}" for i in range(40)]).run(
        r=dict(type="semantic_retrieval", pairs="touch_text", thresholds=0.8)
    )
    assert not any(name.startswith("r/c") for name in many)


def test_a_collapsed_model_is_at_chance(bench):
    arrays = tvl_like(np.random.default_rng(0), 30)
    for name in ("touch/text", "touch/image", "image/touch"):
        arrays[name] = np.full_like(arrays[name], 0.4)
    found = bench({"test": arrays}).run(
        r=dict(type="semantic_retrieval", pairs=("touch_text", "touch_image"), thresholds=0.6)
    )
    # Captions are not collapsed; what is retrieved among touches is.
    for name in ("text_to_touch@0.6/top1", "text_to_touch@0.6/top5", "touch_image/top5"):
        assert found[f"r/{name}"] == pytest.approx(found[f"r/{name}_chance"])
    assert 1 / 30 < found["r/text_to_touch@0.6/top1"] < 0.9


def test_ties_are_in_random_order():
    scores, positives = np.array([[3.0, 2, 2, 2, 1]]), np.array([[0, 1, 1, 0, 0]], bool)
    orders = [
        [0, *order, 4] for order in itertools.permutations((1, 2, 3))
    ]  # of the five, by score
    for k in (1, 2, 3, 9):
        wanted = np.mean([positives[0, order[:k]].any() for order in orders])
        assert metrics.top_k_any(scores, positives, k) == pytest.approx(wanted)
    counts = count_similar(
        np.array([[1.0]]), np.array([[2.0]]), np.array([[1.0]], np.float32), [0.5, 1.5]
    )
    assert [c.hits(1)[0] for c in counts] == [1.0, 0.0]  # above 1 there is no right answer
    assert count_exact(np.eye(3), np.eye(3)).hits(1).tolist() == [1, 1, 1]


def test_examples_without_a_modality_are_left_out(bench, caplog):
    arrays = tvl_like(np.random.default_rng(0), 33)
    arrays["touch_mask"] = np.ones(33, np.float32)
    arrays["touch_mask"][4] = 0
    arrays["text_mask"][9] = 0
    left = {name: np.delete(value, (4, 9), axis=0) for name, value in arrays.items()}
    cfg = dict(type="semantic_retrieval", pairs="touch_text", thresholds=0.8)
    with caplog.at_level("INFO", logger="absl"):
        found = bench({"test": arrays}).run(r=cfg)
    assert found == bench({"test": left}).run(r=cfg)
    assert "2 of 33 examples lack touch or text" in caplog.text
    arrays["text_mask"][:] = 0
    with pytest.raises(UserError, match="no example of fake has touch and text"):
        bench({"test": arrays}).run(r=cfg)


class Subsets:
    """Data whose captions depend on `data.text.keywords`; counts what is opened with pictures."""

    def __init__(self, bench, size=36, **options):
        self.arrays = tvl_like(np.random.default_rng(2), size)
        self.bench = bench({}, **options)
        self.bench.splits = self
        self.bench.data_cfg = dict(
            corrupt="fail", touch={}, image={}, text=dict(keywords=dict(prompt="p"))
        )

    def captions(self, seed):
        noise = np.random.default_rng(seed).normal(size=self.arrays["text/touch"].shape)
        return (self.arrays["text/touch"] + 0.5 * noise).astype(np.float32)

    def __getitem__(self, split):
        cfg = self.bench.asked
        arrays = dict(self.arrays)
        keywords = cfg["text"]["keywords"]
        if keywords.get("eval_subset"):
            assert keywords["prompt"] == "p" and cfg["touch"] is None and cfg["image"] is None
            arrays = {name: arrays[name] for name in ("text/touch", "text/image", "text_mask")}
            arrays["text/touch"] = arrays["text/image"] = self.captions(keywords["seed"])
        return arrays


def test_random_captions_are_trials_of_their_own(bench):
    case = Subsets(bench)
    found = case.bench.run(
        r=dict(type="semantic_retrieval", thresholds=(0.7, 0.9), trials=3, batch_size=16)
    )
    touch, results = case.arrays["touch/text"][:, 0], []
    for seed in range(3):
        text = case.captions(seed)[:, 0]
        there, back = by_sorting(touch, text, text, 0.9, 1), by_sorting(text, touch, text, 0.9, 1)
        results.append((there.mean() + back.mean()) / 2)
    assert len(set(results)) > 1
    assert found["r/touch_text@0.9_random/top1"] == pytest.approx(np.mean(results))
    assert found["r/touch_text@0.9_random/top1_std"] == pytest.approx(np.std(results, ddof=1))
    assert "r/touch_text@0.9_random/top1_chance" in found
    assert "r/touch_text@0.9_random/top1_ci95" not in found
    assert not any("touch_image_random" in name for name in found)
    opened = [o.cfg["touch"] for o in case.bench.opened]
    assert len(opened) == 4 and opened.count(None) == 3  # pictures once, captions three times
    plain = case.bench.run(r=dict(type="semantic_retrieval", thresholds=(0.7, 0.9)))
    assert plain.items() <= found.items()


def test_a_trial_may_lack_examples(bench):
    """A record whose picture is broken has a caption all the same."""
    case = Subsets(bench, policy="skip")
    case.bench.data_cfg["corrupt"] = "skip"
    make = case.bench.make_eval_data

    def broken(data_cfg, **options):
        made = make(data_cfg, **options)
        made.corrupt = [5] if data_cfg["touch"] is not None else []
        return made

    case.bench.make_eval_data = broken
    found = case.bench.run(r=dict(type="semantic_retrieval", thresholds=0.9, trials=1))
    keep = np.arange(36) != 5
    touch, text = case.arrays["touch/text"][keep, 0], case.captions(0)[keep, 0]
    assert found["r/touch_to_text@0.9_random/top1"] == pytest.approx(
        by_sorting(touch, text, text, 0.9, 1).mean()
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(pairs="touch"), "pairs of different modalities"),
        (dict(pairs=("touch_touch",)), "pairs of different modalities"),
        (dict(pairs=()), "there must be pairs"),
        (dict(thresholds=(0.5001, 0.5002)), "different to three digits"),
        (dict(thresholds=1.0), r"must be in \[-1, 1\)"),
        (dict(trials=-1), "trials=-1"),
        (dict(pairs="touch_image", trials=2), "for pairs with text"),
        (dict(trials=2), "set config.data.text.keywords={}, or trials=0"),
    ],
)
def test_options_that_cannot_be(bench, options, message):
    with pytest.raises(UserError, match=message):
        bench({}).make(r=dict(type="semantic_retrieval", **options))
