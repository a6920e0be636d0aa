"""FGVC-Aircraft in its published layout, and errors in its lists."""

import pytest

from mmjax.data.sources import image_folder
from mmjax.data.sources import registry as sources
from mmjax.errors import UserError
from tests.data.sources.images import read, write_image
from tests.messages import raises


def write_aircraft(root):
    lists = {"train": "01 707\n02 A 380\n", "val": "03 A 380\n", "test": "04 707\n"}
    for split, lines in lists.items():
        root.mkdir(parents=True, exist_ok=True)
        (root / f"images_variant_{split}.txt").write_text(lines)
    for number in range(1, 5):
        path = root / "images" / f"0{number}.jpg"
        write_image(path, 10 * number)


@pytest.mark.parametrize("inside", ["", "data", "fgvc-aircraft-2013b/data"])
def test_fgvc_aircraft_is_read_in_its_published_layout(tmp_path, inside):
    root = tmp_path / inside
    write_aircraft(root)
    spec = f"images:{tmp_path}"
    assert image_folder.has_images(tmp_path)
    assert read(sources.open_source(spec, split="train")) == [(10, 0, "707"), (20, 1, "A 380")]
    assert read(sources.open_source(spec, split="validation")) == [(30, 1, "A 380")]
    assert sources.split_names(spec) == ["test", "train", "val"]
    (root / "variants.txt").write_text("Zeppelin\nA 380\n707\n")
    assert read(sources.open_source(spec, split="train+val")) == [
        (10, 2, "707"),
        (20, 1, "A 380"),
        (30, 1, "A 380"),
    ]


def test_errors_in_fgvc_aircraft_name_the_file(tmp_path):
    write_aircraft(tmp_path)
    (tmp_path / "images" / "02.jpg").unlink()
    source = sources.open_source(f"images:{tmp_path}", split="train")
    with raises(UserError, tmp_path / "images" / "02.jpg", "No such file"):
        source.fetch(1)
    (tmp_path / "variants.txt").write_text("707\n")
    with raises(UserError, tmp_path / "variants.txt", "'A 380'"):
        sources.open_source(f"images:{tmp_path}", split="train")
    (tmp_path / "images_variant_test.txt").write_text("04 707\n05\n")
    with raises(UserError, tmp_path / "images_variant_test.txt", "line 2"):
        sources.open_source(f"images:{tmp_path}", split="train")
    with raises(UserError, tmp_path, "'fold'", "test, train, val"):
        sources.open_source(f"images:{tmp_path}", split="fold")
