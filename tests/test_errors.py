import pytest

from mmjax import errors


def test_an_unknown_name_says_which_were_valid_and_which_was_meant():
    error = errors.unknown("optimizer", "adamx", ["sgd", "adamw", "lion"])
    assert isinstance(error, errors.UserError)
    assert str(error) == "Unknown optimizer 'adamx'. Did you mean 'adamw'? Valid: adamw, lion, sgd."


def test_no_guess_for_a_name_like_no_other():
    assert str(errors.unknown("mode", "xyz", {1, 2})) == "Unknown mode 'xyz'. Valid: 1, 2."


def test_choose():
    assert errors.choose("letter", "a", {"a": 1, "b": 2}) == 1
    with pytest.raises(errors.UserError, match="Unknown letter 'c'. Valid: a, b"):
        errors.choose("letter", "c", {"a": 1, "b": 2})
