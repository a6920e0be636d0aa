"""CSV tables of labeled images: classes, splits and error messages."""

import logging
import struct

import PIL.Image
import pytest

from mmjax.data.sources import registry as sources
from mmjax.errors import UserError
from tests.data.sources.images import read, write_image
from tests.messages import assert_mentions, raises


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


def test_columns_that_are_not_read_are_listed_once(tmp_path, caplog):
    write_image(tmp_path / "a.png", 7)
    (tmp_path / "t.csv").write_text("path,label,caption,Audio,\na.png,1,a dog,a.wav,\n")
    with caplog.at_level(logging.WARNING, logger="absl"):
        for split in ("train", "train"):
            sources.open_source(f"csv:{tmp_path / 't.csv'}", split=split)
    (record,) = caplog.records
    assert_mentions(record.getMessage(), tmp_path / "t.csv", "'', Audio, caption", "mmjax build")


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
        ("path,label\n", ("rows", "path", "label", "split")),
        ("path;label\na.png;1\n", ("line 1", "commas", "semicolons")),
        ("path,label,splits\na.png,1,test\n", ("'splits'", "'split'")),
        ("path,label\na.png,1\nb.png,cat\n", ("line 2", "'1'", "line 3", "'cat'")),
        ('path,label\na.png,"1\n', ("line 2", "not closed")),
        ("path,label\na.png,20190523\n", ("label", "20190523", "1000000")),
        ("", ("rows", "path")),
        (b"path,label\na\xff.png,1", ("UTF-8", "0xff", "line 2")),
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
    # Very large images are refused, as possible decompression bombs.
    PIL.Image.new("1", (2, 2)).save(tmp_path / "c.gif")
    data = bytearray((tmp_path / "c.gif").read_bytes())
    data[6:10] = struct.pack("<HH", 20_000, 20_000)
    (tmp_path / "c.gif").write_bytes(data)
    (tmp_path / "t.csv").write_text("path,label\na.png,x\nb.png,x\nc.gif,x\n")
    source = sources.open_source(f"csv:{tmp_path / 't.csv'}", split="train")
    problems = (  # from the operating system and from Pillow
        ("a.png", "No such file"),
        ("b.png", "Pillow"),
        ("c.gif", "MMJAX_MAX_IMAGE_PIXELS=400000000"),
    )
    for record, (name, problem) in enumerate(problems):
        with raises(UserError, "t.csv", f"line {record + 2}", tmp_path / name, problem):
            source.fetch(record)
    with raises(UserError, "/nowhere.csv", "does not exist"):
        sources.open_source("csv:/nowhere.csv", split="train")


def test_tables_follow_the_rules_of_all_tables(tmp_path):
    """Columns in any case, class numbers as floats, JSON lines, and Unicode forms of paths."""
    write_image(tmp_path / "cafe\u0301.png", 7)
    (tmp_path / "t.csv").write_text("Path, LABEL,Split\ncaf\u00e9.png,2.0,val\n")
    source = sources.open_source(f"csv:{tmp_path}/t.csv", split="validation")
    assert read(source) == [(7, 2, "2")] and source.info.num_classes == 3
    (tmp_path / "t.jsonl").write_text('{"path": "caf\\u00e9.png", "label": 1.0, "split": NaN}\n')
    assert read(sources.open_source(f"csv:{tmp_path}/t.jsonl", split="train")) == [(7, 1, "1")]
    (tmp_path / "t.tsv").write_text("path\tlabel\ncaf\u00e9.png\ta\ncaf\u00e9.png\tu\u0308\n")
    source = sources.open_source(f"csv:{tmp_path}/t.tsv", split="train")
    assert source.info.class_names == ["a", "\u00fc"]


def test_a_zero_byte_in_a_path_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\na\0.png,x\n")
    with raises(UserError, tmp_path / "t.csv"):
        read(sources.open_source(f"csv:{tmp_path / 't.csv'}", split="train"))
