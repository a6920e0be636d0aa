"""The data loader: batches as a function of (seed, step), hosts, mixtures, evaluation, errors."""

import itertools
import os

import jax
import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.pipeline import loader
from mmjax.data.pipeline.examples import Examples
from mmjax.data.storage import image_files, schema
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.messages import assert_mentions, raises

# Pipelines of one modality, for tests that are not about the others: graphs are built faster.
VIDEO = dict(audio=None, text=None)
AUDIO = dict(video=None, text=None)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return toy.build(tmp_path_factory.mktemp("toy"), 23)


def make(directory, batch_size=6, seed=0, hosts=None, **changes):
    index, count = hosts or (0, 1)
    return loader.make_train_data(
        toy.section(directory, **changes),
        batch_size=batch_size,
        seed=seed,
        process_index=index,
        process_count=count,
    )


def batches(data, first=0, number=1):
    return list(itertools.islice(data.iterate(first), number))


def evaluated(directory, batch_size=4, split="train", **changes):
    hosts = changes.pop("hosts", (0, 1))
    return loader.make_eval_data(
        toy.section(directory, **changes),
        split=split,
        batch_size=batch_size,
        process_index=hosts[0],
        process_count=hosts[1],
    )


def test_batches_have_the_shapes_and_dtypes_of_spec(directory):
    data = make(directory)
    (batch,) = batches(data)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in data.spec.items()
    }
    assert batch["video"].dtype == np.uint8 and batch["video"].shape == (6, 4, 16, 16, 3)
    assert batch["audio"].dtype == np.float32 and batch["text"].shape == (6, 2, 4)
    assert data.num_examples == 23 and data.num_classes == 5 and data.tokenizer.vocab_size == 10


@pytest.mark.parametrize("read", ["pread", "tf"])
def test_training_can_resume_at_any_step(directory, read):
    whole = batches(make(directory, read=read), number=9)  # more than two epochs
    data = make(directory, read=read)
    for first in (7, 3):
        tail = batches(data, first, 9 - first)
        assert all(toy.same(a, b) for a, b in zip(whole[first:], tail, strict=True))
    (far,) = batches(data, 10**9)
    assert sorted(far) == sorted(whole[0])
    assert np.array_equal(far["example_id"], data.batch_ids(10**9)["record"])
    assert np.array_equal(far["label"], far["example_id"] % 5)


def test_read_threads_and_corrupt_options_do_not_change_batches(directory):
    expected = batches(make(directory, **AUDIO), number=3)
    for changes in (dict(read="tf"), dict(threads=1), dict(corrupt="skip")):
        result = batches(make(directory, **AUDIO, **changes), number=3)
        assert all(toy.same(a, b) for a, b in zip(expected, result, strict=True)), changes


@pytest.fixture
def large(monkeypatch):
    """Treats the toy records as large, so that only the sampled frames are read."""
    monkeypatch.setattr(Examples, "records_per_read", 1)


def test_reading_only_sampled_frames_does_not_change_batches(directory, tmp_path, large):
    some_without_frames = toy.build(tmp_path, 6, payload=_without_frames)
    loops = dict(video=dict(num_frames=30, size=16))
    # Skipping corrupt records does not change the batches; see the test above.
    for dataset, changes, policies in [
        (directory, {}, ("fail", "skip")),
        (some_without_frames, loops, ("fail",)),
    ]:
        expected = _reading_all_frames(make(dataset, **VIDEO | changes))
        for corrupt in policies:
            data = make(dataset, corrupt=corrupt, **VIDEO | changes)
            assert data.examples.omitted_list == schema.FRAMES[0]
            for a, b in zip(batches(data, number=3), batches(expected, number=3), strict=True):
                assert toy.same(a, b), (changes, corrupt)
    data, expected = (
        evaluated(directory, **VIDEO),
        _reading_all_frames(evaluated(directory, **VIDEO)),
    )
    assert all(toy.same(a, b) for a, b in zip(data.iterate(), expected.iterate(), strict=True))


def _reading_all_frames(data):
    data.examples.omitted_list = None
    return data


def _without_frames(number):
    return schema.encode(toy.example(number, frames=toy.example(number).frames * (number % 2)))


def test_custom_functions_of_early_phases_see_all_frames(directory, large):
    data = make(directory, **VIDEO)
    add_lengths = lambda f: f | {"bytes": tf.strings.length(f["_frames"])}  # noqa: E731
    data.pipeline.add("parse", "lengths", add_lengths)
    (batch,) = batches(data)
    for record, lengths in zip(batch["example_id"], batch["bytes"], strict=True):
        assert lengths.tolist() == [len(frame) for frame in toy.example(record).frames]


def test_error_reports_a_corrupt_record_when_only_sampled_frames_are_read(tmp_path, large):
    directory = toy.build(tmp_path, 9, shards=1)
    _flip_byte(directory, 4)
    with raises(UserError, SHARD, "record 4", "CRC"):
        batches(make(directory, batch_size=9, **VIDEO))
    data = make(directory, batch_size=8, corrupt="skip", **VIDEO)
    assert 4 not in batches(data)[0]["example_id"]


def test_hosts_together_read_the_global_batch(directory):
    whole = batches(make(directory, **AUDIO), number=5)
    parts = [batches(make(directory, hosts=(p, 3), **AUDIO), number=5) for p in range(3)]
    for batch, *shards in zip(whole, *parts, strict=True):
        joined = {k: np.concatenate([shard[k] for shard in shards]) for k in batch}
        assert toy.same(batch, joined)


def test_an_epoch_has_every_record_once_and_batch_ids_predicts_the_order(directory):
    data = make(directory, batch_size=23, **AUDIO)
    for step, batch in enumerate(batches(data, number=3)):
        assert sorted(batch["example_id"]) == list(range(23))
        assert np.array_equal(data.batch_ids(step)["record"], batch["example_id"])
        labels = np.array(batch["example_id"]) % 5
        assert np.array_equal(batch["label"], labels)


def test_a_record_is_cropped_differently_in_each_epoch_and_for_each_seed(directory):
    def clips(seed, epochs):
        data = make(directory, batch_size=23, seed=seed, **VIDEO)
        return [b["video"][list(b["example_id"]).index(4)] for b in batches(data, number=epochs)]

    first, second = clips(seed=0, epochs=2)
    (again,), (other,) = clips(seed=0, epochs=1), clips(seed=1, epochs=1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_mixtures_report_the_source_and_follow_the_weights(directory, tmp_path):
    other = toy.build(tmp_path, 3, shards=1, payload=lambda n: schema.encode(_silent(n)))
    changes = dict(batch_size=50, weights=(0.8, 0.2), **AUDIO)
    data = make((directory, other), **changes)
    result = {k: np.concatenate([b[k] for b in batches(data, number=4)]) for k in data.spec}
    assert 20 < (result["source"] == 1).sum() < 60
    assert np.array_equal(result["audio_mask"], (result["source"] == 0).astype(np.float32))
    assert set(result["example_id"][result["source"] == 1]) == {0, 1, 2}
    ids = data.batch_ids(0)
    assert np.array_equal(ids["source"], result["source"][:50])
    tail = batches(make((directory, other), **changes), 3)
    assert np.array_equal(tail[0]["audio"], result["audio"][150:])


def _silent(number):
    return toy.example(number, waveform=None)


@pytest.mark.parametrize("batch_size, hosts", [(4, 1), (23, 1), (64, 2), (12, 3)])
def test_evaluation_counts_every_example_once(directory, batch_size, hosts):
    parts = [evaluated(directory, batch_size, hosts=(p, hosts), **AUDIO) for p in range(hosts)]
    per_host = [list(part.iterate()) for part in parts]
    assert {len(each) for each in per_host} == {-(-23 // batch_size)} == {parts[0].num_batches}
    ids = []
    for batch in itertools.chain(*per_host):
        assert {k: v.shape for k, v in batch.items()} == {
            k: v.shape for k, v in parts[0].spec.items()
        }
        ids += batch["example_id"][batch["mask"] == 1].tolist()
        has_audio = batch["audio"].any(axis=tuple(range(1, batch["audio"].ndim)))
        assert np.array_equal(has_audio, batch["mask"] == 1)
    assert sorted(ids) == list(range(23))


def test_evaluation_is_deterministic_and_max_examples_shortens_it(directory):
    first, second = (list(evaluated(directory, **VIDEO).iterate()) for _ in range(2))
    assert all(toy.same(a, b) for a, b in zip(first, second, strict=True))
    short = loader.make_eval_data(
        toy.section(directory, **VIDEO), split="train", batch_size=4, max_examples=5, num_clips=2
    )
    masks = np.concatenate([batch["mask"] for batch in short.iterate()])
    assert masks.tolist() == [1] * 5 + [0] * 3 and short.num_examples == 5
    assert short.spec["video"].shape == (4, 2, 4, 16, 16, 3)


def test_evaluation_has_labels_when_data_label_is_unset(directory):
    data = evaluated(directory, label=None, **AUDIO)
    batch = next(data.iterate())
    assert np.array_equal(batch["label"], batch["example_id"] % 5) and data.num_classes == 5


def test_limit_takes_evenly_spaced_records(directory):
    data = make(directory, batch_size=7, limit=7, **AUDIO)
    assert data.num_examples == 7
    first, second = (np.sort(batch["example_id"]) for batch in batches(data, number=2))
    assert first.tolist() == second.tolist() == [23 * n // 7 for n in range(7)]
    assert np.array_equal(np.sort(data.batch_ids(1)["record"]), first)
    assert make(directory, batch_size=7, limit=100).num_examples == 23


# Corrupt records.

SHARD = "train-00000-of-00001.tfrecord"


def _bad(directory, bad, payload, count=9):
    return toy.build(
        directory,
        count,
        shards=1,
        payload=lambda n: payload(n) if n in bad else schema.encode(toy.example(n)),
    )


@pytest.mark.parametrize(
    "payload, modality, facts",
    [
        (toy.with_broken_frame, VIDEO, ("JPEG",)),  # from TensorFlow, as the protocol message below
        (toy.without_samples, AUDIO, ("audio", "waveform")),
        (toy.of_class_7, AUDIO, ("class index 7", "[0, 5)", "data.label.num_classes")),
        (lambda n: b"garbage", AUDIO, ("protocol message",)),
    ],
)
def test_error_reports_the_corrupt_record(tmp_path, payload, modality, facts):
    data = make(_bad(tmp_path, {5}, payload), batch_size=9, **modality)
    way_out = ("mmjax validate", "data.corrupt='skip'")
    with raises(UserError, tmp_path / SHARD, "record 5", *way_out, *facts):
        batches(data)


def _flip_byte(directory, record):
    """Damages one byte of a record's payload, which only its CRC detects."""
    from mmjax.data.storage import tfrecord

    path = os.path.join(directory, SHARD)
    offset, length = tfrecord.read_index(path)[record]
    stat = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(offset + length - 5)
        byte = file.read(1)
        file.seek(offset + length - 5)
        file.write(bytes([byte[0] ^ 255]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_error_reports_the_record_with_a_wrong_crc(tmp_path):
    directory = toy.build(tmp_path, 9, shards=1)
    _flip_byte(directory, 4)
    with raises(UserError, tmp_path / SHARD, "record 4", "CRC"):
        batches(make(directory, batch_size=9, **AUDIO))


def test_error_reports_a_wrong_crc_that_is_prefetched(tmp_path):
    directory = toy.build(tmp_path, 9, shards=1)
    _flip_byte(directory, 4)
    for opened in (make, evaluated):
        data = opened(directory, batch_size=1, **AUDIO)
        with raises(UserError, tmp_path / SHARD, "record 4", "CRC"):
            list(itertools.islice(data.iterate(), 9))


def test_error_reports_a_truncated_shard(tmp_path):
    directory = toy.build(tmp_path, 9, shards=1)
    path = os.path.join(directory, SHARD)
    os.truncate(path, os.path.getsize(path) - 100)
    with raises(UserError, path, "truncated"):
        make(directory)


@pytest.mark.parametrize("read", ["pread", "tf"])
def test_skipping_in_training_replaces_a_corrupt_record_by_the_next(tmp_path, read, caplog):
    directory = _bad(tmp_path, {3, 4, 8}, toy.with_broken_frame)
    changes = dict(batch_size=9, corrupt="skip", read=read, **VIDEO)
    data = make(directory, **changes)
    result = batches(data, number=2)
    replacements = {3: 5, 4: 5, 8: 0}
    for step, batch in enumerate(result):
        records = data.batch_ids(step)["record"].tolist()
        assert batch["example_id"].tolist() == [replacements.get(r, r) for r in records]
        assert set(batch) == set(data.spec)
    assert data.corrupt == 3
    assert_mentions(caplog.text, tmp_path / SHARD, "record 3", "record 4", "record 8", "JPEG")
    again = batches(make(directory, **changes), 1)
    assert toy.same(again[0], result[1])


def test_skipping_includes_records_with_a_wrong_crc(tmp_path):
    directory = toy.build(tmp_path, 9, shards=1)
    _flip_byte(directory, 4)
    data = make(directory, batch_size=9, corrupt="skip", **AUDIO)
    (batch,) = batches(data)
    assert 4 not in batch["example_id"] and data.corrupt == 1


def test_skipping_in_evaluation_masks_the_record(tmp_path):
    directory = _bad(tmp_path, {3, 8}, toy.with_broken_frame)
    data = evaluated(directory, corrupt="skip", **VIDEO)
    result = list(data.iterate())
    mask = np.concatenate([batch["mask"] for batch in result])
    assert mask.tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert np.concatenate([b["example_id"] for b in result])[:9].tolist() == list(range(9))
    assert data.corrupt == 2


def test_too_many_corrupt_records_stop_training(tmp_path):
    directory = _bad(tmp_path, {1, 3, 5}, toy.without_samples)
    data = make(directory, batch_size=9, corrupt="skip", max_corrupt=2, **AUDIO)
    with raises(UserError, "data.max_corrupt=2", SHARD, "waveform"):
        batches(data)
    all_corrupt = _bad(tmp_path / "all", set(range(30)), toy.without_samples, count=30)
    with raises(UserError, tmp_path / "all" / SHARD, "16 consecutive records"):
        batches(make(all_corrupt, batch_size=2, corrupt="skip", **AUDIO))


# Invalid options.


@pytest.mark.parametrize(
    "changes, facts",
    [
        (dict(vidio={}), ("data.vidio", "data.video", "audio")),
        (dict(video=dict(num_framez=3)), ("data.video.num_framez", "data.video.num_frames")),
        (dict(video=dict(num_frames=3.5)), ("data.video.num_frames", "int", "3.5")),
        (dict(video=dict(flip=1)), ("data.video.flip", "bool", "1 (int)")),
        (dict(video=3), ("data.video", "dict", "None", "3 (int)")),
        (
            dict(video=dict(size=32, min_resize=16)),
            ("data.video.min_resize=16", "data.video.size=32"),
        ),
        (dict(video=dict(crop="vg")), ("data.video.crop", "'vg'", "'vgg'", "inception")),
        (dict(video=dict(area=(1, 0.5))), ("data.video.area", "(1, 0.5)", "low <= high")),
        (dict(audio=dict(num_samples=0)), ("data.audio.num_samples", 0, 1)),
        (dict(train=7), ("data.train", "str", "tuple", "7 (int)")),
        (dict(weights=("a",)), ("data.weights[0]", "float", "'a'")),
        (dict(weights=(1, 2)), ("data.weights=(1.0, 2.0)", "data.train")),
        (dict(corrupt="ignore"), ("data.corrupt", "'ignore'", "fail, skip")),
        (dict(read="mmap"), ("data.read", "'mmap'", "pread, tf")),
        (dict(limit=-1), ("data.limit", "-1", 0)),
        (
            dict(label=dict(num_classes=2), **AUDIO),
            ("class index", "[0, 2)", "data.label.num_classes"),
        ),
    ],
)
def test_error_for_invalid_options(directory, changes, facts):
    with raises(UserError, *facts):
        batches(make(directory, **changes))


def test_error_without_modalities_and_without_the_number_of_classes(directory, tmp_path):
    with raises(UserError, "data.video", "audio", "image", "text", "touch"):
        make(directory, video=None, audio=None, text=None)
    unknown = toy.build(tmp_path, 2, shards=1, num_classes=0)
    with raises(UserError, "data.label.num_classes", "toy"):
        make(unknown)


def test_error_for_a_modality_that_no_example_has(directory, tmp_path):
    counted = dict(examples=2, examples_with=dict(video=2, text=1, label=2))
    info = dict(modalities=("video", "text", "label"), statistics=counted)
    silent = toy.build(tmp_path, 2, shards=1, **info)
    with raises(UserError, "config.data.audio=None", "toy", silent, "video, text, label"):
        make(silent)
    assert "audio" not in make(silent, audio=None).spec
    assert "audio" in make((silent, directory)).spec  # the second source has audio


def test_batch_size_must_be_divisible_by_the_number_of_hosts(directory):
    with raises(UserError, "batch_size=7", 2):
        make(directory, batch_size=7, hosts=(0, 2))


def test_functions_of_a_phase_can_be_added_and_removed(directory):
    data = make(directory, **VIDEO)
    data.pipeline.remove("preprocess", "flip")
    data.pipeline.add("preprocess", "dark", lambda f: f | {"video": f["video"] // 2})
    (batch,) = batches(data)
    assert batch["video"].max() <= 127 and "dark" in data.pipeline.names()["preprocess"]


def test_flips_on_host_and_device_are_identical(tmp_path):
    from mmjax.preprocess.inputs import Inputs

    ramp = np.tile(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], (32, 1, 3))
    frames = [image_files.encode_jpeg(ramp)] * 4
    directory = toy.build(tmp_path, payload=lambda n: schema.encode(toy.example(n, frames=frames)))

    def mirrored(flip_on):
        video = dict(num_frames=4, size=16, flip_on=flip_on)
        data = make(directory, batch_size=23, **VIDEO | dict(video=video))
        (batch,) = batches(data)
        inputs = Inputs()(batch, jax.random.key(0), train=True)
        return batch, np.asarray(inputs["video"])

    (batch, device), (plain, host) = mirrored("device"), mirrored("host")
    assert set(batch["video_flip"]) == {True, False} and "video_flip" not in plain
    assert np.array_equal(device, host)
    assert not np.array_equal(batch["video"], plain["video"])


def test_image_folders_can_be_trained_on(tmp_path):
    import PIL.Image

    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        PIL.Image.new("RGB", (20, 30), (200 * (label == "b"),) * 3).save(tmp_path / label / "1.png")
    section = dict(train=f"images:{tmp_path}", video=dict(num_frames=1, size=8), label={})
    data = loader.make_train_data(section, batch_size=4, seed=0)
    (batch,) = batches(data)
    assert np.array_equal(batch["video"][:, 0, 0, 0, 0], batch["label"] * 200)
