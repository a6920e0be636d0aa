import numpy as np
import pytest
from sklearn import metrics as sk

from mmjax.data.tokenizers import WordTokenizer, build_word_vocab, write_word_vocab
from mmjax.errors import UserError
from mmjax.evals import captions
from mmjax.evals.zero_shot import classify, zero_shot_weights
from tests.evals.words import TouchTask, Words

ADJECTIVES = ["cold", "hard", "soft", "wet", "dry", "black ice"]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def touched(bench, texts, *, noise=0.7, **info):
    """A bench whose touch is its caption's words, with noise."""
    b = bench({}, **info)
    b.task, b.tokenizer = TouchTask(), Words()
    b.data_cfg = dict(corrupt="fail", touch={}, text=dict(max_words=8), label=None)
    ids = b.tokenizer.encode(texts)
    touch = np.asarray(b.task.embed(ids))[:, None]
    touch = touch + noise * np.random.default_rng(0).normal(size=touch.shape)
    b.splits["test"] = {
        "touch": touch.astype(np.float32),
        "text": ids[:, None],
        "text_mask": np.ones((len(ids), 1), np.float32),
    }
    b.touch = touch[:, 0]
    return b


def test_weights_are_the_mean_over_templates():
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.array([[len(text), 5.0 * text.count("e"), 1.0] for text in texts])

    weights = zero_shot_weights(("wet", "hard {}"), embed, templates=("{}.", "It feels {}."))
    assert asked == ["wet.", "It feels wet.", "hard {}.", "It feels hard {}."]
    each = unit(embed([*asked]))
    want = unit(np.stack([each[:2].mean(0), each[2:].mean(0)]))
    np.testing.assert_allclose(weights, want, atol=1e-6)
    scores = classify(7 * want, weights)
    np.testing.assert_allclose(np.diag(scores), 1, atol=1e-6)
    for classes, templates in (((), ("{}",)), (("a",), ()), (("a",), ("It feels.",))):
        with pytest.raises(UserError, match="needs classes"):
            zero_shot_weights(classes, embed, templates=templates)


def test_labels_are_classified_by_the_names_of_their_classes(bench):
    label = np.arange(70) % 6
    texts = [ADJECTIVES[i] for i in label]
    names = [name.replace(" ", "_") for name in ADJECTIVES]
    b = touched(bench, texts, class_names=names, num_classes=6)
    label = label.astype(np.int32)
    b.splits["test"]["label"] = np.where(np.arange(70) == 3, -1, label).astype(np.int32)
    found = b.run(z=dict(type="zero_shot", templates=("{}.", "it feels {}."), batch_size=16))
    sentences = [[f"{name}.", f"it feels {name}."] for name in ADJECTIVES]
    rows = np.array([np.asarray(b.task.embed(b.tokenizer.encode(s))) for s in sentences])
    weights = unit(rows).mean(axis=1)
    keep = np.arange(70) != 3
    scores = unit(b.touch)[keep] @ unit(weights).T
    right = scores.argmax(1) == label[keep]
    assert 0.5 < right.mean() < 1
    assert found["z/touch/top1"] == pytest.approx(right.mean())
    assert found["z/touch/top1_chance"] == pytest.approx(1 / 6)
    recall = sk.recall_score(label[keep], scores.argmax(1), average="macro")
    assert found["z/touch/mean_class_top1"] == pytest.approx(recall)
    assert found["z/touch/top5"] >= found["z/touch/top1"] and "z/touch/loss" not in found
    own = b.run(z=dict(type="zero_shot", templates=("{}.", "it feels {}."), classes=ADJECTIVES))
    assert own["z/touch/top1"] == found["z/touch/top1"]


def test_more_classes_than_a_block(bench, monkeypatch):
    label = (np.arange(30) % 6).astype(np.int32)
    b = touched(bench, [ADJECTIVES[i] for i in label], class_names=ADJECTIVES, num_classes=6)
    b.splits["test"]["label"] = label
    whole = b.run(z=dict(type="zero_shot"))
    monkeypatch.setattr("mmjax.evals.zero_shot._BLOCK", 4)
    assert b.run(z=dict(type="zero_shot")) == whole


def test_keywords_of_captions_are_classes(bench):
    rng = np.random.default_rng(0)
    sets = [rng.choice(ADJECTIVES, rng.integers(1, 4), replace=False) for _ in range(60)]
    texts = [", ".join([*s[:-1], "and " + s[-1]] if len(s) > 1 else s) + "." for s in sets]
    b = touched(bench, texts, noise=1.5)
    b.splits["test"]["text_mask"][7] = 0
    found = b.run(z=dict(type="zero_shot", truth="keywords", batch_size=16))
    keep = np.arange(60) != 7
    names = sorted(ADJECTIVES)
    truth = np.array([[name in s for name in names] for s in sets])[keep]
    weights = unit(np.asarray(b.task.embed(b.tokenizer.encode([f"{n}." for n in names]))))
    scores = unit(b.touch)[keep] @ weights.T
    hits = truth[np.arange(59), scores.argmax(1)]
    assert 0.3 < hits.mean() < 1
    assert found["z/touch/top1"] == pytest.approx(hits.mean())
    assert found["z/touch/top1_chance"] == pytest.approx(truth.mean())
    assert found["z/touch/mAP"] == pytest.approx(
        sk.average_precision_score(truth, scores, average="macro")
    )
    assert b.opened[-1].cfg["touch"] is None  # captions are read without pictures
    some = b.run(z=dict(type="zero_shot", truth="keywords", classes=("wet", "black ice")))
    assert set(some) >= {"z/touch/top1", "z/touch/mAP"} and "z/touch/top5" not in some
    with pytest.raises(UserError, match="no example with touch has a class"):
        b.run(z=dict(type="zero_shot", truth="keywords", classes=("feels",)))


def test_keywords_of_a_tokenizer_without_commas(bench, tmp_path):
    rng = np.random.default_rng(1)
    sets = [rng.choice(ADJECTIVES, rng.integers(1, 4), replace=False) for _ in range(60)]
    texts = [", ".join([*s[:-1], "and " + s[-1]] if len(s) > 1 else s) + "." for s in sets]
    b = touched(bench, texts)
    vocab = tmp_path / "vocab.txt"
    write_word_vocab(vocab, build_word_vocab([*ADJECTIVES, "and"]))
    b.tokenizer = words = WordTokenizer(str(vocab), max_words=8)
    ids = words.encode(texts)
    b.task.table = rng.normal(size=(words.vocab_size, 6))
    b.task.table[0] = 0
    b.touch = np.asarray(b.task.embed(ids), np.float32)
    b.splits["test"] |= {"text": ids[:, None], "touch": b.touch[:, None]}
    weights = unit(np.asarray(b.task.embed(words.encode([f"{n}." for n in ADJECTIVES]))))
    truth = np.array([[name in s for name in ADJECTIVES] for s in sets])
    hits = truth[np.arange(60), (unit(b.touch) @ weights.T).argmax(1)]
    assert 0.5 < hits.mean() < 1
    found = b.run(z=dict(type="zero_shot", truth="keywords", classes=ADJECTIVES))
    assert found["z/touch/top1"] == pytest.approx(hits.mean())
    assert found["z/touch/top1_chance"] == pytest.approx(truth.mean())
    with pytest.raises(UserError, match="leaves out commas"):
        b.run(z=dict(type="zero_shot", truth="keywords"))
    assert captions.keep_commas(Words()) and not captions.keep_commas(words)
    table = captions.mentions(
        ["Wet black <unk> ice", "skinlike black ice", ""], ["black ice", "skin-like"]
    )
    assert table.tolist() == [[False, False], [True, True], [False, False]]


def test_captions_are_taken_apart():
    assert captions.keywords("Soft, black ice, and grey.\n") == ["soft", "black ice", "grey"]
    assert captions.keywords("soft, and sandy") == captions.keywords("soft and sandy,")
    assert captions.keywords("sandy, android.") == ["sandy", "android"]
    assert captions.keywords(" .") == []
    assert captions.all_keywords(["b, a", "a - b. c", "a-b"]) == ["a", "a - b c", "a-b", "b"]
    table = captions.table(["fabric - like, wet", ""], ["fabric-like", "we", "wet"])
    assert table.tolist() == [[True, False, True], [False] * 3]


@pytest.mark.parametrize(
    "label, info, options, message",
    [
        (None, {}, {}, "has no labels; truth='keywords'"),
        (3, dict(class_names=["a", "b"]), {}, "has 4 classes but 2 names"),
        (1, dict(num_classes=3), dict(classes=("a", "b")), "has 3 classes but 2 names"),
        (-1, dict(class_names=["a", "it"]), {}, "no example with touch has a class"),
    ],
)
def test_what_cannot_be_classified(bench, label, info, options, message):
    b = touched(bench, ["wet", "dry"], **info)
    if label is not None:
        b.splits["test"]["label"] = np.array([label, min(label, 0)], np.int32)
    with pytest.raises(UserError, match=message):
        b.run(z=dict(type="zero_shot", **options))


def test_a_tokenizer_is_needed_before_anything_is_computed(bench):
    b = touched(bench, ["wet", "dry"])
    b.tokenizer = None
    (evaluator,) = b.make(z=dict(type="zero_shot"))
    with pytest.raises(UserError, match="needs config.data.text"):
        evaluator.check(b.state)
    with pytest.raises(UserError, match="Did you mean 'keywords'"):
        b.make(z=dict(type="zero_shot", truth="keyword"))
