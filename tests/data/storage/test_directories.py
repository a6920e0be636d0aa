"""Listing the files below a directory, through symbolic links."""

import os

from mmjax.data.storage import directories


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
