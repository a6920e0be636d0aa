"""TFDS image datasets as sources: splits, labels, conversion and errors."""

import concurrent.futures
import importlib.resources
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mmjax.data.pipeline.loader import make_eval_data
from mmjax.data.sources import registry as sources
from mmjax.data.sources import tfds as tfds_source
from mmjax.data.storage import schema
from mmjax.errors import UserError
from tests.messages import assert_mentions, raises


def frames(serialized):
    return [tf.io.decode_image(f).numpy() for f in schema.decode(serialized).frames]


class TwoColors(tfds.core.GeneratorBasedBuilder):
    """A generated TFDS image dataset that needs no download."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "superclass": tfds.features.ClassLabel(names=["only"]),
                "label": tfds.features.ClassLabel(names=["dark", "light"]),
                "objects": tfds.features.Sequence({"size": tfds.features.Text()}),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(23), "validation": self._generate_examples(4)}

    def _generate_examples(self, count):
        for number in range(count):
            gray = 20 + 200 * (number % 2)
            image = np.full((6, 8, 3), gray, np.uint8)
            image[0, 0, 0] = number
            yield (
                number,
                {
                    "image": image,
                    "superclass": 0,
                    "label": number % 2,
                    "objects": [{"size": "small"}] * (3 + number % 8),
                },
            )


def number_of(serialized):
    """Returns the index of an example, which its first pixel encodes."""
    (image,) = frames(serialized)
    return int(image[0, 0, 0])


@pytest.fixture
def two_colors(tmp_path, monkeypatch):
    """Registers the dataset above with TFDS and writes its training split in three shards."""
    # TFDS imports the backport of importlib.resources, only to inspect packages.
    monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    make = tfds.builder

    def builder(name, *, data_dir=None, **kwargs):
        if name == "two_colors":
            return TwoColors(data_dir=data_dir or tmp_path / "tfds")
        return make(name, data_dir=data_dir, **kwargs)

    monkeypatch.setattr(tfds, "builder", builder)
    config = tfds.download.DownloadConfig(num_shards=3)
    builder("two_colors").download_and_prepare(download_config=config)
    return builder("two_colors")


def test_tfds_splits_and_slices_equal_those_of_tfds(two_colors, tmp_path):
    assert two_colors.info.splits["train"].num_shards == 3
    source = sources.open_source("tfds:two_colors", split="train")
    assert source.num_examples == 23 and source.info.class_names == ["dark", "light"]
    for record in range(23):
        example = schema.decode(source.fetch(record))
        (image,) = frames(source.fetch(record))
        assert (image[1:] == 20 + 200 * example.labels[0]).all()  # PNG: exact
    assert sources.split_names("tfds:two_colors") == ["train", "validation"]
    for split in ("train[:80%]", "train[80%:]", "train[5:-3]", "validation", "valid"):
        if split != "valid":
            order = tfds.ReadConfig(interleave_cycle_length=1)
            dataset = two_colors.as_dataset(split=split, read_config=order)
            truth = [int(item["image"][0, 0, 0]) for item in dataset.as_numpy_iterator()]
        source = sources.open_source("tfds:two_colors", split=split)
        assert [number_of(source.fetch(n)) for n in range(source.num_examples)] == truth, split
        assert source.labels().tolist() == [number % 2 for number in truth]
    # Slices are not copied.
    assert len(list((tmp_path / "cache" / "tfds").iterdir())) == 2
    # Opening it again reads the converted copy; TFDS's own copy is no longer needed.
    (tmp_path / "tfds").rename(tmp_path / "moved")
    assert sources.open_source("tfds:two_colors", split="train[:40%]").num_examples == 9


def test_tfds_caches_of_earlier_versions_are_reused(two_colors, tmp_path):
    source = sources.open_source("tfds:two_colors", split="train")
    cache = tmp_path / "cache" / "tfds"
    (directory,) = cache.iterdir()
    earlier = cache / "two_colors_1.0.0-train"
    directory.rename(earlier)
    assert sources.open_source("tfds:two_colors", split="train").directory == str(earlier)
    # The order of that cache may differ from the one in which TFDS slices, so it is not reused.
    part = sources.open_source("tfds:two_colors", split="train[:40%]")
    assert part.directory == str(directory) and part.num_examples == 9
    info = source.info
    info.splits = {"train[:7]": info.splits["train"]}
    (earlier / "dataset.json").unlink()
    earlier.rename(cache / "two_colors_1.0.0-train_7_")
    info.save(cache / "two_colors_1.0.0-train_7_")
    assert sources.open_source("tfds:two_colors", split="train[:7]").num_examples == 23


def test_tfds_label_and_data_dir_settings(two_colors, tmp_path):
    (tmp_path / "tfds").rename(tmp_path / "else, where")
    spec = f"tfds:two_colors,label=objects,data_dir={tmp_path / 'else, where'}"
    source = sources.open_source(spec, split="train")
    assert source.info.class_names == ["10", "3", "4", "5", "6", "7", "8", "9"]
    for record in range(23):
        count = 3 + number_of(source.fetch(record)) % 8
        (label,) = schema.decode(source.fetch(record)).labels
        assert label == [10, 3, 4, 5, 6, 7, 8, 9].index(count)
    with raises(UserError, "label", "tfds:two_colors", "'object'", "'objects'"):
        sources.open_source("tfds:two_colors,label=object", split="train")
    with raises(UserError, "tfds:two_colors", "'dir'", "data_dir, label"):
        sources.open_source("tfds:two_colors,dir=x", split="train")
    with raises(UserError, "tfds:two_colors", "'tests'", "train, validation"):
        sources.open_source(
            f"tfds:two_colors,data_dir={tmp_path / 'else, where'}", split="tests[:50%]"
        )


def test_an_invalid_tfds_image_is_reported_and_skipped(two_colors, tmp_path, caplog):
    make = two_colors.as_dataset

    class WithInvalidImage:
        def as_numpy_iterator(self):
            items = make(
                split="validation", decoders={"image": tfds.decode.SkipDecoding()}
            ).as_numpy_iterator()
            for number, item in enumerate(items):
                yield item | ({"image": b"BM not an image"} if number == 2 else {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TwoColors, "as_dataset", lambda self, **kwargs: WithInvalidImage())
        source = sources.open_source("tfds:two_colors", split="validation")
    assert source.num_examples == 4
    assert_mentions(caplog.text, "two_colors/validation/2")
    assert "two_colors/validation/1" not in caplog.text
    section = dict(video=dict(num_frames=1, size=4, min_resize=4), corrupt="skip")
    data = make_eval_data(
        dict(train="tfds:two_colors", **section), split="validation", batch_size=4
    )
    (batch,) = data.iterate()
    assert batch["mask"].tolist() == [1, 1, 0, 1] and data.corrupt == 1


def test_error_for_an_unknown_tfds_dataset():
    with raises(UserError, "tfds:no_such_set_at_all", "TFDS"):
        sources.open_source("tfds:no_such_set_at_all", split="train")


def test_concurrent_readers_convert_a_tfds_dataset_once(two_colors, monkeypatch):
    write, written = tfds_source._convert, []

    def slow(*args):
        written.append(args)
        time.sleep(0.3)
        write(*args)

    monkeypatch.setattr(tfds_source, "_convert", slow)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        convert = lambda _: tfds_source.tfds_dir("two_colors", split="train")  # noqa: E731
        directories = list(pool.map(convert, range(3)))
    assert len(written) == 1 and len(set(directories)) == 1
