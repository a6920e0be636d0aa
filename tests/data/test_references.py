"""Records whose pictures are references: what is left, what they refer to, what is left alone."""

import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st

from mmjax.data import records, references, schema
from mmjax.data.dataset import DatasetFolder
from tests.data import toy_clips as toy

KEY = schema.FRAMES[0]


def pictures(proto):
    return [f.bytes_list.value[0] for f in proto.feature_lists.feature_list[KEY].feature]


def shorten(payload, **where):
    short = references.shorten(memoryview(payload), KEY, **({"file": 0, "offset": 0} | where))
    return tf.train.SequenceExample.FromString(short)


@given(st.lists(st.binary(max_size=40_000), max_size=5), st.binary(max_size=300), st.booleans())
@example([b"", b"x" * 127, b"y" * 128, b"z" * 2**21], b"more", True)
def test_references_say_where_pictures_are_and_the_rest_is_kept(frames, other, before):
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
    found = [references.parse(value) for value in pictures(short)]
    assert [file for file, _, _ in found] == [3] * len(frames)
    assert [payload[at - 1000 : at - 1000 + size] for _, at, size in found] == frames
    for feature, frame in zip(short.feature_lists.feature_list[KEY].feature, frames, strict=True):
        feature.bytes_list.value[0] = frame
    assert short == proto


@given(st.binary(max_size=60))
def test_any_bytes_mean_the_same_afterwards(payload):
    def meaning(data):
        try:
            return tf.train.SequenceExample.FromString(data)
        except Exception:  # protobuf's DecodeError, whose module differs between versions
            return None

    short = references.shorten(memoryview(payload), KEY, file=0, offset=0)
    assert meaning(short) == meaning(payload)


def test_other_layouts_are_left_alone():
    """Several pictures in a feature, another type, pictures in the context, cut-off records."""
    odd = [tf.train.SequenceExample() for _ in range(4)]
    odd[0].feature_lists.feature_list[KEY].feature.add().bytes_list.value.extend([b"a", b"b"])
    odd[1].feature_lists.feature_list[KEY].feature.add().int64_list.value.append(5)
    odd[2].context.feature[KEY].bytes_list.value.append(b"a")
    odd[3].feature_lists.feature_list[KEY].feature.add()
    whole = schema.encode(toy.example(1))
    for payload in [*(proto.SerializeToString() for proto in odd), whole[:-50], whole[:100]]:
        assert references.shorten(memoryview(payload), KEY, file=0, offset=0) == payload


def test_a_split_resolves_its_references(tmp_path):
    split = DatasetFolder(toy.build(tmp_path, 7, shards=2)).split("train")
    for record in (0, 2, 6):
        values = pictures(tf.train.SequenceExample.FromString(split.read_without(KEY, record)))
        frames = schema.decode(split.read(record)).frames
        picked = [values[5], b"no reference", values[0]]
        assert split.resolve(picked) == [frames[5], b"no reference", frames[0]]


def test_buffers_are_used_again_and_never_shared(tmp_path):
    payloads = [bytes([n]) * 1000 for n in range(3)]
    path = tmp_path / "x-00000-of-00001.tfrecord"
    records.write_shard(path, payloads)
    rows = records.read_index(path).tolist()
    with records.borrowed_record(path, *rows[0]) as a, records.borrowed_record(path, *rows[1]) as b:
        assert (bytes(a), bytes(b)) == (payloads[0], payloads[1])
    held = len(records._buffers)
    assert [records.read_record(path, *row) for row in rows] == payloads
    assert len(records._buffers) == held
