"""Specifications of data, each read through the interface that the loader uses."""

import io
import os

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mmjax.data import image_sets, schema, sources
from mmjax.errors import UserError
from tests.data import toy_clips as toy


def frames(serialized):
    return [tf.io.decode_image(f).numpy() for f in schema.decode(serialized).frames]


def test_folder_source_reads_any_record_and_says_where(tmp_path):
    source = sources.open_source(toy.build(tmp_path, 7, shards=2), split="train")
    assert source.num_examples == 7 and source.info.num_classes == 5
    for record in (6, 0, 3):
        assert schema.decode(source.fetch(record)).filename == f"clip {record}"
    assert source.where(6).endswith("train-00001-of-00002.tfrecord, record 3")
    assert source.where(2).endswith("train-00000-of-00002.tfrecord, record 2")


def test_missing_folder_and_missing_split(tmp_path):
    with pytest.raises(UserError, match="no dataset at"):
        sources.open_source(str(tmp_path / "nothing"), split="train")
    with pytest.raises(UserError, match="no shards for the split 'test'.*train"):
        sources.open_source(toy.build(tmp_path, 2, shards=1), split="test")


def test_world_is_written_once_and_read():
    source = sources.open_source("world:tiny,train=3,test=2", split="test")
    assert source.num_examples == 2
    assert schema.decode(source.fetch(1)).frames
    vocab = sources.vocabulary("world:tiny,train=3,test=2", split="train")
    assert os.path.basename(vocab) == "vocab.txt"


def test_vocabulary_of_a_dataset_without_one(tmp_path):
    folder = toy.build(tmp_path, 2, shards=1, vocabulary="")
    with pytest.raises(UserError, match="data.text.vocab is not set.*mmjax vocab"):
        sources.vocabulary(folder, split="train")


@pytest.fixture
def pictures(tmp_path):
    """Two classes; a JPEG, a PNG, a GIF and something that is no picture."""
    colours = {"cat/a.jpg": 10, "cat/deep/b.png": 60, "dog/c.gif": 200}
    for name, grey in colours.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (12, 9), (grey,) * 3).save(path)
    (tmp_path / "dog" / "notes.txt").write_text("no picture")
    return tmp_path


def test_image_folder_gives_classes_by_name(pictures):
    source = sources.open_source(f"images:{pictures}", split="train")
    assert source.num_examples == 3 and source.info.class_names == ["cat", "dog"]
    for record, (grey, label) in enumerate([(10, 0), (60, 0), (200, 1)]):
        example = schema.decode(source.fetch(record))
        assert example.labels == [label] and example.label_texts == [("cat", "dog")[label]]
        (image,) = frames(source.fetch(record))
        assert image.shape == (9, 12, 3) and np.abs(image.astype(int) - grey).max() <= 2
    assert source.where(2).endswith("c.gif")


def test_image_folder_takes_the_splits_subfolder(pictures):
    (pictures / "test" / "cat").mkdir(parents=True)
    PIL.Image.new("RGB", (4, 4)).save(pictures / "test" / "cat" / "d.png")
    assert sources.open_source(f"images:{pictures}", split="test").num_examples == 1


def test_image_folder_errors(pictures, tmp_path_factory):
    with pytest.raises(UserError, match="no folder of pictures at"):
        sources.open_source("images:/nowhere/at/all", split="train")
    with pytest.raises(UserError, match="no pictures in subfolders"):
        sources.open_source(f"images:{tmp_path_factory.mktemp('empty')}", split="train")
    (pictures / "dog" / "c.gif").write_bytes(b"no picture")
    source = sources.open_source(f"images:{pictures}", split="train")
    with pytest.raises(UserError, match="c.gif is not a picture"):
        source.fetch(2)


class TwoColours(tfds.core.GeneratorBasedBuilder):
    """A TFDS image set that is generated instead of downloaded."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["dark", "light"]),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(5)}

    def _generate_examples(self, count):
        for number in range(count):
            grey = 20 + 200 * (number % 2)
            yield number, {"image": np.full((6, 8, 3), grey, np.uint8), "label": number % 2}


def test_tfds_image_set(tmp_path, monkeypatch):
    pytest.importorskip("importlib_resources", reason="TFDS needs it to write datasets")
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    make = tfds.builder
    monkeypatch.setattr(
        tfds,
        "builder",
        lambda name, **kwargs: (
            TwoColours(data_dir=tmp_path / "tfds")
            if name == "two_colours"
            else make(name, **kwargs)
        ),
    )
    source = sources.open_source("tfds:two_colours", split="train")
    assert source.num_examples == 5 and source.info.class_names == ["dark", "light"]
    for record in range(5):
        example = schema.decode(source.fetch(record))
        (image,) = frames(source.fetch(record))
        assert (image == 20 + 200 * example.labels[0]).all()  # PNG: exact
    # A second time it is read, not written: even without TFDS's own copy.
    (tmp_path / "tfds").rename(tmp_path / "gone")
    assert sources.open_source("tfds:two_colours", split="train").num_examples == 5
    assert sources.open_source("tfds:two_colours", split="train[:40%]").num_examples == 2


def test_tfds_unknown_set():
    with pytest.raises(UserError, match="tfds:no_such_set_at_all"):
        sources.open_source("tfds:no_such_set_at_all", split="train")


def test_a_stream_is_no_part_of_a_mixture():
    with pytest.raises(UserError, match="make it the only source"):
        sources.open_source("dmvr:package:Factory", split="train")


def test_pictures_of_other_formats_become_png():
    out = io.BytesIO()
    PIL.Image.new("RGB", (5, 4), (1, 2, 3)).save(out, "BMP")
    (frame,) = frames(image_sets.image_example(out.getvalue(), None, "", "x.bmp"))
    assert (frame == [1, 2, 3]).all() and frame.shape == (4, 5, 3)


def test_a_recipe_for_own_data_without_data():
    with pytest.raises(UserError, match="config.data.train is empty.*mmjax build"):
        sources.open_source("", split="train")
