"""Labeled images in folders and CSV tables: classes, splits and error messages."""

import io

import numpy as np
import PIL.Image
import pytest

from mmjax.data.sources import image_folder
from mmjax.data.sources import registry as sources
from mmjax.data.storage import schema
from mmjax.errors import UserError
from tests.messages import assert_mentions, raises


def write_image(path, gray=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (6, 4), (gray,) * 3).save(path)


def read(source):
    """Returns [(mean pixel value, class index, class name)] of all records."""
    result = []
    for record in range(source.num_examples):
        example = schema.decode(source.fetch(record))
        pixels = np.asarray(PIL.Image.open(io.BytesIO(example.frames[0])))
        assert pixels.ndim == 3
        result.append((round(pixels.mean()), *example.labels, *example.label_texts))
    assert [label for _, label, _ in result] == source.labels().tolist()
    return result


# Folders ----------------------------------------------------------------------------------------


def test_class_indices_are_shared_by_all_splits(tmp_path):
    for name, gray in (("train/ant", 1), ("train/bee", 2), ("train/cat", 3), ("val/cat", 4)):
        write_image(tmp_path / name / "a.png", gray)
    spec = f"images:{tmp_path}"
    assert read(sources.open_source(spec, split="validation")) == [(4, 2, "cat")]
    assert sources.open_source(spec, split="train").info.num_classes == 3
    assert sorted(sources.split_names(spec)) == ["train", "val"]
    with raises(UserError, tmp_path, "'test'", "train, val"):
        sources.open_source(spec, split="test")


def test_any_subdirectory_name_may_be_a_split(tmp_path):
    write_image(tmp_path / "fold7" / "ant" / "a.png", 9)
    assert read(sources.open_source(f"images:{tmp_path}", split="fold7")) == [(9, 0, "ant")]


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


def test_image_folders_are_recognized(tmp_path):
    assert not image_folder.has_images(tmp_path / "nothing")
    (tmp_path / "3.0.2").mkdir()  # the layout of TFDS
    (tmp_path / "3.0.2" / "cifar10-train.tfrecord-00000-of-00001").touch()
    assert not image_folder.has_images(tmp_path)
    write_image(tmp_path / "cat" / "a.png")
    assert image_folder.has_images(tmp_path)


# Tables -----------------------------------------------------------------------------------------


def test_csv_table_with_class_names_and_splits(tmp_path):
    for number, name in enumerate(("a.png", "deep/b.bmp", "c.jpg")):
        write_image(tmp_path / name, 50 * number)
    table = tmp_path / "labels.csv"
    table.write_text(
        "split, path, label, more\ntrain, a.png, dog, x\nval, deep/b.bmp, cat,\n"
        "train, c.jpg, ant, y\n"
    )
    spec = f"csv:{table}"
    assert read(sources.open_source(spec, split="train")) == [(0, 2, "dog"), (100, 0, "ant")]
    assert read(sources.open_source(spec, split="validation")) == [(50, 1, "cat")]
    assert sources.split_names(spec) == ["train", "val"]
    with raises(UserError, table, "'test'", "train, val"):
        sources.open_source(spec, split="test")


def test_csv_table_with_class_indices_and_no_splits(tmp_path):
    write_image(tmp_path / "a.png", 7)
    (tmp_path / "t.csv").write_text("path,label\na.png,10\na.png,2\n")
    source = sources.open_source(f"csv:{tmp_path / 't.csv'}", split="train")
    assert read(source) == [(7, 10, "10"), (7, 2, "2")] and source.info.num_classes == 11


@pytest.mark.parametrize(
    "content, facts",
    [
        ("path,class\na.png,1\n", ("label", "path, class")),
        ("path,label\na.png,1\n\n,2\n", ("line 4", "path")),
        ("path,label\na.png\n", ("line 2", "label")),
        ("path,label\n", ("row",)),
        ("path,label\na.png,20190523\n", ("label", "20190523", "1000000")),
        ("", ("column", "path")),
        (b"\xff\xfe\xff", ("utf-8", "0xff")),
    ],
)
def test_error_for_an_invalid_csv_table(tmp_path, content, facts):
    table = tmp_path / "t.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    with raises(UserError, table) as info:
        sources.open_source(f"csv:{table}", split="train")
    assert_mentions(str(info.value).replace(str(table), ""), *facts)


def test_error_for_an_unreadable_image_names_the_line_of_the_table(tmp_path):
    (tmp_path / "b.png").write_text("not an image")
    # Pillow refuses very large images, as possible decompression bombs.
    PIL.Image.new("1", (20_000, 20_000)).save(tmp_path / "c.gif")
    (tmp_path / "t.csv").write_text("path,label\na.png,x\nb.png,x\nc.gif,x\n")
    source = sources.open_source(f"csv:{tmp_path / 't.csv'}", split="train")
    problems = (  # from the operating system and from Pillow
        ("a.png", "No such file"),
        ("b.png", "cannot identify image file"),
        ("c.gif", "400000000 pixels"),
    )
    for record, (name, problem) in enumerate(problems):
        with raises(UserError, "t.csv", f"line {record + 2}", tmp_path / name, problem):
            source.fetch(record)
    with raises(UserError, "/nowhere.csv", "No such file"):
        sources.open_source("csv:/nowhere.csv", split="train")
