"""Tests of TFRecord shards and indexes: TensorFlow compatibility and detection of damage."""

import os
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data.storage import tfrecord
from mmjax.errors import UserError
from tests.messages import raises

PAYLOADS = [b"first", b"", b"x" * 3000, os.urandom(517)]


@pytest.fixture
def shard(tmp_path):
    path = str(tmp_path / "train-00000-of-00001.tfrecord")
    assert tfrecord.write_shard(path, PAYLOADS) == len(PAYLOADS)
    return path


def flip_bit(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def make_older(path, than):
    stamp = os.stat(than).st_mtime - 100
    os.utime(path, (stamp, stamp))


@settings(max_examples=25, deadline=None)
@given(payloads=st.lists(st.binary(max_size=300), max_size=12))
def test_shards_are_identical_to_those_of_tensorflow(payloads, tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    ours, theirs = str(directory / "ours"), str(directory / "theirs")
    tfrecord.write_shard(ours, payloads)
    with tf.io.TFRecordWriter(theirs) as writer:
        for payload in payloads:
            writer.write(payload)
    with open(ours, "rb") as a, open(theirs, "rb") as b:
        assert a.read() == b.read()
    assert list(tf.data.TFRecordDataset(ours).as_numpy_iterator()) == payloads
    index = tfrecord.read_index(ours)
    np.testing.assert_array_equal(index, tfrecord.build_index(theirs))
    assert index.dtype == np.int64 and index.shape == (len(payloads), 2)
    assert [tfrecord.read_record(theirs, *entry) for entry in index.tolist()] == payloads
    assert list(tfrecord.iterate(theirs)) == payloads
    assert tfrecord.verify(ours) == []


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_any_flipped_bit_is_detected(position, bit, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("flip") / "shard")
    tfrecord.write_shard(path, [b"abc", b"defg" * 9, b""])
    position %= os.path.getsize(path)
    with open(path, "r+b") as file:
        data = bytearray(file.read())
        data[position] ^= 1 << bit
        file.seek(0)
        file.write(data)
    owner = 0 if position < 19 else 1 if position < 71 else 2
    (problem,) = tfrecord.verify(path)
    assert problem.record == owner and problem.path == path


@settings(max_examples=40, deadline=None)
@given(keep=st.integers(0, 10**9))
def test_any_truncation_is_detected(keep, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("cut") / "shard")
    tfrecord.write_shard(path, [b"abc", b"defg" * 9, b""])
    ends = [0, 19, 71, 87]
    keep %= os.path.getsize(path)
    os.truncate(path, keep)
    if keep in ends:  # Only the index reveals a cut between two records.
        with raises(UserError, f"{path}.idx", ends[-1], keep, "mmjax index"):
            tfrecord.read_index(path)
        return
    whole = sum(end <= keep for end in ends) - 1
    with raises(tfrecord.CorruptRecord, path, f"record {whole}", "truncated", f"{keep} bytes"):
        tfrecord.read_index(path)
    os.remove(tfrecord.index_path(path))
    with raises(tfrecord.CorruptRecord, path, f"record {whole}", "truncated"):
        tfrecord.build_index(path)
    assert [problem.record for problem in tfrecord.verify(path)] == [whole]


def test_read_record_error_names_shard_and_record(shard):
    (offset, length) = tfrecord.read_index(shard)[2].tolist()
    flip_bit(shard, offset + 7)
    with raises(tfrecord.CorruptRecord, shard, "record 2", "CRC", offset) as info:
        tfrecord.read_record(shard, offset, length, record=2)
    assert (info.value.path, info.value.record) == (shard, 2)
    assert len(tfrecord.read_record(shard, offset, length, check_crc=False)) == length
    os.truncate(shard, offset + 5)
    sizes = (offset + 5, offset + length + tfrecord.FOOTER)
    with raises(tfrecord.CorruptRecord, shard, "record 2", "truncated", *sizes):
        tfrecord.read_record(shard, offset, length, record=2)


def test_verify_continues_after_a_corrupt_payload(shard):
    index = tfrecord.read_index(shard)
    flip_bit(shard, index[0, 0])
    flip_bit(shard, index[3, 0] + 100)
    os.truncate(shard, os.path.getsize(shard) - 1)
    assert [problem.record for problem in tfrecord.verify(shard)] == [0, 3]


def test_compressed_files_are_rejected(tmp_path):
    path = tmp_path / "x-00000-of-00001"
    path.write_bytes(b"\x1f\x8b" + os.urandom(200))
    with raises(tfrecord.CorruptRecord, path, "record 0", "CRC", "compressed", "TFRecord"):
        tfrecord.build_index(path)


def test_build_index_reads_only_headers(tmp_path):
    """Indexes a sparse shard of 2 TiB, whose payload cannot be read in reasonable time."""
    path = tmp_path / "huge"
    length = 2**41
    header = struct.pack("<Q", length)
    with open(path, "wb") as file:
        file.write(header + struct.pack("<I", tfrecord.masked_crc(header)))
        file.truncate(12 + length + 4)
    assert tfrecord.build_index(path).tolist() == [[12, length]]


def test_outdated_index_of_a_replaced_shard_is_rejected(shard):
    replacement = shard + ".new"
    with tf.io.TFRecordWriter(replacement) as writer:  # same size, other records
        writer.write(b"x" * (os.path.getsize(shard) - 16))
    os.replace(replacement, shard)
    make_older(tfrecord.index_path(shard), than=shard)
    with raises(UserError, tfrecord.index_path(shard), f"mmjax index {os.path.dirname(shard)}"):
        tfrecord.read_index(shard)


def test_correct_index_with_an_older_date_is_accepted(shard):
    expected = tfrecord.read_index(shard)
    make_older(tfrecord.index_path(shard), than=shard)
    np.testing.assert_array_equal(tfrecord.read_index(shard), expected)


def test_index_of_a_shard_that_grew_is_rejected(shard):
    indexed = os.path.getsize(shard)
    with open(shard, "ab") as file, tf.io.TFRecordWriter(shard + ".more") as writer:
        writer.write(b"appended")
        writer.flush()
        with open(shard + ".more", "rb") as more:
            file.write(more.read())
    with raises(UserError, tfrecord.index_path(shard), indexed, os.path.getsize(shard)):
        tfrecord.read_index(shard)


@pytest.mark.parametrize("damage", [lambda d: d[:-3], lambda d: b"PK" + d[2:], lambda d: b""])
def test_damaged_index_is_rejected(shard, damage):
    path = tfrecord.index_path(shard)
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(damage(data))
    with raises(UserError, path, f"mmjax index {os.path.dirname(shard)}"):
        tfrecord.read_index(shard)


def test_any_flipped_bit_of_an_index_is_detected(shard):
    """A damaged length would otherwise allocate up to 2**63 bytes."""
    path = tfrecord.index_path(shard)
    with open(path, "rb") as file:
        data = file.read()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with open(path, "wb") as file:
            file.write(damaged)
        with raises(UserError, path, "mmjax index"):
            tfrecord.read_index(shard)


def test_missing_index_is_rebuilt_and_can_be_saved(shard):
    expected = tfrecord.read_index(shard)
    os.remove(tfrecord.index_path(shard))
    np.testing.assert_array_equal(tfrecord.read_index(shard), expected)
    assert not os.path.exists(tfrecord.index_path(shard))
    tfrecord.build_index(shard, save=True)
    assert os.path.exists(tfrecord.index_path(shard))
    np.testing.assert_array_equal(tfrecord.read_index(shard), expected)


def test_failed_writer_keeps_the_old_shard_and_leaves_no_temporary_file(shard, tmp_path):
    with pytest.raises(KeyError), tfrecord.ShardWriter(shard) as writer:
        writer.write(b"half")
        raise KeyError
    assert list(tfrecord.iterate(shard)) == PAYLOADS
    assert sorted(os.listdir(tmp_path)) == sorted(
        os.path.basename(name) for name in (shard, tfrecord.index_path(shard))
    )


def test_rewriting_a_shard_updates_its_index(shard):
    tfrecord.write_shard(shard, [b"only"])
    assert [
        tfrecord.read_record(shard, *entry) for entry in tfrecord.read_index(shard).tolist()
    ] == [b"only"]


def test_directories_in_place_of_files_are_named(shard):
    os.remove(tfrecord.index_path(shard))
    os.mkdir(tfrecord.index_path(shard))
    with raises(UserError, tfrecord.index_path(shard), "mmjax index"):
        tfrecord.read_index(shard)
    os.remove(shard)
    os.mkdir(shard)
    with raises(tfrecord.CorruptRecord, shard, "directory"):
        tfrecord.build_index(shard)
    (problem,) = tfrecord.verify(shard)
    assert problem.path == shard
