"""Bounds on the sizes of files, and the environment variables that change them."""

import pathlib

import pytest

from mmjax import limits
from mmjax.errors import UserError
from tests.messages import raises


def test_check_names_the_size_the_limit_and_the_variable(monkeypatch):
    monkeypatch.setenv("MMJAX_MAX_IMAGE_PIXELS", "100")
    limits.check("IMAGE_PIXELS", 100, "a.png has")
    with raises(UserError, "a.png", "101 pixels", "100", "MMJAX_MAX_IMAGE_PIXELS=101"):
        limits.check("IMAGE_PIXELS", 101, "a.png has")


@pytest.mark.parametrize("value", ["0", "-1", "many", "1e9"])
def test_limit_must_be_a_positive_integer(monkeypatch, value):
    monkeypatch.setenv("MMJAX_MAX_IMAGE_PIXELS", value)
    with raises(UserError, "MMJAX_MAX_IMAGE_PIXELS", value):
        limits.limit("IMAGE_PIXELS")


def test_the_documentation_lists_every_limit_with_its_default():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    for name, default in limits.DEFAULTS.items():
        assert f"| `MMJAX_MAX_{name}` | {default:,} |" in page
