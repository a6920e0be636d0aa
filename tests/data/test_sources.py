"""Specifications of data, each read through the interface that the loader uses."""

import concurrent.futures
import importlib.resources
import io
import os
import sys
import time

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mmjax.data import image_sets, schema, sources
from mmjax.data.loader import make_eval_data
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


@pytest.mark.parametrize("spec", ["images:{}", "csv:{}/labels.csv", "npz:{}/arrays.npz"])
def test_slices_of_pictures(pictures, spec):
    (pictures / "labels.csv").write_text(
        "path,label\ncat/a.jpg,cat\ncat/deep/b.png,cat\ndog/c.gif,dog\n"
    )
    images = np.array([[[10]], [[60]], [[200]]], np.uint8)
    np.savez(pictures / "arrays.npz", images=images, labels=np.array([0, 0, 1]))
    whole, part = (
        sources.open_source(spec.format(pictures), split=split)
        for split in ("train", "train[1:]+train[:1]")
    )
    assert whole.num_examples == part.num_examples == 3
    assert [part.fetch(n) for n in (2, 0, 1)] == [whole.fetch(n) for n in range(3)]
    assert part.labels().tolist() == [0, 1, 0] and part.info.num_classes == 2
    assert [part.where(n) for n in range(3)] == [whole.where(n) for n in (1, 2, 0)]


@pytest.mark.parametrize("split", ["train[:50%:stratified]", "train[3:9]+train[:2]"])
def test_evaluation_of_a_slice_gives_every_example_once(split, tmp_path):
    folder = toy.build(tmp_path, 11, shards=2)
    source = sources.open_source(folder, split=split)
    data = make_eval_data(toy.section(folder, audio=None, text=None), split=split, batch_size=4)
    found = [batch["label"][batch["mask"] == 1] for batch in data.iterate()]
    labels = np.concatenate(found)
    truth = source.labels()
    if labels.ndim == 2:
        labels = labels.argmax(-1)
    assert labels.tolist() == truth.tolist() and data.num_examples == len(truth)


class TwoColours(tfds.core.GeneratorBasedBuilder):
    """A TFDS image set that is generated instead of downloaded."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "kind": tfds.features.ClassLabel(names=["only"]),
                "label": tfds.features.ClassLabel(names=["dark", "light"]),
                "objects": tfds.features.Sequence({"size": tfds.features.Text()}),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(23), "validation": self._generate_examples(4)}

    def _generate_examples(self, count):
        for number in range(count):
            grey = 20 + 200 * (number % 2)
            picture = np.full((6, 8, 3), grey, np.uint8)
            picture[0, 0, 0] = number
            yield (
                number,
                {
                    "image": picture,
                    "kind": 0,
                    "label": number % 2,
                    "objects": [{"size": "small"}] * (3 + number % 8),
                },
            )


def number_of(serialized):
    (image,) = frames(serialized)
    return int(image[0, 0, 0])


@pytest.fixture
def two_colours(tmp_path, monkeypatch):
    """TFDS with the set above, its training split in three shards."""
    # TFDS wants a backport of what Python has, for nothing else than to look at packages.
    monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    make = tfds.builder

    def builder(name, *, data_dir=None, **kwargs):
        if name == "two_colours":
            return TwoColours(data_dir=data_dir or tmp_path / "tfds")
        return make(name, data_dir=data_dir, **kwargs)

    monkeypatch.setattr(tfds, "builder", builder)
    config = tfds.download.DownloadConfig(num_shards=3)
    builder("two_colours").download_and_prepare(download_config=config)
    return builder("two_colours")


def test_tfds_image_set(two_colours, tmp_path):
    assert two_colours.info.splits["train"].num_shards == 3
    source = sources.open_source("tfds:two_colours", split="train")
    assert source.num_examples == 23 and source.info.class_names == ["dark", "light"]
    for record in range(23):
        example = schema.decode(source.fetch(record))
        (image,) = frames(source.fetch(record))
        assert (image[1:] == 20 + 200 * example.labels[0]).all()  # PNG: exact
    assert sources.split_names("tfds:two_colours") == ["train", "validation"]
    for split in ("train[:80%]", "train[80%:]", "train[5:-3]", "validation", "valid"):
        if split != "valid":
            order = tfds.ReadConfig(interleave_cycle_length=1)
            dataset = two_colours.as_dataset(split=split, read_config=order)
            truth = [int(item["image"][0, 0, 0]) for item in dataset.as_numpy_iterator()]
        found = sources.open_source("tfds:two_colours", split=split)
        assert [number_of(found.fetch(n)) for n in range(found.num_examples)] == truth, split
        assert found.labels().tolist() == [number % 2 for number in truth]
    # Slices are no copies.
    assert len(list((tmp_path / "cache" / "tfds").iterdir())) == 2
    # A second time it is read, not written: even without TFDS's own copy.
    (tmp_path / "tfds").rename(tmp_path / "gone")
    assert sources.open_source("tfds:two_colours", split="train[:40%]").num_examples == 9


def test_tfds_folders_that_earlier_versions_have_written(two_colours, tmp_path):
    source = sources.open_source("tfds:two_colours", split="train")
    cache = tmp_path / "cache" / "tfds"
    (folder,) = cache.iterdir()
    earlier = cache / "two_colours_1.0.0-train"
    folder.rename(earlier)
    assert sources.open_source("tfds:two_colours", split="train").folder == str(earlier)
    # Its order need not be that of which TFDS's slices are parts.
    part = sources.open_source("tfds:two_colours", split="train[:40%]")
    assert part.folder == str(folder) and part.num_examples == 9
    info = source.info
    info.splits = {"train[:7]": info.splits["train"]}
    (earlier / "dataset.json").unlink()
    earlier.rename(cache / "two_colours_1.0.0-train_7_")
    info.save(cache / "two_colours_1.0.0-train_7_")
    assert sources.open_source("tfds:two_colours", split="train[:7]").num_examples == 23


def test_tfds_with_another_label_and_folder(two_colours, tmp_path):
    (tmp_path / "tfds").rename(tmp_path / "else, where")
    spec = f"tfds:two_colours,label=objects,data_dir={tmp_path / 'else, where'}"
    source = sources.open_source(spec, split="train")
    assert source.info.class_names == ["10", "3", "4", "5", "6", "7", "8", "9"]
    for record in range(23):
        count = 3 + number_of(source.fetch(record)) % 8
        (label,) = schema.decode(source.fetch(record)).labels
        assert label == [10, 3, 4, 5, 6, 7, 8, 9].index(count)
    with pytest.raises(UserError, match="Unknown label in tfds:two_colours 'object'.*'objects'"):
        sources.open_source("tfds:two_colours,label=object", split="train")
    with pytest.raises(UserError, match="Unknown setting in tfds:two_colours 'dir'"):
        sources.open_source("tfds:two_colours,dir=x", split="train")
    with pytest.raises(UserError, match="Unknown split of tfds:two_colours 'tests'"):
        sources.open_source(
            f"tfds:two_colours,data_dir={tmp_path / 'else, where'}", split="tests[:50%]"
        )


def test_a_picture_of_tfds_that_is_none_is_left_to_the_policy(two_colours, tmp_path, caplog):
    make = two_colours.as_dataset

    class Spoilt:
        def as_numpy_iterator(self):
            items = make(
                split="validation", decoders={"image": tfds.decode.SkipDecoding()}
            ).as_numpy_iterator()
            for number, item in enumerate(items):
                yield item | ({"image": b"BM no picture"} if number == 2 else {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TwoColours, "as_dataset", lambda self, **kwargs: Spoilt())
        source = sources.open_source("tfds:two_colours", split="validation")
    assert source.num_examples == 4
    assert "two_colours/validation/2 is not a picture" in caplog.text
    section = dict(video=dict(num_frames=1, size=4, min_resize=4), corrupt="skip")
    data = make_eval_data(
        dict(train="tfds:two_colours", **section), split="validation", batch_size=4
    )
    (batch,) = data.iterate()
    assert batch["mask"].tolist() == [1, 1, 0, 1] and data.corrupt == 1


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


def test_tfds_is_written_by_one_of_those_who_ask_at_once(two_colours, monkeypatch):
    from mmjax.data import tfds as ours

    write, written = ours._write, []

    def slow(*args):
        written.append(args)
        time.sleep(0.3)
        write(*args)

    monkeypatch.setattr(ours, "_write", slow)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: ours.tfds_folder("two_colours", split="train"), range(3)))
    assert len(written) == 1 and len(set(found)) == 1
