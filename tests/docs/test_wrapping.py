"""Prose of the documentation is wrapped at 100 columns."""

import re

import pytest

from tests.docs import pages


@pytest.mark.parametrize("page", [*pages.NAMES, "CHANGELOG.md"])
def test_prose_is_wrapped_at_100_columns(page):
    text = (pages.REPOSITORY / page).read_text()
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in prose.splitlines() if not line.lstrip().startswith("|")]
    assert not [line for line in lines if len(line) > 100]
