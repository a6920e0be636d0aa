"""Tests of records whose images are replaced by references to byte ranges of the shard."""

import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st

from mmjax.data.storage import lazy_frames, schema, tfrecord
from mmjax.data.storage.dataset import DatasetDir
from tests.data import toy_clips as toy

KEY = schema.FRAMES[0]


def images(proto):
    return [f.bytes_list.value[0] for f in proto.feature_lists.feature_list[KEY].feature]


def shorten(payload, **location):
    short = lazy_frames.shorten(memoryview(payload), KEY, **({"file": 0, "offset": 0} | location))
    return tf.train.SequenceExample.FromString(short)


@given(st.lists(st.binary(max_size=40_000), max_size=5), st.binary(max_size=300), st.booleans())
@example([b"", b"x" * 127, b"y" * 128, b"z" * 2**21], b"more", True)
def test_references_locate_images_and_other_features_are_kept(frames, other, before):
    proto = tf.train.SequenceExample()
    proto.context.feature["a"].bytes_list.value.append(other)
    lists = proto.feature_lists.feature_list
    lists["a" if before else "z"].feature.add().float_list.value.extend([0.5] * len(other))
    lists["touch/encoded"].feature.add().bytes_list.value.append(other)
    lists[KEY].SetInParent()
    for frame in frames:
        lists[KEY].feature.add().bytes_list.value.append(frame)
    payload = proto.SerializeToString()
    short = shorten(payload, file=3, offset=1000)
    parsed = [lazy_frames.parse(value) for value in images(short)]
    assert [file for file, _, _ in parsed] == [3] * len(frames)
    assert [payload[at - 1000 : at - 1000 + size] for _, at, size in parsed] == frames
    for feature, frame in zip(short.feature_lists.feature_list[KEY].feature, frames, strict=True):
        feature.bytes_list.value[0] = frame
    assert short == proto


@given(st.binary(max_size=60))
def test_shortening_does_not_change_how_other_bytes_parse(payload):
    def parsed(data):
        try:
            return tf.train.SequenceExample.FromString(data)
        except Exception:  # protobuf's DecodeError: its module differs between versions.
            return None

    short = lazy_frames.shorten(memoryview(payload), KEY, file=0, offset=0)
    assert parsed(short) == parsed(payload)


def test_unsupported_layouts_are_returned_unchanged():
    """Several images in a feature, another type, images in the context, truncated records."""
    odd = [tf.train.SequenceExample() for _ in range(4)]
    odd[0].feature_lists.feature_list[KEY].feature.add().bytes_list.value.extend([b"a", b"b"])
    odd[1].feature_lists.feature_list[KEY].feature.add().int64_list.value.append(5)
    odd[2].context.feature[KEY].bytes_list.value.append(b"a")
    odd[3].feature_lists.feature_list[KEY].feature.add()
    whole = schema.encode(toy.example(1))
    for payload in [*(proto.SerializeToString() for proto in odd), whole[:-50], whole[:100]]:
        assert lazy_frames.shorten(memoryview(payload), KEY, file=0, offset=0) == payload


def test_a_split_resolves_its_references(tmp_path):
    split = DatasetDir(toy.build(tmp_path, 7, shards=2)).split("train")
    for record in (0, 2, 6):
        values = images(tf.train.SequenceExample.FromString(split.read_without(KEY, record)))
        frames = schema.decode(split.read(record)).frames
        selected = [values[5], b"no reference", values[0]]
        assert split.resolve(selected) == [frames[5], b"no reference", frames[0]]


def test_buffers_are_reused_and_never_shared(tmp_path):
    payloads = [bytes([n]) * 1000 for n in range(3)]
    path = tmp_path / "x-00000-of-00001.tfrecord"
    tfrecord.write_shard(path, payloads)
    index = tfrecord.read_index(path).tolist()
    with (
        tfrecord.borrowed_record(path, *index[0]) as a,
        tfrecord.borrowed_record(path, *index[1]) as b,
    ):
        assert (bytes(a), bytes(b)) == (payloads[0], payloads[1])
    count = len(tfrecord._buffers)
    assert [tfrecord.read_record(path, *entry) for entry in index] == payloads
    assert len(tfrecord._buffers) == count
