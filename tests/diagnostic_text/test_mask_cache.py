"""The cache of masks and texts, the update policy, and the store of answers."""

import json
import threading

import numpy as np
import pytest

from mmjax.diagnostic_text.answers import AnswerStore, question_key
from mmjax.diagnostic_text.mask_cache import MaskCache
from mmjax.diagnostic_text.update_policy import UpdatePolicy, jaccard
from mmjax.errors import UserError
from tests.diagnostic_text.masks import pair
from tests.messages import raises

SIDE = 10  # 100 pixels: the last byte of packed bits is partly used


def mask(count):
    """A mask with the first `count` pixels."""
    return (np.arange(SIDE * SIDE) < count).reshape(SIDE, SIDE)


def with_similarity(values):
    """A cache and pairs whose masks have these Jaccard indices; None: not cached."""
    cache, pairs = MaskCache(SIDE), []
    for index, value in enumerate(values):
        pairs.append(pair(mask(0), mask(100), key=f"{index}-1"))
        if value is not None:
            cache.set(f"{index}-1", mask(round(100 * value)), f"text {index}")
    return cache, pairs


def test_jaccard():
    rows = np.arange(4)[:, None].repeat(4, 1)
    assert jaccard(rows <= 1, rows >= 1) == 0.25
    assert jaccard(mask(3), ~mask(3)) == 0
    assert jaccard(mask(0), mask(0)) == 1 and jaccard(mask(0), mask(0), empty=0.0) == 0


@pytest.mark.parametrize(
    ("values", "threshold", "kept"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5], 0.26, [0, 1]),
        ([0.9, 0.2, 0, 0.55, 0.7, 1], 0.55, [1, 2, 3]),
        ([0, 0, 0, 0.6, 0.9], 0, [0, 1, 2]),
        ([None] * 4, 0, [0, 1, 2, 3]),
        ([0.7], 0.7, [0]),
        ([], 0, []),
    ],
)
def test_percentile(values, threshold, kept):
    decision = UpdatePolicy(percentile=0.4).decide(*with_similarity(values))
    assert decision.threshold == pytest.approx(threshold, abs=1e-6)
    assert decision.update.tolist() == kept
    assert decision.similarity.tolist() == pytest.approx([v or 0 for v in values], abs=1e-6)
    assert decision.reuse.tolist() == []


def test_absolute_threshold_budget_and_reuse():
    cache, pairs = with_similarity([0.9, 0.2, 0, 0.55, 1, None])
    cache.set("4-1", mask(100), "")  # prefilled: no text to use again
    policy = UpdatePolicy(threshold=0.6, reuse=True)
    decision = policy.decide(cache, pairs)
    assert decision.update.tolist() == [1, 2, 3, 5] and decision.reuse.tolist() == [0]
    decision = UpdatePolicy(threshold=0.6, budget=2, reuse=True).decide(cache, pairs)
    assert decision.update.tolist() == [2, 5] and decision.reuse.tolist() == [0, 1, 3]
    unchanged = with_similarity([1, 1])
    assert UpdatePolicy(threshold=0.6).decide(*unchanged).update.tolist() == []


def test_smoothing_continues_after_restore():
    policy = UpdatePolicy(percentile=0.5, smoothing=0.75)
    assert policy.decide(*with_similarity([0.4])).threshold == pytest.approx(0.4)
    copy = UpdatePolicy(percentile=0.5, smoothing=0.75)
    copy.restore(json.loads(json.dumps(policy.state())))
    assert copy.decide(*with_similarity([0.8])).threshold == pytest.approx(0.75 * 0.4 + 0.25 * 0.8)


def test_never_predicted_classes_are_described_again_only_if_empty_masks_differ():
    cache = MaskCache(SIDE)
    cache.set("0-1", mask(0), "missed")
    pairs = [pair(mask(5), mask(0), key="0-1")]
    assert UpdatePolicy(threshold=0.5).decide(cache, pairs).update.tolist() == []
    again = UpdatePolicy(threshold=0.5, empty_similarity=0.0)
    assert again.decide(cache, pairs).update.tolist() == [0]


@pytest.mark.parametrize(
    "options",
    [dict(percentile=40), dict(threshold=-0.1), dict(budget=0), dict(empty_similarity=2)],
)
def test_bad_policies_are_reported(options):
    with raises(UserError, *options.keys(), *options.values()):
        UpdatePolicy(**options)
    with raises(UserError, "smoothing", "threshold"):
        UpdatePolicy(threshold=0.5, smoothing=0.5)


def test_cache_state_round_trip():
    cache = MaskCache(SIDE)
    cache.set("b-2", mask(37), "zwei ü")
    cache.set("a-b-1", mask(0), "")
    arrays, values = cache.state()
    copy = MaskCache(SIDE)
    copy.restore(arrays, json.loads(json.dumps(values)))
    cache.set("b-2", mask(1), "other")  # the state is a copy
    assert list(copy) == ["b-2", "a-b-1"] and len(copy) == 2
    assert np.array_equal(copy.mask("b-2"), mask(37)) and copy.text("b-2") == "zwei ü"
    assert not copy.mask("a-b-1").any() and copy.mask("c-1") is None and copy.text("c-1") == ""
    copy.delete(["b-2", "c-1"])
    assert "b-2" not in copy and copy.nbytes() == 13
    with raises(UserError, 10, 12):
        MaskCache(12).restore(arrays, values)
    with raises(UserError, "damaged"):
        copy.restore({"masks": arrays["masks"][:1]}, values)


def test_cache_directory_is_replaced_and_checked(tmp_path):
    cache = MaskCache(SIDE)
    cache.save(tmp_path)
    assert len(MaskCache.load(tmp_path)) == 0
    cache.set("a-1", mask(50), "text")
    cache.save(tmp_path)
    cache.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # the earlier masks are gone
    copy = MaskCache.load(tmp_path)
    assert np.array_equal(copy.mask("a-1"), mask(50)) and copy.text("a-1") == "text"
    (masks,) = tmp_path.glob("*.safetensors")
    masks.write_bytes(masks.read_bytes()[:-1])
    with raises(UserError, masks):
        MaskCache.load(tmp_path)
    masks.unlink()
    with raises(UserError, masks, "cache.json"):
        MaskCache.load(tmp_path)
    with raises(UserError, tmp_path / "none"):
        MaskCache.load(tmp_path / "none")


def test_question_keys_separate_texts_from_images():
    keys = [
        question_key("m", {"seed": 1}, ("ab", b"c")),
        question_key("m", {"seed": 1}, ("a", b"bc")),
        question_key("m", {"seed": 1}, ("abc",)),
        question_key("m", {"seed": 1}, (b"ab", "c")),
        question_key("m", {"seed": 2}, ("ab", b"c")),
        question_key("n", {"seed": 1}, ("ab", b"c")),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == question_key("m", {"seed": 1}, ("ab", b"c"))


def test_answers_survive_a_cut_line_and_concurrent_writers(tmp_path):
    path = tmp_path / "deep" / "answers.jsonl"
    store = AnswerStore(path)
    assert store.get("k0") is None and not path.exists()
    threads = [
        threading.Thread(target=AnswerStore(path).put, args=(f"k{n}", "ä" * 500)) for n in range(8)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    path.write_bytes(path.read_bytes() + b'{"question": "k9", "ans')
    store = AnswerStore(path)
    assert len(store) == 8 and store.get("k3") == "ä" * 500 and store.get("k9") is None
    store.put("k9", "new", pair="a-1")
    assert AnswerStore(path).get("k9") == "new" and len(AnswerStore(path)) == 9


def test_another_file_is_no_store(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("hello\n")
    with raises(UserError, path):
        AnswerStore(path)
