"""What lies below a folder, through links."""

import os

from mmjax.tools import folders


def test_links_are_followed_but_not_around(tmp_path):
    (tmp_path / "top" / "b" / "deep").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    for name in ("top/1", "top/b/2", "top/b/deep/3", "else/4"):
        (tmp_path / name).touch()
    for link, target in (("a", "else"), ("b/up", "top"), ("b/deep/same", "top/b/deep")):
        (tmp_path / "top" / link).symlink_to(tmp_path / target)
    (tmp_path / "entry").symlink_to(tmp_path / "top")
    (tmp_path / "top" / "b" / "twin").symlink_to("deep")  # is no loop
    for root in ("top", "entry"):
        found = [
            os.path.relpath(os.path.join(place, file), tmp_path / root)
            for place, _, files in folders.walk(str(tmp_path / root))
            for file in files
        ]
        assert found == ["1", "a/4", "b/2", "b/deep/3", "b/twin/3"]
