"""Pictures in folders, tables and arrays: classes, splits, and what is wrong with them."""

import io

import numpy as np
import PIL.Image
import pytest

from mmjax.data import image_sets, schema, sources
from mmjax.errors import UserError


def picture(path, grey=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", (6, 4), (grey,) * 3).save(path)


def read(source):
    """[(mean of the picture, class, name of the class)] of all records."""
    found = []
    for record in range(source.num_examples):
        example = schema.decode(source.fetch(record))
        pixels = np.asarray(PIL.Image.open(io.BytesIO(example.frames[0])))
        assert pixels.ndim == 3
        found.append((round(pixels.mean()), *example.labels, *example.label_texts))
    assert [label for _, label, _ in found] == source.labels().tolist()
    return found


# Folders ----------------------------------------------------------------------------------------


def test_classes_are_numbered_over_all_splits(tmp_path):
    for name, grey in (("train/ant", 1), ("train/bee", 2), ("train/cat", 3), ("val/cat", 4)):
        picture(tmp_path / name / "a.png", grey)
    spec = f"images:{tmp_path}"
    assert read(sources.open_source(spec, split="validation")) == [(4, 2, "cat")]
    assert sources.open_source(spec, split="train").info.num_classes == 3
    assert sorted(sources.split_names(spec)) == ["train", "val"]
    with pytest.raises(UserError, match="has no split 'test'. It has: train, val"):
        sources.open_source(spec, split="test")


def test_any_folder_may_be_a_split(tmp_path):
    picture(tmp_path / "fold7" / "ant" / "a.png", 9)
    assert read(sources.open_source(f"images:{tmp_path}", split="fold7")) == [(9, 0, "ant")]


def aircraft(root):
    lists = {"train": "01 707\n02 A 380\n", "val": "03 A 380\n", "test": "04 707\n"}
    for split, lines in lists.items():
        root.mkdir(parents=True, exist_ok=True)
        (root / f"images_variant_{split}.txt").write_text(lines)
    for number in range(1, 5):
        path = root / "images" / f"0{number}.jpg"
        picture(path, 10 * number)


@pytest.mark.parametrize("inside", ["", "data", "fgvc-aircraft-2013b/data"])
def test_aircraft_as_published(tmp_path, inside):
    root = tmp_path / inside
    aircraft(root)
    spec = f"images:{tmp_path}"
    assert image_sets.is_aircraft(tmp_path) and image_sets.has_pictures(tmp_path)
    assert read(sources.open_source(spec, split="train")) == [(10, 0, "707"), (20, 1, "A 380")]
    assert read(sources.open_source(spec, split="validation")) == [(30, 1, "A 380")]
    assert sources.split_names(spec) == ["test", "train", "val"]
    (root / "variants.txt").write_text("Zeppelin\nA 380\n707\n")
    assert read(sources.open_source(spec, split="train+val")) == [
        (10, 2, "707"),
        (20, 1, "A 380"),
        (30, 1, "A 380"),
    ]


def test_aircraft_with_faults(tmp_path):
    aircraft(tmp_path)
    (tmp_path / "images" / "02.jpg").unlink()
    source = sources.open_source(f"images:{tmp_path}", split="train")
    with pytest.raises(UserError, match="02.jpg cannot be read"):
        source.fetch(1)
    (tmp_path / "variants.txt").write_text("707\n")
    with pytest.raises(UserError, match="variants.txt lacks the variant 'A 380'"):
        sources.open_source(f"images:{tmp_path}", split="train")
    (tmp_path / "images_variant_test.txt").write_text("04 707\n05\n")
    with pytest.raises(UserError, match="images_variant_test.txt, line 2"):
        sources.open_source(f"images:{tmp_path}", split="train")
    with pytest.raises(UserError, match="has no split 'fold'. It has: test, train, val"):
        sources.open_source(f"images:{tmp_path}", split="fold")


def test_what_is_a_folder_of_pictures(tmp_path):
    assert not image_sets.has_pictures(tmp_path / "nothing")
    (tmp_path / "3.0.2").mkdir()  # as TFDS has them
    (tmp_path / "3.0.2" / "cifar10-train.tfrecord-00000-of-00001").touch()
    assert not image_sets.has_pictures(tmp_path)
    picture(tmp_path / "cat" / "a.png")
    assert image_sets.has_pictures(tmp_path)


# Tables -----------------------------------------------------------------------------------------


def test_table_of_names(tmp_path):
    for number, name in enumerate(("a.png", "deep/b.bmp", "c.jpg")):
        picture(tmp_path / name, 50 * number)
    table = tmp_path / "labels.csv"
    table.write_text(
        "split, path, label, more\ntrain, a.png, dog, x\nval, deep/b.bmp, cat,\n"
        "train, c.jpg, ant, y\n"
    )
    spec = f"csv:{table}"
    assert read(sources.open_source(spec, split="train")) == [(0, 2, "dog"), (100, 0, "ant")]
    assert read(sources.open_source(spec, split="validation")) == [(50, 1, "cat")]
    assert sources.split_names(spec) == ["train", "val"]
    with pytest.raises(UserError, match="has no split 'test'. It has: train, val"):
        sources.open_source(spec, split="test")


def test_table_of_numbers_without_splits(tmp_path):
    picture(tmp_path / "a.png", 7)
    (tmp_path / "t.csv").write_text("path,label\na.png,10\na.png,2\n")
    source = sources.open_source(f"csv:{tmp_path / 't.csv'}", split="train")
    assert read(source) == [(7, 10, "10"), (7, 2, "2")] and source.info.num_classes == 11


@pytest.mark.parametrize(
    "content, message",
    [
        ("path,class\na.png,1\n", "lacks the column label; it has: path, class"),
        ("path,label\na.png,1\n\n,2\n", "line 4, has no path"),
        ("path,label\na.png\n", "line 2, has no label"),
        ("path,label\n", "has no rows"),
        ("path,label\na.png,20190523\n", "a label is 20190523, but classes are numbers from 0"),
        ("", "lacks the column path; it has: none"),
        (b"\xff\xfe\xff", "is not a table"),
    ],
)
def test_faults_of_tables(tmp_path, content, message):
    table = tmp_path / "t.csv"
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=f"t.csv.*{message}"):
        sources.open_source(f"csv:{table}", split="train")


def test_pictures_of_a_table_that_cannot_be_read(tmp_path):
    (tmp_path / "b.png").write_text("no picture")
    PIL.Image.new("1", (20_000, 20_000)).save(tmp_path / "c.gif")  # Pillow fears a bomb
    (tmp_path / "t.csv").write_text("path,label\na.png,x\nb.png,x\nc.gif,x\n")
    source = sources.open_source(f"csv:{tmp_path / 't.csv'}", split="train")
    problems = ("cannot be read", "is not a picture", "is not a picture: Image size")
    for record, problem in enumerate(problems):
        with pytest.raises(UserError, match=rf"t.csv, line {record + 2}: .*\.(png|gif) {problem}"):
            source.fetch(record)
    with pytest.raises(UserError, match="nowhere.csv cannot be read"):
        sources.open_source("csv:/nowhere.csv", split="train")
