"""Groups of records within which neighbors are searched."""

import json

from mmjax.data.pairs import scopes
from mmjax.errors import UserError
from tests.messages import raises


def test_subreddit_names_may_contain_underscores():
    result = scopes.groups_of(
        "subreddit", None, ["a/old_cars_2017_1/x.jpg", "old_cars_2018_2/y.jpg", "old_2017_1/z.jpg"]
    )
    assert result[0] == result[1] != result[2]


def test_a_file_in_a_directory_with_another_name_is_reported():
    with raises(UserError, "--scope year", "record 1", "'plain/y.jpg'", "<subreddit>_<year>"):
        scopes.groups_of("year", None, ["a/cars_2017_1/x.jpg", "plain/y.jpg"])


def test_lines_without_a_value_in_the_scope_column_form_their_own_groups(tmp_path):
    table = tmp_path / "t.jsonl"
    lines = [{"path": "a"}, {"path": "b", "by": 1}, {"path": "c", "by": 1}, {"path": "d", "by": ""}]
    table.write_text("\n".join(map(json.dumps, lines)))
    groups = scopes.groups_of(f"{table}:by", None, ["a", "b", "c", "d", "e"])
    assert groups[1] == groups[2] and len(set(groups.tolist())) == 4
    with raises(UserError, "--scope", f"{table}:author", "path, by"):
        scopes.groups_of(f"{table}:author", None, ["a"])
