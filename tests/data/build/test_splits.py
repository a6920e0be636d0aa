"""Names of splits, fractions and parts."""

import pytest

from mmjax.data.build import splits
from mmjax.errors import UserError
from tests.messages import raises


def test_fractions_are_parsed():
    assert splits.parse_fractions("train:0.8, test:0.2") == (("train", 0.8), ("test", 0.2))
    assert splits.parse_fractions(None) == splits.parse_fractions("") == ()
    assert splits.cumulative([("a", 0.25), ("b", 0.75)]) == [0.25, 1.0]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("train:0.8,test:0.1", ("sum is 0.9",)),
        ("train:1.5,test:-0.5", ("positive",)),
        ("train:nan", ("positive",)),
        ("train", ("train:0.8,test:0.2",)),
        ("tr/ain:1", ("train:0.8,test:0.2",)),
    ],
)
def test_malformed_fractions_name_the_option(text, facts):
    with raises(UserError, "--split-by-file", repr(text), *facts):
        splits.parse_fractions(text, option="--split-by-file")


def test_parts_are_parsed():
    assert splits.parse_part("3/8", option="--part") == (3, 8)
    assert splits.parse_part(None, option="--part") == (0, 1)
    for text in ("8/8", "-1/2", "1", "a/b"):
        with raises(UserError, "--part", text, "I/N"):
            splits.parse_part(text, option="--part")


def test_each_split_is_named_once():
    assert splits.check_splits("train1 + test2+train1") == "train1+test2"
    with raises(ValueError, "'a/b'"):
        splits.check_splits("train+a/b")
