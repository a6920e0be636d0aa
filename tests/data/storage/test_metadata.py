"""Tests of reading descriptions of arrays."""

from mmjax import files
from mmjax.data.storage import metadata
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
