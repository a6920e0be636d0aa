"""Batches as a function of (seed, step): resume, hosts, mixtures, evaluation, bad input."""

import itertools
import os

import jax
import numpy as np
import pytest
import tensorflow as tf

from mmjax.data import loader, schema
from mmjax.errors import UserError
from tests.data import toy_clips as toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy.build(tmp_path_factory.mktemp("toy"), 23)


def make(folder, batch_size=6, seed=0, hosts=None, **changes):
    index, count = hosts or (0, 1)
    return loader.make_train_data(
        toy.section(folder, **changes),
        batch_size=batch_size,
        seed=seed,
        process_index=index,
        process_count=count,
    )


def batches(data, first=0, number=1):
    return list(itertools.islice(data.iterate(first), number))


def evaluated(folder, batch_size=4, split="train", **changes):
    hosts = changes.pop("hosts", (0, 1))
    return loader.make_eval_data(
        toy.section(folder, **changes),
        split=split,
        batch_size=batch_size,
        process_index=hosts[0],
        process_count=hosts[1],
    )


def test_batches_are_what_spec_says(folder):
    data = make(folder)
    (batch,) = batches(data)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in data.spec.items()
    }
    assert batch["video"].dtype == np.uint8 and batch["video"].shape == (6, 4, 16, 16, 3)
    assert batch["audio"].dtype == np.float32 and batch["text"].shape == (6, 2, 4)
    assert data.num_examples == 23 and data.num_classes == 5 and data.tokenizer.vocab_size == 10


@pytest.mark.parametrize("read", ["pread", "tf"])
def test_any_step_can_be_started_at(folder, read):
    whole = batches(make(folder, read=read), number=9)  # more than two epochs
    for first in (3, 7):
        tail = batches(make(folder, read=read), first, 9 - first)
        assert all(toy.same(a, b) for a, b in zip(whole[first:], tail, strict=True))
    (far,) = batches(make(folder, read=read), 10**9)
    assert sorted(far) == sorted(whole[0])


def test_ways_of_reading_threads_and_policies_do_not_change_batches(folder):
    want = batches(make(folder), number=3)
    for changes in (dict(read="tf"), dict(threads=1), dict(corrupt="skip")):
        got = batches(make(folder, **changes), number=3)
        assert all(toy.same(a, b) for a, b in zip(want, got, strict=True)), changes


@pytest.fixture
def large(monkeypatch):
    """Treats the toy records as large ones, of which only the chosen frames are read."""
    monkeypatch.setattr(loader._Data, "_records_per_read", lambda data: 1)


def test_reading_chosen_frames_only_does_not_change_batches(folder, tmp_path, large):
    cases = [
        (folder, {}),
        (folder, dict(corrupt="skip")),
        (folder, dict(video=dict(num_frames=30, size=16))),  # goes round
        (toy.build(tmp_path, 6, payload=_without_frames), {}),
    ]
    for where, changes in cases:
        data, plain = make(where, **changes), make(where, **changes)
        assert data._without == schema.FRAMES[0]
        plain._without = None
        for a, b in zip(batches(data, number=3), batches(plain, number=3), strict=True):
            assert toy.same(a, b), changes
    data, plain = (evaluated(folder, video=dict(num_frames=4, size=16)) for _ in range(2))
    plain._without = None
    assert all(toy.same(a, b) for a, b in zip(data.iterate(), plain.iterate(), strict=True))


def _without_frames(number):
    return schema.encode(toy.example(number, frames=toy.example(number).frames * (number % 2)))


def test_own_functions_of_the_first_phases_find_all_frames(folder, large):
    data = make(folder)
    seen = lambda f: f | {"bytes": tf.strings.length(f["_frames"])}  # noqa: E731
    data.pipeline.add("parse", "lengths", seen)
    (batch,) = batches(data)
    for record, lengths in zip(batch["example_id"], batch["bytes"], strict=True):
        assert lengths.tolist() == [len(frame) for frame in toy.example(record).frames]


def test_bad_input_is_named_when_only_chosen_frames_are_read(tmp_path, large):
    folder = toy.build(tmp_path, 9, shards=1)
    _flip_byte(folder, 4)
    with pytest.raises(UserError, match="record 4: the CRC of the payload"):
        batches(make(folder, batch_size=9))
    assert 4 not in batches(make(folder, batch_size=8, corrupt="skip"))[0]["example_id"]


def test_hosts_together_have_the_global_batch(folder):
    whole = batches(make(folder), number=5)
    parts = [batches(make(folder, hosts=(p, 3)), number=5) for p in range(3)]
    for batch, *rows in zip(whole, *parts, strict=True):
        joined = {k: np.concatenate([row[k] for row in rows]) for k in batch}
        assert toy.same(batch, joined)


def test_an_epoch_has_every_record_once_and_ids_are_known_before(folder):
    data = make(folder, batch_size=23)
    for step, batch in enumerate(batches(data, number=3)):
        assert sorted(batch["example_id"]) == list(range(23))
        assert np.array_equal(data.batch_ids(step)["record"], batch["example_id"])
        labels = np.array(batch["example_id"]) % 5
        assert np.array_equal(batch["label"], labels)


def test_the_same_record_is_cropped_anew_each_epoch_and_seed(folder):
    def clip(seed, step):
        data = make(folder, batch_size=23, seed=seed, video=dict(num_frames=4, size=16))
        (batch,) = batches(data, step)
        return batch["video"][list(batch["example_id"]).index(4)]

    assert np.array_equal(clip(0, 0), clip(0, 0))
    assert not np.array_equal(clip(0, 0), clip(0, 1))
    assert not np.array_equal(clip(0, 0), clip(1, 0))


def test_mixtures_say_their_source_and_keep_their_weights(folder, tmp_path):
    other = toy.build(tmp_path, 3, shards=1, payload=lambda n: schema.encode(_silent(n)))
    data = make((folder, other), batch_size=50, weights=(0.8, 0.2))
    found = {k: np.concatenate([b[k] for b in batches(data, number=4)]) for k in data.spec}
    assert 20 < (found["source"] == 1).sum() < 60
    assert np.array_equal(found["audio_mask"], (found["source"] == 0).astype(np.float32))
    assert set(found["example_id"][found["source"] == 1]) == {0, 1, 2}
    ids = data.batch_ids(0)
    assert np.array_equal(ids["source"], found["source"][:50])
    tail = batches(make((folder, other), batch_size=50, weights=(0.8, 0.2)), 3)
    assert np.array_equal(tail[0]["video"], found["video"][150:])


def _silent(number):
    return toy.example(number, waveform=None)


@pytest.mark.parametrize("batch_size, hosts", [(4, 1), (23, 1), (64, 2), (12, 3)])
def test_evaluation_counts_every_example_once(folder, batch_size, hosts):
    parts = [evaluated(folder, batch_size, hosts=(p, hosts)) for p in range(hosts)]
    found = [list(part.iterate()) for part in parts]
    assert {len(f) for f in found} == {-(-23 // batch_size)} == {parts[0].num_batches}
    ids = []
    for batch in itertools.chain(*found):
        assert {k: v.shape for k, v in batch.items()} == {
            k: v.shape for k, v in parts[0].spec.items()
        }
        ids += batch["example_id"][batch["mask"] == 1].tolist()
        assert not batch["video"][batch["mask"] == 0].any()
    assert sorted(ids) == list(range(23))


def test_evaluation_is_the_same_each_time_and_can_be_shortened(folder):
    first, second = (list(evaluated(folder).iterate()) for _ in range(2))
    assert all(toy.same(a, b) for a, b in zip(first, second, strict=True))
    short = loader.make_eval_data(
        toy.section(folder), split="train", batch_size=4, max_examples=5, num_clips=2
    )
    masks = np.concatenate([batch["mask"] for batch in short.iterate()])
    assert masks.tolist() == [1] * 5 + [0] * 3 and short.num_examples == 5
    assert short.spec["video"].shape == (4, 2, 4, 16, 16, 3)


def test_evaluation_has_labels_without_a_section_for_them(folder):
    data = evaluated(folder, label=None)
    batch = next(data.iterate())
    assert np.array_equal(batch["label"], batch["example_id"] % 5) and data.num_classes == 5


def test_a_limit_takes_records_at_even_distances(folder):
    data = make(folder, batch_size=7, limit=7)
    assert data.num_examples == 7
    first, second = (np.sort(batch["example_id"]) for batch in batches(data, number=2))
    assert first.tolist() == second.tolist() == [23 * n // 7 for n in range(7)]
    assert np.array_equal(np.sort(data.batch_ids(1)["record"]), first)
    assert make(folder, batch_size=7, limit=100).num_examples == 23


# Bad records.


def _bad(folder, bad, payload, count=9):
    return toy.build(
        folder,
        count,
        shards=1,
        payload=lambda n: payload(n) if n in bad else schema.encode(toy.example(n)),
    )


@pytest.mark.parametrize(
    "payload, message",
    [
        (toy.with_broken_frame, "Invalid JPEG data"),
        (toy.without_samples, "zero-length audio"),
        (toy.of_class_7, r"class number out of range: 7 is not in \[0, 5\)"),
        (lambda n: b"garbage", "Invalid protocol message"),
    ],
)
def test_a_bad_record_is_named(tmp_path, payload, message):
    data = make(_bad(tmp_path, {5}, payload), batch_size=9)
    with pytest.raises(UserError, match=message) as caught:
        batches(data)
    assert "train-00000-of-00001.tfrecord, record 5" in str(caught.value)
    assert "data.corrupt='skip'" in str(caught.value)


def _flip_byte(folder, record):
    """Damages one byte of a record's payload, so that only its CRC shows it."""
    from mmjax.data import records

    path = os.path.join(folder, "train-00000-of-00001.tfrecord")
    offset, length = records.read_index(path)[record]
    times = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(offset + length - 5)
        byte = file.read(1)
        file.seek(offset + length - 5)
        file.write(bytes([byte[0] ^ 255]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_wrong_crc_is_named(tmp_path):
    folder = toy.build(tmp_path, 9, shards=1)
    _flip_byte(folder, 4)
    with pytest.raises(UserError, match=r"record 4: the CRC of the payload"):
        batches(make(folder, batch_size=9))


def test_a_wrong_crc_is_named_when_it_is_read_before_its_batch(tmp_path):
    folder = toy.build(tmp_path, 9, shards=1)
    _flip_byte(folder, 4)
    for data in (make(folder, batch_size=1), evaluated(folder, batch_size=1)):
        with pytest.raises(UserError, match="record 4: the CRC of the payload"):
            list(itertools.islice(data.iterate(), 9))


def test_a_truncated_shard_is_named(tmp_path):
    folder = toy.build(tmp_path, 9, shards=1)
    path = os.path.join(folder, "train-00000-of-00001.tfrecord")
    os.truncate(path, os.path.getsize(path) - 100)
    with pytest.raises(UserError, match="train-00000-of-00001.tfrecord.*truncated"):
        make(folder)


@pytest.mark.parametrize("read", ["pread", "tf"])
def test_skipping_in_training_takes_the_next_record(tmp_path, read, caplog):
    folder = _bad(tmp_path, {3, 4, 8}, toy.with_broken_frame)
    data = make(folder, batch_size=9, corrupt="skip", read=read)
    found = batches(data, number=2)
    wanted = {3: 5, 4: 5, 8: 0}
    for step, batch in enumerate(found):
        records = data.batch_ids(step)["record"].tolist()
        assert batch["example_id"].tolist() == [wanted.get(r, r) for r in records]
        assert set(batch) == set(data.spec)
    assert data.corrupt == 3
    assert "record 3" in caplog.text and "record 8" in caplog.text and "JPEG" in caplog.text
    again = batches(make(folder, batch_size=9, corrupt="skip", read=read), 1)
    assert toy.same(again[0], found[1])


def test_skipping_covers_wrong_crcs(tmp_path):
    folder = toy.build(tmp_path, 9, shards=1)
    _flip_byte(folder, 4)
    data = make(folder, batch_size=9, corrupt="skip")
    (batch,) = batches(data)
    assert 4 not in batch["example_id"] and data.corrupt == 1


def test_skipping_in_evaluation_masks(tmp_path):
    folder = _bad(tmp_path, {3, 8}, toy.with_broken_frame)
    data = evaluated(folder, corrupt="skip")
    found = list(data.iterate())
    mask = np.concatenate([batch["mask"] for batch in found])
    assert mask.tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert np.concatenate([b["example_id"] for b in found])[:9].tolist() == list(range(9))
    assert data.corrupt == 2


def test_too_many_corrupt_records_end_the_run(tmp_path):
    folder = _bad(tmp_path, {1, 3, 5}, toy.with_broken_frame)
    data = make(folder, batch_size=9, corrupt="skip", max_corrupt=2)
    with pytest.raises(UserError, match="data.max_corrupt=2"):
        batches(data)
    hopeless = _bad(tmp_path / "all", set(range(30)), toy.with_broken_frame, count=30)
    with pytest.raises(UserError, match="16 corrupt records in a row"):
        batches(make(hopeless, batch_size=2, corrupt="skip"))


# Bad options.


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(vidio={}), r"Unknown config key data\.vidio\. Did you mean data\.video\?"),
        (
            dict(video=dict(num_frame=3)),
            r"data\.video\.num_frame\. Did you mean data\.video\.num_fr",
        ),
        (dict(video=dict(num_frames=3.5)), r"data\.video\.num_frames must be int, not 3\.5"),
        (dict(video=dict(flip=1)), r"data\.video\.flip must be bool, not 1"),
        (dict(video=3), r"data\.video must be a section \(dict\) or None, not 3"),
        (dict(video=dict(size=32, min_resize=16)), "crop would not fit"),
        (dict(video=dict(crop="vg")), "Did you mean 'vgg'"),
        (dict(video=dict(area=(1, 0.5))), r"data\.video\.area must be"),
        (dict(audio=dict(num_samples=0)), "at least 1"),
        (dict(train=7), r"data\.train must be str or tuple"),
        (dict(weights=("a",)), r"data\.weights\[0\] must be float"),
        (dict(weights=(1, 2)), "must be 1 positive numbers"),
        (dict(corrupt="ignore"), "Unknown data.corrupt"),
        (dict(read="mmap"), "Unknown data.read"),
        (dict(limit=-1), r"data\.limit must be at least 0"),
        (dict(label=dict(num_classes=2)), r"not in \[0, 2\)"),
    ],
)
def test_bad_options_are_named(folder, changes, message):
    with pytest.raises(UserError, match=message):
        batches(make(folder, **changes))


def test_nothing_asked_for_and_unknown_classes(folder, tmp_path):
    with pytest.raises(UserError, match="asks for no modality"):
        make(folder, video=None, audio=None, text=None)
    unknown = toy.build(tmp_path, 2, shards=1, num_classes=0)
    with pytest.raises(UserError, match="num_classes is not set.*toy unknown"):
        make(unknown)


def test_a_modality_that_no_example_has_is_named(folder, tmp_path):
    counted = dict(examples=2, examples_with=dict(video=2, text=1, label=2))
    there = dict(modalities=("video", "text", "label"), statistics=counted)
    silent = toy.build(tmp_path, 2, shards=1, **there)
    with pytest.raises(UserError, match=r"data\.audio .*no example has it \(toy: video, text"):
        make(silent)
    assert "audio" not in make(silent, audio=None).spec
    assert make((silent, folder)).spec  # another source has it


def test_batch_must_divide_among_hosts(folder):
    with pytest.raises(UserError, match="batch_size=7 must be a positive multiple"):
        make(folder, batch_size=7, hosts=(0, 2))


def test_functions_of_a_phase_can_be_changed(folder):
    data = make(folder)
    data.pipeline.remove("preprocess", "flip")
    data.pipeline.add("preprocess", "dark", lambda f: f | {"video": f["video"] // 2})
    (batch,) = batches(data)
    assert batch["video"].max() <= 127 and "dark" in data.pipeline.names()["preprocess"]


def test_host_and_device_mirror_the_same_clips(tmp_path):
    from mmjax.tasks.inputs import Inputs

    ramp = np.tile(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], (32, 1, 3))
    frames = [schema.encode_jpeg(ramp)] * 4
    folder = toy.build(tmp_path, payload=lambda n: schema.encode(toy.example(n, frames=frames)))

    def mirrored(where):
        data = make(folder, batch_size=23, video=dict(num_frames=4, size=16, flip_on=where))
        (batch,) = batches(data)
        inputs = Inputs()(batch, jax.random.key(0), train=True)
        return batch, np.asarray(inputs["video"])

    (batch, device), (plain, host) = mirrored("device"), mirrored("host")
    assert set(batch["video_flip"]) == {True, False} and "video_flip" not in plain
    assert np.array_equal(device, host)
    assert not np.array_equal(batch["video"], plain["video"])


def test_image_folders_train_too(tmp_path):
    import PIL.Image

    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        PIL.Image.new("RGB", (20, 30), (200 * (label == "b"),) * 3).save(tmp_path / label / "1.png")
    section = dict(train=f"images:{tmp_path}", video=dict(num_frames=1, size=8), label={})
    data = loader.make_train_data(section, batch_size=4, seed=0)
    (batch,) = batches(data)
    assert np.array_equal(batch["video"][:, 0, 0, 0, 0], batch["label"] * 200)
