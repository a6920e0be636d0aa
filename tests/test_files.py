"""Atomic writes of files and directories, and readers of text and JSON."""

import json
import os

import pytest

from mmjax import files
from mmjax.errors import UserError
from tests.messages import raises


def test_text_and_json_round_trip(tmp_path):
    files.write_text(tmp_path / "a" / "text.txt", "é\r\n")
    assert (tmp_path / "a" / "text.txt").read_bytes() == "é\r\n".encode()
    files.write_json(tmp_path / "value.json", {"k": [1, None]})
    assert json.loads((tmp_path / "value.json").read_text()) == {"k": [1, None]}


def test_exception_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), files.atomic_open(path, "wb") as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.bin"]


def test_file_has_its_name_only_when_complete(tmp_path):
    with files.atomic_open(tmp_path / "file.txt") as file:
        file.write("x")
        assert not (tmp_path / "file.txt").exists()
    assert os.listdir(tmp_path) == ["file.txt"]


def test_directory_appears_complete_or_not_at_all(tmp_path):
    with files.atomic_path(tmp_path / "run") as partial:
        partial.mkdir()
        (partial / "a").write_text("a")
        assert not (tmp_path / "run").exists()
    assert os.listdir(tmp_path / "run") == ["a"]
    with pytest.raises(ZeroDivisionError), files.atomic_path(tmp_path / "other") as partial:
        partial.mkdir()
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["run"]


def test_leftovers_are_the_partial_files_of_one_path(tmp_path):
    path = tmp_path / "file[1].txt"
    expected = [files.partial_path(path), tmp_path / ".file[1].txt.partial-1"]
    for file in (*expected, path, files.partial_path(tmp_path / "file1.txt")):
        file.touch()
    assert files.leftovers(path) == sorted(expected)


@pytest.mark.parametrize(
    "content, facts",
    [
        (b"caf\xe9", ["is not UTF-8", "0xe9", "position 3"]),
        (b"", ["is not valid JSON"]),
        (b"\0\0\0\0", ["is not valid JSON"]),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ["nested too deeply"]),
    ],
)
def test_unreadable_json_is_an_error_that_names_the_file(tmp_path, content, facts):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with raises(UserError, path, *facts):
        files.read_json(path)


def test_text_is_read_without_a_byte_order_mark(tmp_path):
    path = tmp_path / "value.json"
    path.write_bytes(b"\xef\xbb\xbf" + '{"a": "é"}'.encode())
    assert files.read_text(path) == '{"a": "é"}'
    assert files.read_json(path) == files.parse_json(path.read_bytes(), "here") == {"a": "é"}


def test_missing_text_file_is_an_error_that_names_it(tmp_path):
    with raises(UserError, tmp_path / "no.txt", "does not exist"):
        files.read_text(tmp_path / "no.txt")


def test_text_nested_deeper_than_python_recurses_is_an_error_that_names_its_place():
    value = "é"
    for _ in range(100_000):
        value = [value]
    with raises(UserError, "a.json, 'key'", "nested too deeply"):
        files.valid_text(value, "a.json, 'key',")
    assert files.valid_text({"é\ud83d": ["\ud83d"]}, "a.json") == ({"é\ufffd": ["\ufffd"]}, 1)


@pytest.mark.parametrize("content", ["[1]", "{", "null"])
def test_what_is_not_an_object_is_an_error_with_the_advice(tmp_path, content):
    (tmp_path / "value.json").write_text(content)
    with raises(UserError, tmp_path / "value.json", "Write it again."):
        files.read_object(tmp_path / "value.json", "Write it again.")
