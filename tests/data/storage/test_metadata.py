"""Tests of reading descriptions of arrays."""

import pytest

from mmjax import files
from mmjax.data.storage import dataset, metadata
from mmjax.errors import UserError
from tests.messages import raises


def check(content):
    if content["count"] < 0:
        raise ValueError(f"count={content['count']}")
    return content


def test_description_is_read_and_a_missing_file_is_none(tmp_path):
    path = tmp_path / "pairs.json"
    assert metadata.read(path, "pairs", check) is None
    files.write_json(path, {"count": 3})
    assert metadata.read(path, "pairs", check) == {"count": 3}


def test_error_names_the_file_and_the_problem(tmp_path):
    path = tmp_path / "pairs.json"
    for text, fact in (
        ("{", "line 1 column 2"),
        ('{"size": 1}', "'count' is missing"),
        ('{"count": -1}', "count=-1"),
        ("[]", "list indices"),
    ):
        path.write_text(text)
        with raises(UserError, path, "pairs", fact):
            metadata.read(path, "pairs", check)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": "\xff"}', b"", b"[]", b"3", b"null"])
def test_damaged_json_is_named(tmp_path, content):
    path = tmp_path / "pairs.json"
    path.write_bytes(content)
    with raises(UserError, path, "pairs"):
        metadata.read(path, "pairs", lambda value: {"n": value["n"]})
    (tmp_path / "dataset.json").write_bytes(content)
    with raises(UserError, tmp_path / "dataset.json", "mmjax index"):
        dataset.DatasetInfo.load(tmp_path)
