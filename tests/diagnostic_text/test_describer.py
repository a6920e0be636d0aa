"""The describer states what is wrong, where and how much."""

import numpy as np
import pytest

from mmjax.diagnostic_text import phrases
from mmjax.diagnostic_text.describer import DescriberWriter, describe
from mmjax.diagnostic_text.geometry import compare, position
from mmjax.diagnostic_text.validation import problem
from mmjax.diagnostic_text.writer import Text, build
from mmjax.errors import UserError
from tests.diagnostic_text.masks import box, disk, empty, pair
from tests.messages import raises

OBJECT = disk(56, 56, 22)
NOISE = np.random.default_rng(0).random((28, 28)).repeat(4, 0).repeat(4, 1) < 0.5
RING = disk(56, 56, 24) & ~disk(56, 56, 20)
FOUR = ("left", "right", "top", "bottom")
# name: (truth, prediction, [(type, where, sides)])
CASES = {
    "equal": (OBJECT, OBJECT, []),
    "absent": (empty(), empty(), []),
    "missed": (OBJECT, empty(), [("missed", "center", ())]),
    "hallucinated": (empty(), disk(20, 20, 10), [("hallucinated", "top left", ())]),
    "over": (OBJECT, OBJECT | box(40, 70, 60, 100), [("over_extended", "right", ("right",))]),
    "under": (OBJECT, OBJECT & box(0, 56, 0, 112), [("under_extended", "center", ("bottom",))]),
    "larger": (OBJECT, disk(56, 56, 30), [("over_extended", "center", FOUR)]),
    "smaller": (OBJECT, disk(56, 56, 15), [("under_extended", "center", FOUR)]),
    "shifted": (OBJECT, disk(56, 80, 22), [("shifted", "right", ())]),
    "shifted diagonally": (OBJECT, disk(40, 40, 22), [("shifted", "top left", ())]),
    "coarse": (OBJECT, OBJECT ^ (RING & NOISE), [("coarse", "center", ())]),
    "extra region": (OBJECT, OBJECT | disk(95, 95, 8), [("hallucinated", "bottom right", ())]),
    "elsewhere": (
        disk(20, 20, 15),
        disk(90, 90, 15),
        [("missed", "top left", ()), ("hallucinated", "bottom right", ())],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_deviations(name):
    truth, prediction, expected = CASES[name]
    result = compare(truth, prediction)
    found = [(d.type, d.where, tuple(sorted(d.sides, key=FOUR.index))) for d in result.deviations]
    assert found == expected
    text = describe(pair(truth, prediction))
    assert problem(text, "CAT", ("class", "english")) is None
    assert "{" not in text


def test_amounts_are_shares():
    truth = box(0, 40, 0, 40)
    (over,) = compare(truth, box(0, 40, 0, 60)).deviations
    assert over.amount == pytest.approx((20 - 2) / 40)  # beyond the band of 2 pixels
    (shift,) = compare(truth, box(0, 40, 10, 50)).deviations[:1]
    assert shift.amount == pytest.approx(10 / (2 * np.sqrt(1600 / np.pi)))
    assert compare(truth, box(0, 40, 0, 60)).iou == pytest.approx(2 / 3)


def test_several_regions_are_counted_and_the_most_severe_comes_first():
    truth = OBJECT | disk(95, 95, 12) | disk(15, 15, 6)
    prediction = OBJECT | box(30, 80, 60, 110)
    missed, over = sorted(compare(truth, prediction).deviations, key=lambda d: d.type)
    assert (missed.type, missed.count, missed.where) == ("missed", 2, "bottom right")
    assert compare(truth, prediction).deviations[0] == over
    assert "everal" in describe(pair(truth, OBJECT))


def test_void_pixels_do_not_count():
    extra = box(40, 70, 60, 100)
    assert compare(OBJECT, OBJECT | extra, extra & ~OBJECT).deviations == ()
    assert not compare(OBJECT, OBJECT & ~extra, extra).deviations


def test_text_is_deterministic_varied_and_bounded():
    truth, prediction, _ = CASES["over"]
    texts = [describe(pair(truth, prediction, key=f"{n}-8")) for n in range(30)]
    assert texts == [describe(pair(truth, prediction, key=f"{n}-8")) for n in range(30)]
    assert len(set(texts)) >= 6
    assert describe(pair(truth, prediction), max_sentences=1).count(".") == 1
    assert describe(pair(truth, prediction, key="0-8"), seed=1) != texts[0]
    assert max(len(text.split()) for text in texts) < 45


def test_severity_and_quality_follow_the_amount():
    assert set(phrases.adverbs(0.05)).isdisjoint(phrases.adverbs(0.5))
    slight = describe(pair(OBJECT, OBJECT | box(50, 60, 60, 86)))
    severe = describe(pair(OBJECT, OBJECT | box(30, 80, 60, 110)))
    assert any(word in slight for word in phrases.adverbs(0.05))
    assert any(word in severe for word in phrases.adverbs(0.5))


@pytest.mark.parametrize(("row", "column"), [(10, 10), (10, 56), (100, 100), (56, 56)])
def test_positions(row, column):
    vertical, horizontal = {10: "top", 56: "", 100: "bottom"}, {10: "left", 56: "", 100: "right"}
    expected = f"{vertical[row]} {horizontal[column]}".strip() or "center"
    assert position(disk(row, column, 5)) == expected


def test_the_writer_is_found_by_name_and_checks_its_section():
    writer = build("describer", dict(max_sentences=1), "text.writer")
    assert isinstance(writer, DescriberWriter)
    (text,) = writer.write([pair(OBJECT, empty())])
    assert text == Text("img-8", describe(pair(OBJECT, empty()), max_sentences=1))
    with raises(UserError, "text.writer.max_sentence", "text.writer.max_sentences"):
        build("describer", dict(max_sentence=1), "text.writer")
    with raises(UserError, "text.writer.name", "describer"):
        build("describe", {}, "text.writer")
    with raises(UserError, "max_sentences", 0):
        DescriberWriter(max_sentences=0)
