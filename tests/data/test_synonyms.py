"""Tables of synonyms: their form, their order, the one that comes with the package."""

import json
import subprocess
import sys

import pytest

from mmjax.data.synonyms import load_synonyms
from mmjax.errors import UserError


def write(path, contents):
    path.write_text(json.dumps(contents) if not isinstance(contents, str) else contents)
    return str(path)


def test_a_word_comes_first_and_others_once_in_their_order(tmp_path):
    path = write(
        tmp_path / "s.json",
        {"rough": ["coarse", "rough", "Bumpy ", "coarse", ""], "soft": [], " Rough": ["uneven"]},
    )
    assert load_synonyms(path) == {
        "rough": ["rough", "coarse", "bumpy", "uneven"],
        "soft": ["soft"],
    }
    assert load_synonyms(path, keep=2) == {"rough": ["rough", "coarse"], "soft": ["soft"]}


def test_the_table_of_the_package():
    table = load_synonyms("tactile")
    assert len(table) >= 60
    for word, others in table.items():
        assert others[0] == word and 4 <= len(others) <= 7, word
        assert all(text.strip(" ") == text and "," not in text for text in others)
    assert load_synonyms("tactile", keep=1) == {word: [word] for word in table}


@pytest.mark.parametrize(
    "contents, message",
    [
        ("[1, 2]", "no object"),
        ("{", "cannot be read as JSON"),
        ({"rough": "coarse"}, "synonyms of 'rough'"),
        ({"rough": [1]}, "synonyms of 'rough'"),
        ({" ": ["coarse"]}, "a word is empty"),
    ],
)
def test_other_files_are_refused(tmp_path, contents, message):
    path = write(tmp_path / "s.json", contents)
    with pytest.raises(UserError, match=f"s.json.*{message}"):
        load_synonyms(path)


def test_a_missing_file_and_a_negative_number(tmp_path):
    with pytest.raises(UserError, match="There is no file .*none.json.*'tactile'"):
        load_synonyms(tmp_path / "none.json")
    with pytest.raises(UserError, match="-1 are to be kept"):
        load_synonyms("tactile", keep=-1)


def test_it_needs_no_tensorflow():
    code = (
        "import sys; from mmjax.data.synonyms import load_synonyms; load_synonyms('tactile'); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
