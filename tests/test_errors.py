"""Errors about unknown names."""

import pytest

from mmjax import errors
from tests.messages import assert_mentions, raises


def test_an_unknown_name_lists_the_nearest_and_all_valid_names():
    error = errors.unknown("optimizer", "adamx", ["sgd", "adamw", "lion"])
    assert isinstance(error, errors.UserError)
    assert_mentions(error, "optimizer", "'adamx'", "'adamw'", "adamw, lion, sgd")


@pytest.mark.parametrize(("name", "quoted"), [("adamx", ["adamw"]), ("xyz", [])])
def test_a_name_is_suggested_only_if_it_is_similar(name, quoted):
    message = str(errors.unknown("mode", name, ["sgd", "adamw"]))
    assert_mentions(message, "mode", "adamw, sgd")
    assert message.split("'")[1::2] == [name, *quoted]


def test_valid_names_may_be_of_any_type():
    assert_mentions(errors.unknown("mode", "xyz", {1, 2}), "mode", "'xyz'", "1, 2")


def test_choose_returns_the_value_of_a_name():
    assert errors.choose("letter", "a", {"a": 1, "b": 2}) == 1
    with raises(errors.UserError, "letter", "'c'", "a, b"):
        errors.choose("letter", "c", {"a": 1, "b": 2})
