"""Checks of answers."""

import pytest

from mmjax.diagnostic_text.validation import clean, names_class, problem, shorten

BOTH = ("class", "english")


@pytest.mark.parametrize(
    ("answer", "name", "expected"),
    [
        ("The CAT region is missed.", "CAT", True),
        ("Both cats are missed.", "CAT", True),
        ("The object is located left.", "CAT", False),
        ("The TV monitor is coarse.", "TVMONITOR", True),
        ("The potted-plants are coarse.", "POTTEDPLANT", True),
        ("The traffic_light is missed.", "traffic light", True),
        ("The DOG region is missed.", "CAT", False),
    ],
)
def test_names_class(answer, name, expected):
    assert names_class(answer, name) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The CAT region is over-extended in the lower left.", None),
        ("CAT missed entirely.", None),
        ("CAT: boundary imprecise, left part missed.", None),
        ("", "empty"),
        ("The region is over-extended.", "class"),
        ("Die CAT-Region ist links unten zu groß und der Rand ungenau.", "language"),
        ("La región CAT está demasiado extendida en la parte inferior izquierda.", "language"),
        ("La région CAT est trop étendue en bas à gauche de l'image.", "language"),
        ("La regione CAT è estesa a sinistra e in alto, non a destra.", "language"),
        ("AEROPLANE and CAT: fuselage captured, wingtips fragmented along the edge.", None),
        ("猫 CAT 区域在左下方过度扩展。", "language"),
        ("Область CAT слишком велика слева внизу.", "language"),
    ],
)
def test_problem(answer, expected):
    assert problem(answer, "CAT", BOTH) == expected
    assert problem(answer, "CAT", ()) == (expected if expected == "empty" else None)


def test_clean_removes_thoughts():
    assert clean("<think>\nThe cat…\n</think>\n The CAT is fine. \n") == "The CAT is fine."


def test_shorten_keeps_leading_sentences():
    text = "One two. Three four! Five six?"
    assert shorten(text, lambda t: len(t.split()) <= 4) == "One two. Three four!"
    assert shorten(text, lambda t: False) == "One two."
    assert shorten(text, lambda t: True) == text
