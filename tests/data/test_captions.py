"""Captions without pictures: the same as those of whole records, whatever the records look like."""

import os

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data import captions, records, schema, sources
from mmjax.errors import UserError
from tests.data import toy_clips as toy

PICTURE = schema.encode_jpeg(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
TEXTS = [["a red cat", "Übergröße 漢字"], [], ["x" * 5000], ["one more"], ["many words " * 40]]


def example(number):
    return schema.Example(
        frames=[PICTURE] * (number % 3), captions=TEXTS[number % 5], filename=f"clip {number}.jpg"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy")
    return toy.build(path, 1200, payload=lambda n: schema.encode(example(n)))


def test_as_in_whole_records(folder):
    source = sources.open_source(str(folder), split="train")
    whole = [schema.decode(source.fetch(n)) for n in range(source.num_examples)]
    found = list(captions.read_contexts(source, range(source.num_examples)))
    assert found == [(each.captions, each.filename) for each in whole]
    assert {len(texts) for texts, _ in found} == {0, 1, 2}
    some = [7, 1100, 3]
    assert captions.read_captions(source, some) == [whole[n].captions for n in some]
    assert captions.read_captions(source, []) == []


def test_little_is_read(folder, monkeypatch):
    source = sources.open_source(str(folder), split="train")
    with_pictures = [n for n in range(1000) if n % 3 and n % 5 in (0, 3)]
    read, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *args: read.append(args[1]) or pread(*args))
    captions.read_captions(source, with_pictures)
    assert len(read) == len(with_pictures) and max(read) <= 1024 < len(PICTURE)


def test_records_of_other_writers(tmp_path):
    """A tf.train.Example; captions among the feature lists, as DMVR's writers may put them."""
    plain = tf.train.Example()
    plain.features.feature["caption/string"].bytes_list.value.append(b"in an Example")
    among = tf.train.SequenceExample()
    among.context.feature["video/filename"].bytes_list.value.append(b"a.mp4")
    feature = among.feature_lists.feature_list["caption/string"].feature
    feature.add().bytes_list.value.append(b"in a list")
    payloads = [plain.SerializeToString(), among.SerializeToString()]
    records.write_shard(tmp_path / "train-00000-of-00001.tfrecord", payloads)
    source = sources.open_source(str(tmp_path), split="train")
    found = list(captions.read_contexts(source, range(2)))
    assert found == [(["in an Example"], ""), (["in a list"], "a.mp4")]


def test_sources_that_are_no_files(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(PICTURE)
    source = sources.open_source(f"images:{tmp_path}", split="train")
    assert captions.read_captions(source, [0]) == [[]]


def test_a_damaged_record_is_named(folder, tmp_path):
    source = sources.open_source(str(folder), split="train")
    shard = tmp_path / "shard"
    data = bytearray(open(source.files[0], "rb").read())
    at = int(source.index[3, 1])
    data[at : at + 2] = b"\n\xff"
    shard.write_bytes(data)
    source.files[0] = str(shard)
    with pytest.raises(UserError, match=r"record 3 cannot be read.*mmjax validate"):
        captions.read_captions(source, range(10))
