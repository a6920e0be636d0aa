"""Parts of splits: against TFDS's own arithmetic, and through all that reads records."""

import logging

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mmjax.data import slices, sources
from mmjax.data.pipeline import pure_reader
from mmjax.errors import UserError
from tests.data import toy_clips as toy


class Numbers:
    """A source of so many records without shards, of given classes."""

    files = index = None
    folder = ""

    def __init__(self, name, labels):
        self.name, self._labels = name, np.asarray(labels)
        self.num_examples = len(labels)
        self.info = sources.DatasetInfo(name="numbers", num_classes=int(max(labels)) + 1)

    def fetch(self, record):
        return f"{self.name} {record}".encode()

    where = fetch

    def labels(self):
        return self._labels


def opened(split, **splits):
    return slices.open_split(split, lambda name: Numbers(name, splits[name]), joiner=slices.Joined)


def texts(source):
    return [source.fetch(record).decode() for record in range(source.num_examples)]


BOUNDS = ("", "0", "1", "7", "-3", "-1", "10%", "12.5%", "33%", "50%", "80%", "99%", "-20%", "100%")


@pytest.mark.parametrize("count", [1, 10, 37, 203, 5994])
def test_rounding_is_that_of_tfds(count):
    info = tfds.core.SplitInfo(
        name="train", shard_lengths=[count], num_bytes=0, filename_template=None
    )
    compared = 0
    for start in BOUNDS:
        for stop in BOUNDS:
            units = {bound.endswith("%") for bound in (start, stop) if bound}
            if len(units) != 1 or "." in start + stop:  # these TFDS does not take
                continue
            text = f"train[{start}:{stop}]"
            (part,) = slices.parse(text)
            try:
                (truth,) = tfds.core.ReadInstruction.from_spec(text).to_absolute({"train": info})
            except (AssertionError, ValueError):
                truth = None
            start_stop = truth and (truth.from_ or 0, count if truth.to is None else truth.to)
            if not start_stop or start_stop[0] >= start_stop[1]:
                with pytest.raises(UserError, match="has no records|reaches beyond"):
                    part.bounds(count)
            else:
                assert part.bounds(count) == start_stop, text
                compared += 1
    assert compared >= 3


def test_parts_of_percents_meet():
    for count in range(1, 60):
        whole = np.arange(count)
        parts = [f"train[{a}%:{a + 20}%]" for a in range(0, 100, 20)]
        found = []
        for text in parts:
            try:
                found.append(whole[slice(*slices.parse(text)[0].bounds(count))])
            except UserError:  # none in this part
                pass
        assert np.array_equal(np.concatenate(found), whole)


def test_sums_keep_their_order():
    splits = dict(train=[0] * 10, valid=[0] * 4)
    source = opened("valid[1:3] + train[:20%]+valid[:1]", **splits)
    assert texts(source) == ["valid 1", "valid 2", "train 0", "train 1", "valid 0"]
    assert source.where(2) == b"train 0" and source.labels().tolist() == [0] * 5
    assert texts(opened("train", **splits)) == [f"train {n}" for n in range(10)]


def test_a_record_may_not_come_twice():
    with pytest.raises(UserError, match="has 2 of its 12 records twice"):
        opened("train[:60%]+train[4:]", train=[0] * 10)


@pytest.mark.parametrize(
    "text", ["train[", "train[]", "train[5]", "train[:80%:class]", "+", "", "train[a:]", "[:5]"]
)
def test_what_is_not_understood(text):
    with pytest.raises(UserError, match="is not understood.*80%"):
        slices.parse(text)


def test_empty_and_surplus_parts():
    with pytest.raises(
        UserError, match=r"'train\[5000:10000\]' reaches beyond the data: train has 10"
    ):
        opened("train[5000:10000]", train=[0] * 10)


@pytest.mark.parametrize("order", ["by class", "mixed"])
def test_stratified_parts_have_their_share_of_each_class(order):
    counts = [50, 25, 10, 7, 1]
    labels = np.repeat(np.arange(5), counts)
    if order == "mixed":
        labels = np.random.default_rng(0).permutation(labels)
    train, valid = (opened(f"train[{s}:stratified]", train=labels) for s in (":80%", "80%:"))
    assert train.num_examples == round(0.8 * 93) and valid.num_examples == 93 - round(0.8 * 93)
    for source, share in ((train, 0.8), (valid, 0.2)):
        found = np.bincount(source.labels(), minlength=5)
        assert np.abs(found - share * np.array(counts)).max() <= 1
        numbers = [int(text.split()[1]) for text in texts(source)]
        assert numbers == sorted(numbers)
    assert len(set(texts(train)) | set(texts(valid))) == 93  # each once
    assert (np.bincount(train.labels()) > 0).all()


def test_stratified_without_labels():
    with pytest.raises(UserError, match="has no labels"):
        opened("train[:50%:stratified]", train=[-1, -1, -1])


def test_classes_that_a_slice_loses_are_counted(caplog):
    labels = np.repeat(np.arange(7), 10)
    with caplog.at_level(logging.WARNING):
        opened("sorted[:80%]", sorted=labels)
        opened("sorted[:80%]", sorted=labels)  # evaluators open their data anew: said once
        opened("fine[:80%]", fine=np.tile(np.arange(7), 10))
    (record,) = caplog.records
    assert "sorted: 1 of its 7 classes have no record in 'sorted[:80%]'" in record.getMessage()
    assert "'sorted[:80%:stratified]'" in record.getMessage()


def test_synonyms():
    assert slices.same_split("validation", ["train", "val"]) == "val"
    assert slices.same_split("val", ["valid", "val"]) == "val"
    assert slices.same_split("test", ["train", "val"]) is None
    assert slices.same_split("novel", ["novel"]) == "novel"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy")
    toy.build(path, 11, shards=3)
    return path


SPLITS = ["train[:50%]", "train[3:-2]", "train[:60%:stratified]", "train[8:]+train[:2]"]


@pytest.mark.parametrize("split", SPLITS)
def test_all_ways_to_read_give_the_same(folder, split):
    """By number, without frames and resolved, in TensorFlow alone; the index's rows are right."""
    whole = sources.open_source(str(folder), split="train")
    source = sources.open_source(str(folder), split=split)
    records = {
        "train[:50%]": [0, 1, 2, 3, 4, 5],  # 5.5 to the even number, as in TFDS
        "train[3:-2]": [3, 4, 5, 6, 7, 8],
        "train[8:]+train[:2]": [8, 9, 10, 0, 1],
    }.get(split)
    if records is None:
        records = np.sort(slices.stratified_order(np.arange(11) % 5)[:7]).tolist()
    assert source.num_examples == len(records) == len(source.index)
    assert source.labels().tolist() == [record % 5 for record in records]
    assert source.info == whole.info
    read = pure_reader([whole, source])
    for number, record in enumerate(records):
        payload = whole.fetch(record)
        assert source.fetch(number) == payload and source.where(number) == whole.where(record)
        (pure,) = read(np.int64(1), np.int64(number)).as_numpy_iterator()
        assert pure == payload
        short = sources.schema.decode(source.fetch_without("image/encoded", number))
        assert len(source.fetch_without("image/encoded", number)) < len(payload) / 2
        assert source.resolve(short.frames) == sources.schema.decode(payload).frames


def test_sums_of_two_splits_of_a_folder(tmp_path):
    toy.build(tmp_path, 5, shards=2)
    info = sources.DatasetInfo.load(tmp_path)
    (tmp_path / "more").mkdir()
    toy.build(tmp_path / "more", 4, shards=1, split="valid")
    for file in (tmp_path / "more").glob("valid-*"):
        file.rename(tmp_path / file.name)
    info.splits["valid"] = sources.DatasetInfo.load(tmp_path / "more").splits["valid"]
    info.save(tmp_path)
    source = sources.open_source(str(tmp_path), split="train[3:]+val")  # it is called valid
    names = [sources.schema.decode(source.fetch(n)).filename for n in range(6)]
    assert names == ["clip 3", "clip 4", "clip 0", "clip 1", "clip 2", "clip 3"]
    assert source.where(5).endswith("valid-00000-of-00001.tfrecord, record 3")
    assert source.where(1).endswith("train-00001-of-00002.tfrecord, record 2")
    for number in range(6):
        short = sources.schema.decode(source.fetch_without("image/encoded", number))
        truth = sources.schema.decode(source.fetch(number))
        assert source.resolve(short.frames) == truth.frames


def test_slices_of_a_split_with_a_corrupt_record(tmp_path):
    """It is met when it is read, not when the labels are: `data.corrupt` decides."""
    payload = lambda n: b"\xff" * 9 if n == 2 else sources.schema.encode(toy.example(n))  # noqa: E731
    toy.build(tmp_path, 6, shards=1, payload=payload)
    source = sources.open_source(str(tmp_path), split="train[1:4]")
    assert source.labels().tolist() == [1, -1, 3] and source.fetch(1) == b"\xff" * 9


def test_labels_behind_long_contexts(tmp_path):
    """A plain tf.train.Example has its pictures in the context."""
    stored = toy.example(3, captions=["word " * 2000])
    toy.build(tmp_path, 4, shards=1, payload=lambda n: sources.schema.encode(stored))
    assert sources.open_source(str(tmp_path), split="train").labels().tolist() == [3] * 4


def test_a_split_with_a_plus_in_its_name(tmp_path):
    toy.build(tmp_path, 4, shards=1, split="train1+train2")
    for split in ("train1", "train1+train2"):
        assert sources.open_source(str(tmp_path), split=split).num_examples == 4
    assert sources.open_source(str(tmp_path), split="train1[:50%]").num_examples == 2
    with pytest.raises(UserError, match="records twice"):
        sources.open_source(str(tmp_path), split="train1[:50%]+train2")
