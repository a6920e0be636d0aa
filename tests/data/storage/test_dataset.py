"""Dataset directories with and without dataset.json, with shard names of DMVR, TFDS and mmjax."""

import json
import logging
import os

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.storage import dataset, schema, tfrecord
from mmjax.errors import UserError
from tests.messages import assert_mentions, raises


def record(number, waveform=None):
    return schema.encode(schema.Example(labels=[number], captions=["a"], waveform=waveform))


def fill(directory, sizes, split="train", *, name=dataset.shard_name):
    """Writes shards with labels 0, 1, 2, … and returns the number of records."""
    number = 0
    for shard, size in enumerate(sizes):
        path = os.path.join(directory, name(split, shard, len(sizes)))
        tfrecord.write_shard(path, [record(number + i) for i in range(size)])
        number += size
    return number


def complete(directory, sizes, **fields):
    count = fill(directory, sizes)
    shards = [dataset.shard_name("train", i, len(sizes)) for i in range(len(sizes))]
    info = dataset.DatasetInfo(
        name="test",
        splits={"train": dataset.SplitInfo(num_examples=count, shards=shards)},
        **fields,
    )
    info.save(directory)
    return info


def labels(split):
    return [schema.decode(split.read(i)).labels[0] for i in range(len(split))]


def test_info_round_trip_and_reading_records(tmp_path):
    info = complete(
        tmp_path,
        [3, 0, 2],
        modalities=("video", "audio"),
        class_names=["a", "b"],
        num_classes=2,
        fps=10.0,
        frame_size=(32, 48),
        statistics={"rms": 0.25},
    )
    directory = dataset.DatasetDir(tmp_path)
    assert directory.info == info
    split = directory.split("train")
    assert labels(split) == [0, 1, 2, 3, 4]
    assert split.index.dtype == np.int64 and split.index[:, 0].tolist() == [0, 0, 0, 2, 2]
    assert split.first.tolist() == [0, 3, 3]
    assert_mentions(dataset.describe(directory.info), "test", "train 5", "video, audio")


@pytest.mark.parametrize(
    "name, split",
    [
        (lambda s, i, n: f"{s}-{i:05d}-of-{n:05d}", "train"),
        (lambda s, i, n: f"hmdb_{s}-{i}-of-{n}", "hmdb_train"),
        (lambda s, i, n: f"{s}/clips-{i:05d}-of-{n:05d}", "train"),
        (lambda s, i, n: f"mnist-{s}.tfrecord-{i:05d}-of-{n:05d}", "mnist-train"),
    ],
)
def test_shards_are_found_without_dataset_json(tmp_path, name, split):
    fill(tmp_path, [2, 3], name=name)
    for file in tmp_path.rglob("*.idx"):
        file.unlink()
    directory = dataset.DatasetDir(tmp_path)
    assert labels(directory.split(split)) == [0, 1, 2, 3, 4]
    assert labels(directory.split(f"{split}@2")) == [0, 1, 2, 3, 4]
    assert directory.info.splits[split].num_examples == 5
    assert directory.info.modalities == ("text", "label")
    with raises(UserError, tmp_path, f"{split}@3") as info:
        directory.split(f"{split}@3")
    assert_mentions(str(info.value).replace(str(tmp_path), "").replace(f"{split}@3", ""), 3, 2)


def test_splits_in_one_subdirectory_are_named_with_their_path(tmp_path):
    fill(tmp_path / "data", [1], split="train")
    fill(tmp_path / "data", [2], split="test")
    assert list(dataset.find_shards(tmp_path)) == ["data/test", "data/train"]


def test_dmvr_int32_waveforms_are_reported_and_repaired(tmp_path, caplog):
    audio = np.sin(np.arange(1000) / 9)
    proto = tf.train.SequenceExample()
    feature = proto.feature_lists.feature_list["WAVEFORM/feature/floats"].feature.add()
    feature.float_list.value[:] = list((audio * (2**31 - 1)).astype(np.int32).view(np.float32))
    tfrecord.write_shard(tmp_path / "train-00000-of-00001", [proto.SerializeToString()])
    with caplog.at_level(logging.WARNING):
        directory = dataset.DatasetDir(tmp_path)
    assert_mentions(caplog.text, tmp_path, "32-bit", "PCM", "DMVR")
    assert_mentions(caplog.text, "of 1000 samples", "cannot be repaired", "0.00195")
    assert directory.info.waveform_format == "int32"
    repaired = schema.decode(directory.split("train").read(0), waveform_format="int32").waveform
    np.testing.assert_allclose(repaired, audio, atol=3e-3)


def test_error_for_a_missing_dataset(tmp_path):
    with raises(UserError, tmp_path / "nowhere", "mmjax build", "`world`"):
        dataset.DatasetDir(tmp_path / "nowhere")


def test_error_for_a_directory_without_shards(tmp_path):
    (tmp_path / "film.mp4").touch()
    with raises(
        UserError, tmp_path, "train-00000-of-00010.tfrecord", "film.mp4", "images:", "csv:"
    ):
        dataset.DatasetDir(tmp_path)


@pytest.mark.parametrize("with_json", [True, False])
def test_error_for_shards_without_records(tmp_path, with_json):
    complete(tmp_path, [0, 0])
    if not with_json:
        (tmp_path / dataset.FILE).unlink()
    with raises(UserError, tmp_path, "empty", "'train'", "2 shards"):
        dataset.DatasetDir(tmp_path).split("train")


@pytest.mark.parametrize("with_json", [True, False])
def test_error_for_an_unknown_split_lists_the_splits(tmp_path, with_json):
    complete(tmp_path, [1, 1])
    if not with_json:
        (tmp_path / dataset.FILE).unlink()
    with raises(UserError, tmp_path, "'valid'", "train (2 shards)"):
        dataset.DatasetDir(tmp_path).split("valid")


def test_error_reports_a_missing_shard(tmp_path):
    complete(tmp_path, [1, 1, 1])
    (tmp_path / dataset.shard_name("train", 1, 3)).unlink()
    with raises(UserError, tmp_path, "'train'", "train-00001-of-00003"):
        dataset.DatasetDir(tmp_path).split("train")
    (tmp_path / dataset.shard_name("train", 1, 3)).mkdir()
    with raises(UserError, tmp_path, "'train'", "train-00001-of-00003"):
        dataset.DatasetDir(tmp_path).split("train")
    (tmp_path / dataset.shard_name("train", 1, 3)).rmdir()
    (tmp_path / dataset.FILE).unlink()
    with raises(UserError, tmp_path, "'train'") as info:
        dataset.DatasetDir(tmp_path)
    assert_mentions(str(info.value).replace(str(tmp_path), ""), 3, 1)


def test_error_for_shards_of_two_builds_in_one_directory(tmp_path):
    fill(tmp_path, [1, 1])
    fill(tmp_path, [1, 1, 1])
    with raises(UserError, tmp_path, "'train'", "2 of 2", "3 of 3"):
        dataset.DatasetDir(tmp_path)


def test_error_when_dataset_json_disagrees_with_the_shards(tmp_path):
    complete(tmp_path, [2, 2])
    tfrecord.write_shard(tmp_path / dataset.shard_name("train", 0, 2), [record(0)])
    with raises(UserError, "dataset.json", "'train'", f"mmjax index {tmp_path}") as info:
        dataset.DatasetDir(tmp_path).split("train")
    assert_mentions(str(info.value).replace(str(tmp_path), ""), 4, 3)


def test_error_reports_the_shard_and_index_of_a_corrupt_record(tmp_path):
    complete(tmp_path, [2, 2])
    split = dataset.DatasetDir(tmp_path).split("train")
    _, offset, _ = split.index[3]
    with open(split.files[1], "r+b") as file:
        file.seek(offset)
        file.write(b"\x00")
    with raises(tfrecord.CorruptRecord, "train-00001-of-00002", "record 1", "CRC"):
        split.read(3)
    assert schema.decode(split.read(2)).labels == [2]


@pytest.mark.parametrize(
    "change, facts",
    [
        (lambda d: "{", ("line 1 column 2", "mmjax index")),
        (lambda d: "[]", ("JSON object", "mmjax index")),
        (lambda d: json.dumps(d | {"format": 99}), ("99", dataset.FORMAT, "newer version")),
        (lambda d: json.dumps(d | {"format": "x"}), ('"format"', "'x'", "mmjax index")),
        (lambda d: json.dumps(d | {"class_name": []}), ("'class_name'", "class_names")),
        (
            lambda d: json.dumps(d | {"splits": {"train": {"shards": []}}}),
            ("splits.train", "num_examples", "mmjax index"),
        ),
        (
            lambda d: json.dumps(d | {"splits": {"train": {"num_examples": 1, "shards": [7]}}}),
            ("splits.train: shards[0]", "string", "7", "mmjax index"),
        ),
        (
            lambda d: json.dumps(d | {"splits": {"train": {"num_examples": 1, "shards": [[]]}}}),
            ("splits.train: shards[0]", "string", "[]", "mmjax index"),
        ),
        (lambda d: json.dumps(d | {"splits": [1]}), ("splits", "object", "[1]", "mmjax index")),
        (lambda d: json.dumps(d | {"fps": "10"}), ("fps", "number", "'10'", "mmjax index")),
        (lambda d: json.dumps(d | {"num_classes": True}), ("num_classes", "integer", "True")),
        (lambda d: json.dumps(d | {"frame_size": [3]}), ("frame_size", "array", "[3]")),
        (lambda d: json.dumps(d | {"splits": {}}), ("splits", "mmjax index")),
        (
            lambda d: json.dumps(d | {"waveform_format": "int16"}),
            ("waveform_format", "'int16'", "float32, int32"),
        ),
    ],
)
def test_error_for_an_invalid_dataset_json(tmp_path, change, facts):
    complete(tmp_path, [1])
    path = tmp_path / dataset.FILE
    path.write_text(change(json.loads(path.read_text())))
    with raises(UserError, path, *facts):
        dataset.DatasetDir(tmp_path)


def test_the_format_version_is_written_and_null_values_are_read(tmp_path):
    complete(tmp_path, [1], frame_size=None, fps=10)
    content = json.loads((tmp_path / dataset.FILE).read_text())
    assert content["format"] == dataset.FORMAT and content["frame_size"] is None
    assert dataset.DatasetInfo.load(tmp_path).fps == 10.0


def test_error_reports_the_location_of_a_first_record_that_cannot_be_parsed(tmp_path):
    tfrecord.write_shard(tmp_path / "train-00000-of-00001", [b"\xff" * 50])
    with raises(UserError, tmp_path / "train-00000-of-00001", "record 0", 50):
        dataset.DatasetDir(tmp_path)
