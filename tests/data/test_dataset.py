"""Folders with and without dataset.json, named as DMVR, TFDS and this library name them."""

import json
import logging
import os

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data import dataset, records, schema
from mmjax.errors import UserError


def record(number, waveform=None):
    return schema.encode(schema.Example(labels=[number], captions=["a"], waveform=waveform))


def fill(folder, sizes, split="train", *, name=dataset.shard_name):
    """Shards whose records count up; returns how many."""
    number = 0
    for shard, size in enumerate(sizes):
        path = os.path.join(folder, name(split, shard, len(sizes)))
        records.write_shard(path, [record(number + i) for i in range(size)])
        number += size
    return number


def complete(folder, sizes, **fields):
    count = fill(folder, sizes)
    shards = [dataset.shard_name("train", i, len(sizes)) for i in range(len(sizes))]
    info = dataset.DatasetInfo(
        name="test",
        splits={"train": dataset.SplitInfo(num_examples=count, shards=shards)},
        **fields,
    )
    info.save(folder)
    return info


def labels(split):
    return [schema.decode(split.read(i)).labels[0] for i in range(len(split))]


def test_info_round_trip_and_reading(tmp_path):
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
    folder = dataset.DatasetFolder(tmp_path)
    assert folder.info == info
    split = folder.split("train")
    assert labels(split) == [0, 1, 2, 3, 4]
    assert split.index.dtype == np.int64 and split.index[:, 0].tolist() == [0, 0, 0, 2, 2]
    assert split.first.tolist() == [0, 3, 3]
    assert "train 5" in dataset.describe(folder.info)


@pytest.mark.parametrize(
    "name, split",
    [
        (lambda s, i, n: f"{s}-{i:05d}-of-{n:05d}", "train"),
        (lambda s, i, n: f"hmdb_{s}-{i}-of-{n}", "hmdb_train"),
        (lambda s, i, n: f"{s}/clips-{i:05d}-of-{n:05d}", "train"),
        (lambda s, i, n: f"mnist-{s}.tfrecord-{i:05d}-of-{n:05d}", "mnist-train"),
    ],
)
def test_folders_without_json(tmp_path, name, split):
    fill(tmp_path, [2, 3], name=name)
    for file in tmp_path.rglob("*.idx"):
        file.unlink()
    folder = dataset.DatasetFolder(tmp_path)
    assert labels(folder.split(split)) == [0, 1, 2, 3, 4]
    assert labels(folder.split(f"{split}@2")) == [0, 1, 2, 3, 4]
    assert folder.info.splits[split].num_examples == 5
    assert folder.info.modalities == ("text", "label")
    with pytest.raises(UserError, match="asks for 3 shards; there are 2"):
        folder.split(f"{split}@3")


def test_subfolder_with_two_sets_of_shards(tmp_path):
    fill(tmp_path / "data", [1], split="train")
    fill(tmp_path / "data", [2], split="test")
    assert list(dataset.find_shards(tmp_path)) == ["data/test", "data/train"]


def test_dmvr_int32_waveforms_are_announced(tmp_path, caplog):
    sound = np.sin(np.arange(1000) / 9)
    proto = tf.train.SequenceExample()
    feature = proto.feature_lists.feature_list["WAVEFORM/feature/floats"].feature.add()
    feature.float_list.value[:] = list((sound * (2**31 - 1)).astype(np.int32).view(np.float32))
    records.write_shard(tmp_path / "train-00000-of-00001", [proto.SerializeToString()])
    with caplog.at_level(logging.WARNING):
        folder = dataset.DatasetFolder(tmp_path)
    assert "32-bit integer PCM" in caplog.text and str(tmp_path) in caplog.text
    assert folder.info.waveform_format == "int32"
    repaired = schema.decode(folder.split("train").read(0), waveform_format="int32").waveform
    np.testing.assert_allclose(repaired, sound, atol=3e-3)


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="no dataset at .*nowhere.*mmjax build"):
        dataset.DatasetFolder(tmp_path / "nowhere")


def test_folder_without_shards(tmp_path):
    (tmp_path / "film.mp4").touch()
    with pytest.raises(UserError, match="empty: no file is named like .*film.mp4"):
        dataset.DatasetFolder(tmp_path)


@pytest.mark.parametrize("with_json", [True, False])
def test_shards_without_records(tmp_path, with_json):
    complete(tmp_path, [0, 0])
    if not with_json:
        (tmp_path / dataset.FILE).unlink()
    with pytest.raises(UserError, match="is empty"):
        dataset.DatasetFolder(tmp_path).split("train")


@pytest.mark.parametrize("with_json", [True, False])
def test_no_shards_for_split(tmp_path, with_json):
    complete(tmp_path, [1, 1])
    if not with_json:
        (tmp_path / dataset.FILE).unlink()
    with pytest.raises(
        UserError, match=r"no shards for the split 'valid'. It has: train \(2 shards\)"
    ):
        dataset.DatasetFolder(tmp_path).split("valid")


def test_lost_shard(tmp_path):
    complete(tmp_path, [1, 1, 1])
    (tmp_path / dataset.shard_name("train", 1, 3)).unlink()
    with pytest.raises(UserError, match="1 of 3 shards of 'train' are missing, first train-00001"):
        dataset.DatasetFolder(tmp_path).split("train")
    (tmp_path / dataset.FILE).unlink()
    with pytest.raises(UserError, match="of the 3 shards of 'train' these are missing: 1"):
        dataset.DatasetFolder(tmp_path)


def test_shards_of_two_builds(tmp_path):
    fill(tmp_path, [1, 1])
    fill(tmp_path, [1, 1, 1])
    with pytest.raises(UserError, match="several builds"):
        dataset.DatasetFolder(tmp_path)


def test_count_that_differs_from_json(tmp_path):
    complete(tmp_path, [2, 2])
    records.write_shard(tmp_path / dataset.shard_name("train", 0, 2), [record(0)])
    with pytest.raises(UserError, match="promises 4 examples in 'train', the shards hold 3"):
        dataset.DatasetFolder(tmp_path).split("train")


def test_corrupt_record_is_named_within_its_shard(tmp_path):
    complete(tmp_path, [2, 2])
    split = dataset.DatasetFolder(tmp_path).split("train")
    _, offset, _ = split.index[3]
    with open(split.files[1], "r+b") as file:
        file.seek(offset)
        file.write(b"\x00")
    with pytest.raises(records.CorruptRecord, match="train-00001-of-00002.*record 1: .*CRC"):
        split.read(3)
    assert split.read(2)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: "{", "damaged"),
        (lambda d: json.dumps(d | {"format": 99}), "another version"),
        (lambda d: json.dumps(d | {"class_name": []}), "Did you mean 'class_names'"),
        (lambda d: json.dumps(d | {"splits": {"train": {"shards": []}}}), "damaged"),
        (lambda d: json.dumps(d | {"splits": {}}), "lists no splits"),
        (lambda d: json.dumps(d | {"waveform_format": "int16"}), "waveform_format"),
    ],
)
def test_bad_json(tmp_path, change, message):
    complete(tmp_path, [1])
    path = tmp_path / dataset.FILE
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(UserError, match=message):
        dataset.DatasetFolder(tmp_path)
