"""Data source specifications (`npz:…`, `tfds:…`), read through the interface of the loader."""

import io
import os
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from mmjax.data.pipeline.loader import make_eval_data
from mmjax.data.sources import registry as sources
from mmjax.data.storage import schema
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.messages import assert_mentions, raises


def frames(serialized):
    return [tf.io.decode_image(f).numpy() for f in schema.decode(serialized).frames]


def test_folder_source_reads_any_record_and_reports_its_location(tmp_path):
    source = sources.open_source(toy.build(tmp_path, 7, shards=2), split="train")
    assert source.num_examples == 7 and source.info.num_classes == 5
    for record in (6, 0, 3):
        assert schema.decode(source.fetch(record)).filename == f"clip {record}"
    assert_mentions(source.where(6), tmp_path / "train-00001-of-00002.tfrecord", "record 3")
    assert_mentions(source.where(2), tmp_path / "train-00000-of-00002.tfrecord", "record 2")


def test_error_for_a_missing_dataset_and_for_a_missing_split(tmp_path):
    with raises(UserError, tmp_path / "nothing", "mmjax build"):
        sources.open_source(str(tmp_path / "nothing"), split="train")
    with raises(UserError, tmp_path, "'test'", "train (1 shard"):
        sources.open_source(toy.build(tmp_path, 2, shards=1), split="test")


def test_world_is_written_once_and_read():
    source = sources.open_source("world:tiny,train=3,test=2", split="test")
    assert source.num_examples == 2
    assert len(frames(source.fetch(1))) == 4
    written = os.stat(source.files[0])
    again = sources.open_source("world:tiny,train=3,test=2", split="test")
    assert again.files == source.files
    assert os.stat(again.files[0]).st_mtime_ns == written.st_mtime_ns
    vocab = sources.vocabulary("world:tiny,train=3,test=2", split="train")
    assert vocab == os.path.join(source.directory, "vocab.txt") and os.path.isfile(vocab)


def test_error_for_a_dataset_without_a_vocabulary(tmp_path):
    directory = toy.build(tmp_path, 2, shards=1, vocabulary="")
    with raises(UserError, "data.text.vocab", directory, "mmjax vocab"):
        sources.vocabulary(directory, split="train")


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


@pytest.mark.parametrize("spec", ["images:{}", "csv:{}/labels.csv", "npz:{}/arrays.npz"])
def test_slices_of_image_sources_are_joined_in_order(three_images, spec):
    (three_images / "labels.csv").write_text(
        "path,label\ncat/a.jpg,cat\ncat/deep/b.png,cat\ndog/c.gif,dog\n"
    )
    images = np.array([[[10]], [[60]], [[200]]], np.uint8)
    np.savez(three_images / "arrays.npz", images=images, labels=np.array([0, 0, 1]))
    whole, part = (
        sources.open_source(spec.format(three_images), split=split)
        for split in ("train", "train[1:]+train[:1]")
    )
    assert whole.num_examples == part.num_examples == 3
    assert [part.fetch(n) for n in (2, 0, 1)] == [whole.fetch(n) for n in range(3)]
    assert part.labels().tolist() == [0, 1, 0] and part.info.num_classes == 2
    assert [part.where(n) for n in range(3)] == [whole.where(n) for n in (1, 2, 0)]


@pytest.mark.parametrize(
    "split, expected",
    [
        ("train[:50%:stratified]", [0, 1, 2, 3, 4, 0]),
        ("train[3:9]+train[:2]", [3, 4, 0, 1, 2, 3, 0, 1]),
    ],
)
def test_evaluation_of_a_slice_has_every_example_once(split, expected, tmp_path):
    directory = toy.build(tmp_path, 11, shards=2)
    source = sources.open_source(directory, split=split)
    data = make_eval_data(toy.section(directory, audio=None, text=None), split=split, batch_size=4)
    labels = np.concatenate([batch["label"][batch["mask"] == 1] for batch in data.iterate()])
    assert labels.tolist() == source.labels().tolist() == expected
    assert data.num_examples == len(expected)


def test_error_for_a_dmvr_stream_in_a_mixture():
    with raises(UserError, "dmvr:package:Factory", "mixture", "config.data.train"):
        sources.open_source("dmvr:package:Factory", split="train")


def test_error_when_data_train_is_unset():
    with raises(UserError, "--config.data.train=", "mmjax build"):
        sources.open_source("", split="train")


def test_error_for_an_unknown_prefix_lists_the_valid_ones(tmp_path):
    for spec in ("imges:/data/pets", "imges:pets"):
        with raises(UserError, spec, "'images:'", "csv:", "npz:", "tfds:", "package.module:Name"):
            sources.open_source(spec, split="train")
    directory = tmp_path / "imges:pets"  # an existing directory may have a colon in its name
    directory.mkdir()
    toy.build(directory, 3, shards=1)
    assert sources.open_source(str(directory), split="train").num_examples == 3


OWN_SOURCE = """
import numpy as np

from mmjax.data.sources.base import Source
from mmjax.data.sources.image_list import image_example
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.errors import UserError

PNG = {png!r}
SIZES = {{"train": 5, "valid": 2}}


class Numbers(Source):
    def __init__(self, *, split):
        if split not in SIZES:
            raise UserError(f"numbers has no split {{split!r}}.")
        self.split, self.num_examples, self.name = split, SIZES[split], f"numbers/{{split}}"
        names = [str(n) for n in range(5)]
        self.info = DatasetInfo(
            name="numbers", num_classes=5, class_names=names, modalities=("video", "label")
        )

    def fetch(self, record):
        return image_example(PNG, record, str(record), self.where(record))

    def where(self, record):
        return f"{{self.split}} {{record}}"

    def labels(self):
        return np.arange(self.num_examples)


def incomplete(*, split):
    return object()
"""


@pytest.fixture
def own_source(tmp_path, monkeypatch):
    """Writes the module `own_source` outside the package, and makes it importable."""
    out = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), (10, 20, 30)).save(out, "PNG")
    (tmp_path / "own_source.py").write_text(OWN_SOURCE.format(png=out.getvalue()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_source", raising=False)


def test_a_source_defined_outside_the_package_is_read_sliced_and_batched(own_source):
    spec = "own_source:Numbers"
    source = sources.open_source(spec, split="train[3:]+valid")
    assert [source.where(n) for n in range(4)] == ["train 3", "train 4", "valid 0", "valid 1"]
    assert schema.decode(source.fetch(0)).labels == [3] and sources.split_names(spec) == []
    section = dict(train=spec, video=dict(num_frames=1, size=4, min_resize=4))
    data = make_eval_data(section, split="train", batch_size=5)
    (batch,) = data.iterate()
    assert batch["label"].tolist() == [0, 1, 2, 3, 4]
    assert batch["video"].shape[-4:] == (1, 4, 4, 3) and batch["mask"].all()


def test_errors_of_a_source_defined_outside_the_package(own_source):
    with raises(UserError, "numbers", "'test'"):
        sources.open_source("own_source:Numbers", split="test")
    with raises(UserError, "own_source:Number", "'Number'", "'Numbers'"):
        sources.open_source("own_source:Number", split="train")
    with raises(UserError, "no_such_module:Numbers", "cannot import no_such_module"):
        sources.open_source("no_such_module:Numbers", split="train")
    with raises(UserError, "own_source:incomplete", "num_examples", "fetch", "base.Source"):
        sources.open_source("own_source:incomplete", split="train")
    with raises(UserError, "own_source:Numbers", "mmjax vocab"):
        sources.vocabulary("own_source:Numbers", split="train")
