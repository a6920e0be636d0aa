"""Listing the files below a directory, through symbolic links."""

import os

from mmjax.data.storage import directories
from tests.messages import assert_mentions


def test_walk_follows_links_but_not_cycles(tmp_path):
    (tmp_path / "top" / "b" / "deep").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    for name in ("top/1", "top/b/2", "top/b/deep/3", "else/4"):
        (tmp_path / name).touch()
    for link, target in (("a", "else"), ("b/up", "top"), ("b/deep/same", "top/b/deep")):
        (tmp_path / "top" / link).symlink_to(tmp_path / target)
    (tmp_path / "entry").symlink_to(tmp_path / "top")
    (tmp_path / "top" / "b" / "sibling").symlink_to("deep")  # not a cycle
    for root in ("top", "entry"):
        result = [
            os.path.relpath(os.path.join(directory, file), tmp_path / root)
            for directory, _, files in directories.walk(str(tmp_path / root))
            for file in files
        ]
        assert result == ["1", "a/4", "b/2", "b/deep/3", "b/sibling/3"]


def test_hidden_system_and_undecodable_entries_are_skipped(tmp_path, caplog):
    for name in (".ipynb_checkpoints/a", "__MACOSX/a", ".DS_Store", "Thumbs.db", "b/._a", "b/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    open(os.fsencode(tmp_path) + b"/bad\xff", "wb").close()
    walked = list(directories.walk(str(tmp_path)))
    assert walked == [(f"{tmp_path}", ["b"], []), (f"{tmp_path}/b", [], ["c"])]
    assert directories.list_directories(str(tmp_path)) == ["b"]
    assert directories.list_files(str(tmp_path)) == []
    assert_mentions(caplog.text, tmp_path, r"bad\udcff")


def test_a_path_is_found_under_the_other_unicode_form_of_each_part(tmp_path):
    path = tmp_path / "cafe\u0301" / "\u00fc.jpg"
    path.parent.mkdir()
    path.touch()
    for name in ("caf\u00e9/\u00fc.jpg", "caf\u00e9/u\u0308.jpg", "cafe\u0301/u\u0308.jpg"):
        assert directories.existing_path(f"{tmp_path}/{name}") == str(path)
    assert directories.existing_path(f"{tmp_path}/caf\u00e9/no") == f"{tmp_path}/caf\u00e9/no"
