"""Template texts and word negatives."""

import json

import numpy as np
import pytest

from mmjax.diagnostic_text import negatives, templates
from mmjax.diagnostic_text.writer import build
from mmjax.errors import UserError
from tests.diagnostic_text.masks import box, empty, pair
from tests.messages import raises

TEXT = "The CAT region, over-extended to the top left."


def test_every_case_has_a_template():
    table = templates.load_templates()
    assert len(templates.CASES) == 15 and set(table) == set(templates.CASES)
    assert all(templates.PLACEHOLDER in text for text in table.values())


@pytest.mark.parametrize(
    ("truth", "prediction", "case"),
    [
        (box(0, 9, 0, 9), box(0, 9, 0, 9), "TP+TN"),
        (box(0, 9, 0, 9), box(5, 15, 0, 9), "TP+TN+FP+FN"),
        (~empty(), empty(), "FN"),
        (empty(), ~empty(), "FP"),
        (empty(), box(0, 1, 0, 1), "TN+FP"),
    ],
)
def test_cases(truth, prediction, case):
    assert templates.case_of(truth, prediction) == case
    (text,) = build("templates", {}, "text").write([pair(truth, prediction)])
    assert text.text == templates.load_templates()[case].replace("{POS_CLASS}", "CAT")


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"TP": None}, ["TP"]),
        ({"TP": "the {CLASS}"}, ["{CLASS}", "{POS_CLASS}", "TP"]),
        ({"TP+TX": "text"}, ["TP+TX", "TP+TN"]),
    ],
)
def test_bad_templates_are_reported(tmp_path, change, facts):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(templates.load_templates() | change))
    with raises(UserError, path, *facts):
        templates.load_templates(path)
    table = templates.load_templates()
    del table["FP+FN"]
    path.write_text(json.dumps(table))
    with raises(UserError, path, "FP+FN"):
        templates.load_templates(path)


def test_tokens_and_replaceable_words():
    tokens = negatives.split(TEXT)
    assert tokens == "The CAT region , over - extended to the top left .".split()
    assert negatives.join(tokens) == TEXT
    generator = negatives.NegativeTexts(probability=0)
    changed = {
        old
        for text in generator.generate(TEXT, 30, seed=0)
        for old, new in zip(tokens, negatives.split(text), strict=True)
        if old != new
    }
    assert changed == {"CAT", "over", "extended", "top", "left"}
    one = generator.generate(TEXT, 20, seed=0, class_names=["CAT"])
    assert all("CAT" in text for text in one)


@pytest.mark.parametrize("n", [0, 1, 31])
def test_negatives_are_exact_unique_and_reproducible(n):
    generator = negatives.NegativeTexts()
    texts = generator.generate(TEXT, n, seed=3)
    assert len(texts) == len(set(texts)) == n and TEXT not in texts
    assert texts == negatives.NegativeTexts().generate(TEXT, n, seed=3)
    assert n == 0 or texts != generator.generate(TEXT, n, seed=4)


def test_probability_one_changes_every_replaceable_word():
    (text,) = negatives.NegativeTexts(probability=1).generate(TEXT, 1, seed=0)
    old, new = negatives.split(TEXT), negatives.split(text)
    assert sum(a != b for a, b in zip(old, new, strict=True)) == 5


def test_own_classes_replace_each_other_also_with_spaces():
    names = ["traffic light", "car", "dining table"]
    texts = negatives.NegativeTexts(probability=0).generate(
        "the Traffic Light of Bob", 2, seed=0, class_names=names
    )
    assert set(texts) == {"the car of Bob", "the dining table of Bob"}


def test_without_replaceable_words_tokens_are_shuffled_then_removed_then_padded():
    texts = negatives.NegativeTexts().generate("a b", 4, seed=0)
    assert texts[0] == "b a" and set(texts[1:3]) == {"a", "b"} and texts[3] == " "
    assert negatives.NegativeTexts().generate("a", 2, seed=0) == ["", " "]


def test_bad_pools_are_reported(tmp_path):
    path = tmp_path / "pools.json"
    for pools, facts in (
        ({"a": ["top"]}, ["'a'", "top"]),
        ({"a": ["top", "left"], "b": ["TOP", "x"]}, ["TOP", "'a'", "'b'"]),
    ):
        path.write_text(json.dumps(pools))
        with raises(UserError, path, *facts):
            negatives.NegativeTexts(path=path)
    with raises(UserError, "probability", 1.5):
        negatives.NegativeTexts(probability=1.5)


def test_no_word_is_in_two_built_in_pools():
    words = [word.lower() for pool in negatives.load_pools().values() for word in pool]
    assert len(words) == len(set(words)) > 137
    assert np.all([len(pool) > 1 for pool in negatives.load_pools().values()])
