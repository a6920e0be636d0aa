"""Labeled images in class directories: classes, splits and error messages."""

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from mmjax.data.sources import image_folder
from mmjax.data.sources import registry as sources
from mmjax.data.storage import schema
from mmjax.errors import UserError
from tests.data.sources.images import read, write_image
from tests.messages import assert_mentions, raises


def frames(serialized):
    return [tf.io.decode_image(f).numpy() for f in schema.decode(serialized).frames]


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


def test_image_folders_are_recognized(tmp_path):
    assert not image_folder.has_images(tmp_path / "nothing")
    (tmp_path / "3.0.2").mkdir()  # the layout of TFDS
    (tmp_path / "3.0.2" / "cifar10-train.tfrecord-00000-of-00001").touch()
    assert not image_folder.has_images(tmp_path)
    write_image(tmp_path / "cat" / "a.png")
    assert image_folder.has_images(tmp_path)


@pytest.fixture
def three_images(tmp_path):
    """Writes two classes with a JPEG, a PNG, a GIF and a text file."""
    gray_levels = {"cat/a.jpg": 10, "cat/deep/b.png": 60, "dog/c.gif": 200}
    for name, gray in gray_levels.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (12, 9), (gray,) * 3).save(path)
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    return tmp_path


def test_image_folder_classes_are_sorted_subdirectory_names(three_images):
    source = sources.open_source(f"images:{three_images}", split="train")
    assert source.num_examples == 3 and source.info.class_names == ["cat", "dog"]
    for record, (gray, label) in enumerate([(10, 0), (60, 0), (200, 1)]):
        example = schema.decode(source.fetch(record))
        assert example.labels == [label] and example.label_texts == [("cat", "dog")[label]]
        (image,) = frames(source.fetch(record))
        assert image.shape == (9, 12, 3) and np.abs(image.astype(int) - gray).max() <= 2
    assert_mentions(source.where(2), three_images / "dog" / "c.gif")


def test_image_folder_uses_the_subdirectory_of_the_split(three_images):
    (three_images / "test" / "cat").mkdir(parents=True)
    PIL.Image.new("RGB", (4, 4)).save(three_images / "test" / "cat" / "d.png")
    assert sources.open_source(f"images:{three_images}", split="test").num_examples == 1


def test_errors_of_image_folders(three_images, tmp_path_factory):
    with raises(UserError, "images:/nowhere/at/all", "DIRECTORY/SPLIT/CLASS/*.jpg"):
        sources.open_source("images:/nowhere/at/all", split="train")
    no_classes = tmp_path_factory.mktemp("images")
    (no_classes / "abc").mkdir()
    with raises(UserError, no_classes, "abc", "DIRECTORY/SPLIT/CLASS/*.jpg"):
        sources.open_source(f"images:{no_classes}", split="train")
    (three_images / "dog" / "c.gif").write_bytes(b"not an image")
    source = sources.open_source(f"images:{three_images}", split="train")
    with raises(UserError, three_images / "dog" / "c.gif", "Pillow"):
        source.fetch(2)


def test_hidden_and_system_entries_are_no_classes_and_ignored_files_are_counted(tmp_path, caplog):
    for name in (".ipynb_checkpoints/x.png", "__MACOSX/x.png", "cat/._a.png", "cat/Thumbs.db"):
        write_image(tmp_path / name) if name.endswith("png") else (tmp_path / name).touch()
    write_image(tmp_path / "cat" / "a.png")
    write_image(tmp_path / "cat" / "deep" / ".ipynb_checkpoints" / "b.png")
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / "cat" / "film.mp4").touch()
    source = sources.open_source(f"images:{tmp_path}", split="train")
    assert source.info.class_names == ["cat"] and source.num_examples == 1
    assert_mentions(caplog.text, tmp_path, "2 files", "1 .txt", "1 .mp4")


def test_unicode_forms_of_a_directory_are_one_class(tmp_path):
    write_image(tmp_path / "train" / "caf\u00e9" / "a.png", 1)
    write_image(tmp_path / "test" / "cafe\u0301" / "a.png", 2)
    source = sources.open_source(f"images:{tmp_path}", split="test")
    assert read(source) == [(2, 0, "caf\u00e9")] and source.info.num_classes == 1


def test_linked_directories_are_followed_without_cycles(tmp_path):
    write_image(tmp_path / "elsewhere" / "a.png", 1)
    (tmp_path / "set" / "cat").mkdir(parents=True)
    (tmp_path / "set" / "cat" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "cat" / "cycle").symlink_to(tmp_path / "set")
    assert sources.open_source(f"images:{tmp_path}/set", split="train").num_examples == 1
