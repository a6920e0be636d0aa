"""Tests of split slicing, against TFDS and with every way of reading records."""

import logging

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mmjax.data.pipeline.readers import pure_reader
from mmjax.data.sources import registry as sources
from mmjax.data.sources import split_slicing
from mmjax.data.storage import schema
from mmjax.data.storage.dataset import DatasetInfo
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.messages import assert_mentions, raises


class Numbers:
    """A source without shards; record i is the text 'NAME i' and has the label `labels[i]`."""

    files = index = None
    directory = ""

    def __init__(self, name, labels):
        self.name, self._labels = name, np.asarray(labels)
        self.num_examples = len(labels)
        self.info = DatasetInfo(name="numbers", num_classes=int(max(labels)) + 1)

    def fetch(self, record):
        return f"{self.name} {record}".encode()

    where = fetch

    def labels(self):
        return self._labels


def open_split(split, **splits):
    return split_slicing.open_split(
        split, lambda name: Numbers(name, splits[name]), concatenate=split_slicing.ConcatSource
    )


def texts(source):
    return [source.fetch(record).decode() for record in range(source.num_examples)]


BOUNDS = ("", "0", "1", "7", "-3", "-1", "10%", "12.5%", "33%", "50%", "80%", "99%", "-20%", "100%")


@pytest.mark.parametrize("count", [1, 10, 37, 203, 5994])
def test_bounds_are_rounded_as_in_tfds(count):
    info = tfds.core.SplitInfo(
        name="train", shard_lengths=[count], num_bytes=0, filename_template=None
    )
    compared = 0
    for start in BOUNDS:
        for stop in BOUNDS:
            units = {bound.endswith("%") for bound in (start, stop) if bound}
            if len(units) != 1 or "." in start + stop:  # not supported by TFDS
                continue
            text = f"train[{start}:{stop}]"
            (part,) = split_slicing.parse(text)
            try:
                (expected,) = tfds.core.ReadInstruction.from_spec(text).to_absolute({"train": info})
            except (AssertionError, ValueError):
                expected = None
            start_stop = expected and (
                expected.from_ or 0,
                count if expected.to is None else expected.to,
            )
            if not start_stop or start_stop[0] >= start_stop[1]:
                with raises(UserError, repr(text), count):
                    part.bounds(count)
            else:
                assert part.bounds(count) == start_stop, text
                compared += 1
    assert compared >= 3


def test_adjacent_percent_slices_cover_every_record_once():
    for count in range(1, 60):
        whole = np.arange(count)
        parts = [f"train[{a}%:{a + 20}%]" for a in range(0, 100, 20)]
        selected = []
        for text in parts:
            try:
                selected.append(whole[slice(*split_slicing.parse(text)[0].bounds(count))])
            except UserError:  # This slice is empty.
                pass
        assert np.array_equal(np.concatenate(selected), whole)


def test_sums_of_slices_keep_their_order():
    splits = dict(train=[0] * 10, valid=[0] * 4)
    source = open_split("valid[1:3] + train[:20%]+valid[:1]", **splits)
    assert texts(source) == ["valid 1", "valid 2", "train 0", "train 1", "valid 0"]
    assert source.where(2) == b"train 0" and source.labels().tolist() == [0] * 5
    assert texts(open_split("train", **splits)) == [f"train {n}" for n in range(10)]


def test_overlapping_slices_are_rejected():
    with raises(UserError, "'train[:60%]+train[4:]'", "numbers", " 2 ", 12):
        open_split("train[:60%]+train[4:]", train=[0] * 10)


@pytest.mark.parametrize(
    "text", ["train[", "train[]", "train[5]", "train[:80%:class]", "+", "", "train[a:]", "[:5]"]
)
def test_malformed_splits_are_rejected(text):
    with raises(UserError, repr(text), "'train[:80%]'", "'train[80%::stratified]'"):
        split_slicing.parse(text)


def test_slice_beyond_the_data_is_rejected():
    facts = ("'train[5000:10000]'", " 10 ")
    with raises(UserError, *facts):
        open_split("train[5000:10000]", train=[0] * 10)


@pytest.mark.parametrize("order", ["by class", "mixed"])
def test_stratified_slices_preserve_class_proportions(order):
    counts = [50, 25, 10, 7, 1]
    labels = np.repeat(np.arange(5), counts)
    if order == "mixed":
        labels = np.random.default_rng(0).permutation(labels)
    train, valid = (open_split(f"train[{s}:stratified]", train=labels) for s in (":80%", "80%:"))
    assert train.num_examples == round(0.8 * 93) and valid.num_examples == 93 - round(0.8 * 93)
    for source, share in ((train, 0.8), (valid, 0.2)):
        class_counts = np.bincount(source.labels(), minlength=5)
        assert np.abs(class_counts - share * np.array(counts)).max() <= 1
        indices = [int(text.split()[1]) for text in texts(source)]
        assert indices == sorted(indices)
    assert len(set(texts(train)) | set(texts(valid))) == 93  # every record once
    assert (np.bincount(train.labels()) > 0).all()


def test_stratified_slices_need_labels():
    with raises(UserError, "train", "labels", "'train[:50%:stratified]'"):
        open_split("train[:50%:stratified]", train=[-1, -1, -1])


def test_warning_counts_the_classes_that_a_slice_lacks(caplog):
    labels = np.repeat(np.arange(7), 10)
    with caplog.at_level(logging.WARNING):
        open_split("sorted[:80%]", sorted=labels)
        open_split("sorted[:80%]", sorted=labels)  # Repeated by every evaluator; logged once.
        open_split("fine[:80%]", fine=np.tile(np.arange(7), 10))
    (record,) = caplog.records
    facts = ("sorted", 1, 7, "'sorted[:80%]'", "'sorted[:80%:stratified]'")
    assert_mentions(record.getMessage(), *facts)


def test_validation_split_names_are_synonyms():
    assert split_slicing.match_split("validation", ["train", "val"]) == "val"
    assert split_slicing.match_split("val", ["valid", "val"]) == "val"
    assert split_slicing.match_split("test", ["train", "val"]) is None
    assert split_slicing.match_split("novel", ["novel"]) == "novel"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy")
    toy.build(path, 11, shards=3)
    return path


SPLITS = ["train[:50%]", "train[3:-2]", "train[:60%:stratified]", "train[8:]+train[:2]"]


@pytest.mark.parametrize("split", SPLITS)
def test_all_ways_to_read_a_slice_agree(directory, split):
    """By index, without frames and with resolved references, and in TensorFlow only."""
    whole = sources.open_source(str(directory), split="train")
    source = sources.open_source(str(directory), split=split)
    records = {
        "train[:50%]": [0, 1, 2, 3, 4, 5],  # 5.5 is rounded to even, as in TFDS.
        "train[3:-2]": [3, 4, 5, 6, 7, 8],
        "train[8:]+train[:2]": [8, 9, 10, 0, 1],
    }.get(split)
    if records is None:
        records = np.sort(split_slicing.stratified_order(np.arange(11) % 5)[:7]).tolist()
    assert source.num_examples == len(records) == len(source.index)
    assert source.labels().tolist() == [record % 5 for record in records]
    assert source.info == whole.info
    read = pure_reader([whole, source])
    for index, record in enumerate(records):
        payload = whole.fetch(record)
        assert source.fetch(index) == payload and source.where(index) == whole.where(record)
        (pure,) = read(np.int64(1), np.int64(index)).as_numpy_iterator()
        assert pure == payload
        short = schema.decode(source.fetch_without("image/encoded", index))
        assert len(source.fetch_without("image/encoded", index)) < len(payload) / 2
        assert source.resolve(short.frames) == schema.decode(payload).frames


def test_sum_of_slices_of_two_splits(tmp_path):
    toy.build(tmp_path, 5, shards=2)
    info = DatasetInfo.load(tmp_path)
    (tmp_path / "more").mkdir()
    toy.build(tmp_path / "more", 4, shards=1, split="valid")
    for file in (tmp_path / "more").glob("valid-*"):
        file.rename(tmp_path / file.name)
    info.splits["valid"] = DatasetInfo.load(tmp_path / "more").splits["valid"]
    info.save(tmp_path)
    source = sources.open_source(str(tmp_path), split="train[3:]+val")  # a synonym of valid
    names = [schema.decode(source.fetch(n)).filename for n in range(6)]
    assert names == ["clip 3", "clip 4", "clip 0", "clip 1", "clip 2", "clip 3"]
    assert source.where(5).endswith("valid-00000-of-00001.tfrecord, record 3")
    assert source.where(1).endswith("train-00001-of-00002.tfrecord, record 2")
    for index in range(6):
        short = schema.decode(source.fetch_without("image/encoded", index))
        expected = schema.decode(source.fetch(index))
        assert source.resolve(short.frames) == expected.frames


def test_reading_labels_tolerates_corrupt_records(tmp_path):
    """`data.corrupt` decides what happens when the record itself is read."""
    payload = lambda n: b"\xff" * 9 if n == 2 else schema.encode(toy.example(n))  # noqa: E731
    toy.build(tmp_path, 6, shards=1, payload=payload)
    source = sources.open_source(str(tmp_path), split="train[1:4]")
    assert source.labels().tolist() == [1, -1, 3] and source.fetch(1) == b"\xff" * 9


def test_labels_are_read_from_long_contexts(tmp_path):
    """A plain tf.train.Example stores its images in the context."""
    stored = toy.example(3, captions=["word " * 2000])
    toy.build(tmp_path, 4, shards=1, payload=lambda n: schema.encode(stored))
    assert sources.open_source(str(tmp_path), split="train").labels().tolist() == [3] * 4


def test_split_with_a_plus_in_its_name(tmp_path):
    toy.build(tmp_path, 4, shards=1, split="train1+train2")
    for split in ("train1", "train1+train2"):
        assert sources.open_source(str(tmp_path), split=split).num_examples == 4
    assert sources.open_source(str(tmp_path), split="train1[:50%]").num_examples == 2
    with raises(UserError, "'train1[:50%]+train2'", "toy", " 2 ", 6):
        sources.open_source(str(tmp_path), split="train1[:50%]+train2")
