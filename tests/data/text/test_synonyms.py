"""Tests of synonym tables: format, order, and the table included in the package."""

import json
import subprocess
import sys

import pytest

from mmjax.data.text.synonyms import load_synonyms
from mmjax.errors import UserError
from tests.messages import raises


def write(path, contents):
    path.write_text(json.dumps(contents) if not isinstance(contents, str) else contents)
    return str(path)


def test_each_word_is_first_and_its_synonyms_are_unique_and_in_order(tmp_path):
    path = write(
        tmp_path / "s.json",
        {"rough": ["coarse", "rough", "Bumpy ", "coarse", ""], "soft": [], " Rough": ["uneven"]},
    )
    assert load_synonyms(path) == {
        "rough": ["rough", "coarse", "bumpy", "uneven"],
        "soft": ["soft"],
    }
    assert load_synonyms(path, keep=2) == {"rough": ["rough", "coarse"], "soft": ["soft"]}


def test_included_tactile_table():
    table = load_synonyms("tactile")
    assert len(table) >= 60
    for word, others in table.items():
        assert others[0] == word and 4 <= len(others) <= 7, word
        assert all(text.strip(" ") == text and "," not in text for text in others)
    assert load_synonyms("tactile", keep=1) == {word: [word] for word in table}


@pytest.mark.parametrize(
    "contents, facts",
    [
        ("[1, 2]", ("object",)),
        ("{", ("JSON", "line 1 column 2")),
        ({"rough": "coarse"}, ("'rough'", "'coarse'")),
        ({"rough": [1]}, ("'rough'", "[1]")),
        ({" ": ["coarse"]}, ("['coarse']",)),
    ],
)
def test_invalid_files_are_rejected(tmp_path, contents, facts):
    path = write(tmp_path / "s.json", contents)
    with raises(UserError, path, *facts):
        load_synonyms(path)


def test_missing_file_and_negative_keep_are_rejected(tmp_path):
    with raises(UserError, tmp_path / "none.json", "'tactile'", "JSON"):
        load_synonyms(tmp_path / "none.json")
    with raises(UserError, -1, 0, "synonyms"):
        load_synonyms("tactile", keep=-1)


def test_synonyms_do_not_import_tensorflow():
    code = (
        "import sys; from mmjax.data.text.synonyms import load_synonyms; load_synonyms('tactile'); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
