"""Zero-shot classification by class names or caption keywords."""

import numpy as np
import pytest
from sklearn import metrics as sk

from mmjax.data.text.tokenizers import WordTokenizer
from mmjax.data.text.word_vocab import build_word_vocab, write_word_vocab
from mmjax.errors import UserError
from mmjax.evals import captions
from mmjax.evals.zero_shot import classify, zero_shot_weights
from tests.evals.synthetic import unit
from tests.evals.touch_task import FakeTokenizer, TouchTask
from tests.messages import raises

ADJECTIVES = ["cold", "hard", "soft", "wet", "dry", "black ice"]


def touch_harness(make_harness, texts, *, noise=0.7, **info):
    """A harness whose touch embeddings are caption embeddings plus noise."""
    harness = make_harness({}, **info)
    harness.task, harness.tokenizer = TouchTask(), FakeTokenizer()
    harness.data_cfg = dict(corrupt="fail", touch={}, text=dict(max_tokens=8), label=None)
    ids = harness.tokenizer.encode(texts)
    touch = np.asarray(harness.task.embed(ids))[:, None]
    touch = touch + noise * np.random.default_rng(0).normal(size=touch.shape)
    harness.splits["test"] = {
        "touch": touch.astype(np.float32),
        "text": ids[:, None],
        "text_mask": np.ones((len(ids), 1), np.float32),
    }
    harness.touch = touch[:, 0]
    return harness


def test_weights_are_the_normalized_mean_over_templates():
    embedded = []

    def embed(texts):
        embedded.extend(texts)
        return np.array([[len(text), 5.0 * text.count("e"), 1.0] for text in texts])

    weights = zero_shot_weights(("wet", "hard {}"), embed, templates=("{}.", "It feels {}."))
    assert embedded == ["wet.", "It feels wet.", "hard {}.", "It feels hard {}."]
    each = unit(embed([*embedded]))
    expected = unit(np.stack([each[:2].mean(0), each[2:].mean(0)]))
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    scores = classify(7 * expected, weights)
    np.testing.assert_allclose(np.diag(scores), 1, atol=1e-6)
    for classes, templates in (((), ("{}",)), (("a",), ()), (("a",), ("It feels.",))):
        with raises(UserError, "classes", len(classes), "templates", templates):
            zero_shot_weights(classes, embed, templates=templates)


def test_labels_are_predicted_from_class_names(make_harness):
    label = np.arange(70) % 6
    texts = [ADJECTIVES[i] for i in label]
    names = [name.replace(" ", "_") for name in ADJECTIVES]
    harness = touch_harness(make_harness, texts, class_names=names, num_classes=6)
    label = label.astype(np.int32)
    harness.splits["test"]["label"] = np.where(np.arange(70) == 3, -1, label).astype(np.int32)
    results = harness.run(
        z=dict(type="zero_shot", templates=("{}.", "it feels {}."), batch_size=16)
    )
    sentences = [[f"{name}.", f"it feels {name}."] for name in ADJECTIVES]
    embeddings = np.array(
        [np.asarray(harness.task.embed(harness.tokenizer.encode(s))) for s in sentences]
    )
    weights = unit(embeddings).mean(axis=1)
    keep = np.arange(70) != 3
    scores = unit(harness.touch)[keep] @ unit(weights).T
    correct = scores.argmax(1) == label[keep]
    assert 0.5 < correct.mean() < 1
    assert results["z/touch/top1"] == pytest.approx(correct.mean())
    assert results["z/touch/top1_chance"] == pytest.approx(1 / 6)
    recall = sk.recall_score(label[keep], scores.argmax(1), average="macro")
    assert results["z/touch/mean_class_top1"] == pytest.approx(recall)
    top5 = (np.argsort(-scores, axis=1)[:, :5] == label[keep][:, None]).any(axis=1)
    assert results["z/touch/top5"] == pytest.approx(top5.mean())
    assert "z/touch/loss" not in results
    with_classes = harness.run(
        z=dict(type="zero_shot", templates=("{}.", "it feels {}."), classes=ADJECTIVES)
    )
    assert with_classes["z/touch/top1"] == results["z/touch/top1"]


def test_results_do_not_depend_on_the_text_block_size(make_harness, monkeypatch):
    label = (np.arange(30) % 6).astype(np.int32)
    harness = touch_harness(
        make_harness, [ADJECTIVES[i] for i in label], class_names=ADJECTIVES, num_classes=6
    )
    harness.splits["test"]["label"] = label
    expected = harness.run(z=dict(type="zero_shot"))
    monkeypatch.setattr("mmjax.evals.zero_shot._BLOCK", 4)
    assert harness.run(z=dict(type="zero_shot")) == expected


def test_caption_keywords_are_predicted(make_harness):
    rng = np.random.default_rng(0)
    sets = [rng.choice(ADJECTIVES, rng.integers(1, 4), replace=False) for _ in range(60)]
    texts = [", ".join([*s[:-1], "and " + s[-1]] if len(s) > 1 else s) + "." for s in sets]
    harness = touch_harness(make_harness, texts, noise=1.5)
    harness.splits["test"]["text_mask"][7] = 0
    results = harness.run(z=dict(type="zero_shot", truth="keywords", batch_size=16))
    keep = np.arange(60) != 7
    names = sorted(ADJECTIVES)
    truth = np.array([[name in s for name in names] for s in sets])[keep]
    weights = unit(
        np.asarray(harness.task.embed(harness.tokenizer.encode([f"{n}." for n in names])))
    )
    scores = unit(harness.touch)[keep] @ weights.T
    hits = truth[np.arange(59), scores.argmax(1)]
    assert 0.3 < hits.mean() < 1
    assert results["z/touch/top1"] == pytest.approx(hits.mean())
    assert results["z/touch/top1_chance"] == pytest.approx(truth.mean())
    assert results["z/touch/mAP"] == pytest.approx(
        sk.average_precision_score(truth, scores, average="macro")
    )
    assert harness.opened[-1].cfg["touch"] is None  # captions are read without images
    subset = harness.run(z=dict(type="zero_shot", truth="keywords", classes=("wet", "black ice")))
    assert set(subset) >= {"z/touch/top1", "z/touch/mAP"} and "z/touch/top5" not in subset
    with raises(UserError, "touch", "split 'test' of fake", "feels", "config.evals.z.classes"):
        harness.run(z=dict(type="zero_shot", truth="keywords", classes=("feels",)))


def test_caption_keywords_with_a_tokenizer_that_drops_commas(make_harness, tmp_path):
    rng = np.random.default_rng(1)
    sets = [rng.choice(ADJECTIVES, rng.integers(1, 4), replace=False) for _ in range(60)]
    texts = [", ".join([*s[:-1], "and " + s[-1]] if len(s) > 1 else s) + "." for s in sets]
    harness = touch_harness(make_harness, texts)
    vocab = tmp_path / "vocab.txt"
    write_word_vocab(vocab, build_word_vocab([*ADJECTIVES, "and"]))
    harness.tokenizer = tokenizer = WordTokenizer(str(vocab), max_tokens=8)
    ids = tokenizer.encode(texts)
    harness.task.table = rng.normal(size=(tokenizer.vocab_size, 6))
    harness.task.table[0] = 0
    harness.touch = np.asarray(harness.task.embed(ids), np.float32)
    harness.splits["test"] |= {"text": ids[:, None], "touch": harness.touch[:, None]}
    weights = unit(np.asarray(harness.task.embed(tokenizer.encode([f"{n}." for n in ADJECTIVES]))))
    truth = np.array([[name in s for name in ADJECTIVES] for s in sets])
    hits = truth[np.arange(60), (unit(harness.touch) @ weights.T).argmax(1)]
    assert 0.5 < hits.mean() < 1
    results = harness.run(z=dict(type="zero_shot", truth="keywords", classes=ADJECTIVES))
    assert results["z/touch/top1"] == pytest.approx(hits.mean())
    assert results["z/touch/top1_chance"] == pytest.approx(truth.mean())
    with raises(UserError, "config.data.text.tokenizer", "commas", "classes"):
        harness.run(z=dict(type="zero_shot", truth="keywords"))
    assert captions.keeps_commas(FakeTokenizer()) and not captions.keeps_commas(tokenizer)
    table = captions.mention_table(
        ["Wet black <unk> ice", "skinlike black ice", ""], ["black ice", "skin-like"]
    )
    assert table.tolist() == [[False, False], [True, True], [False, False]]


@pytest.mark.parametrize(
    "label, info, options, facts",
    [
        (None, {}, {}, ("fake", "label", "truth='keywords'")),
        (3, dict(class_names=["a", "b"]), {}, ("fake", "classes", 4, 2)),
        (1, dict(num_classes=3), dict(classes=("a", "b")), ("fake", "classes", 3, 2)),
        (-1, dict(class_names=["a", "it"]), {}, ("touch", "class")),
    ],
)
def test_data_without_usable_labels_are_refused(make_harness, label, info, options, facts):
    harness = touch_harness(make_harness, ["wet", "dry"], **info)
    if label is not None:
        harness.splits["test"]["label"] = np.array([label, min(label, 0)], np.int32)
    with raises(UserError, *facts):
        harness.run(z=dict(type="zero_shot", **options))


def test_a_missing_tokenizer_is_reported_before_anything_is_computed(make_harness):
    harness = touch_harness(make_harness, ["wet", "dry"])
    harness.tokenizer = None
    (evaluator,) = harness.make(z=dict(type="zero_shot"))
    with raises(UserError, "config.evals.z", "config.data.text"):
        evaluator.check(harness.state)
    with raises(UserError, "truth", "'keyword'", "'keywords'"):
        harness.make(z=dict(type="zero_shot", truth="keyword"))
