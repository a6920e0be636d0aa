"""Reading only the captions of records gives the same result as decoding whole records."""

import os

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.sources import captions
from mmjax.data.sources import registry as sources
from mmjax.data.storage import image_files, schema, tfrecord
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.messages import raises

IMAGE = image_files.encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
TEXTS = [["a red cat", "Übergröße 漢字"], [], ["x" * 5000], ["one more"], ["many words " * 40]]


def example(number):
    return schema.Example(
        frames=[IMAGE] * (number % 3), captions=TEXTS[number % 5], filename=f"clip {number}.jpg"
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy")
    return toy.build(path, 1200, payload=lambda n: schema.encode(example(n)))


def test_captions_and_filenames_equal_those_of_decoded_records(directory):
    source = sources.open_source(str(directory), split="train")
    whole = [schema.decode(source.fetch(n)) for n in range(source.num_examples)]
    result = list(captions.read_captions_and_filenames(source, range(source.num_examples)))
    assert result == [(each.captions, each.filename) for each in whole]
    assert {len(texts) for texts, _ in result} == {0, 1, 2}
    subset = [7, 1100, 3]
    assert captions.read_captions(source, subset) == [whole[n].captions for n in subset]
    assert captions.read_captions(source, []) == []


def test_only_the_first_kilobyte_of_a_record_with_frames_is_read(directory, monkeypatch):
    source = sources.open_source(str(directory), split="train")
    with_frames = [n for n in range(1000) if n % 3 and n % 5 in (0, 3)]
    read, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *args: read.append(args[1]) or pread(*args))
    captions.read_captions(source, with_frames)
    assert len(read) == len(with_frames) and max(read) <= 1024 < len(IMAGE)


def test_captions_of_tf_examples_and_of_feature_lists_are_read(tmp_path):
    """Other tools write a tf.train.Example, or captions as feature lists (DMVR)."""
    example_proto = tf.train.Example()
    example_proto.features.feature["caption/string"].bytes_list.value.append(b"in an Example")
    lists = tf.train.SequenceExample()
    lists.context.feature["video/filename"].bytes_list.value.append(b"a.mp4")
    feature = lists.feature_lists.feature_list["caption/string"].feature
    feature.add().bytes_list.value.append(b"in a list")
    payloads = [example_proto.SerializeToString(), lists.SerializeToString()]
    tfrecord.write_shard(tmp_path / "train-00000-of-00001.tfrecord", payloads)
    source = sources.open_source(str(tmp_path), split="train")
    result = list(captions.read_captions_and_filenames(source, range(2)))
    assert result == [(["in an Example"], ""), (["in a list"], "a.mp4")]


def test_an_image_folder_has_no_captions(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(IMAGE)
    source = sources.open_source(f"images:{tmp_path}", split="train")
    assert captions.read_captions(source, [0]) == [[]]


def test_error_reports_the_damaged_record(directory, tmp_path):
    source = sources.open_source(str(directory), split="train")
    shard = tmp_path / "shard"
    data = bytearray(open(source.files[0], "rb").read())
    offset = int(source.index[3, 1])
    data[offset : offset + 2] = b"\n\xff"
    shard.write_bytes(data)
    source.files[0] = str(shard)
    with raises(UserError, shard, "record 3", "mmjax validate"):
        captions.read_captions(source, range(10))
