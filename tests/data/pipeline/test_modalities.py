"""Decoding one record into model inputs, modality by modality, with the loader's pipeline."""

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.pipeline import loader
from mmjax.data.storage import image_files, schema
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.messages import raises


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return toy.build(tmp_path_factory.mktemp("toy"), 12)


def run(data, stored, position=0):
    """Runs all per-example phases and batching on one record, which may not be in the dataset."""
    serialized = stored if isinstance(stored, bytes) else schema.encode(stored)
    features = {
        "_serialized": tf.constant(serialized),
        "_seed": tf.constant([0, position], tf.int64),
        "_source": tf.constant(0, tf.int64),
    }
    batch = data.pipeline.batch({k: v[None] for k, v in data.pipeline.example(features).items()})
    return {key: value.numpy()[0] for key, value in batch.items()}


def train(directory, **changes):
    return loader.make_train_data(toy.section(directory, **changes), batch_size=4, seed=0)


def evaluate(directory, **views):
    section = toy.section(directory, train=directory, split="train")
    return loader.make_eval_data(section, split="train", batch_size=4, **views)


def times_of(video):
    """Returns the time index encoded in each frame of [..., H, W, 3]."""
    return np.round((video[..., 0].mean((-1, -2)) - 3) / 10).astype(int)


def test_training_clips_start_anywhere_and_audio_starts_with_the_video(directory):
    data = train(directory, video=dict(num_frames=4, stride=2, size=16, scale_jitter=False))
    starts = set()
    for position in range(70):
        out = run(data, toy.example(1), position)
        times = times_of(out["video"])
        assert times.tolist() == list(range(times[0], times[0] + 8, 2))
        second = times[0] / toy.FPS
        heard = out["audio"] * 10_000 / toy.RATE
        assert heard[0] == pytest.approx(second, abs=1e-3)
        expected = (second * toy.RATE + np.arange(300)) % (toy.FRAMES / toy.FPS * toy.RATE)
        np.testing.assert_allclose(heard * toy.RATE, expected, atol=0.01)
        starts.add(int(times[0]))
    assert min(starts) == 0 and max(starts) == toy.FRAMES - 7  # the last start that fits


def test_without_rates_audio_starts_at_the_same_fraction(tmp_path):
    directory = toy.build(tmp_path, 4, fps=0.0, sample_rate=0.0)
    data = train(directory, video=dict(num_frames=4, size=16))
    for position in range(10):
        stored = toy.example(1, waveform=toy.waveform(1.0))  # half as long as the frames
        out = run(data, stored, position)
        fraction = times_of(out["video"])[0] / toy.FRAMES
        assert out["audio"][0] * 10_000 == pytest.approx(round(fraction * 1000), abs=0.01)


def test_rates_of_the_record_override_those_of_the_dataset(tmp_path):
    directory = toy.build(tmp_path, 4, fps=0.0, sample_rate=0.0)
    data = train(directory, video=dict(num_frames=4, size=16))
    stored = toy.example(1, frame_rate=20.0, sample_rate=1000.0)
    for position in range(10):
        out = run(data, stored, position)
        assert out["audio"][0] * 10_000 == pytest.approx(times_of(out["video"])[0] * 50, abs=0.01)


def test_short_clips_loop(directory):
    stored = toy.example(1, waveform=toy.waveform(0.2))
    stored.frames = stored.frames[:3]
    out = run(train(directory, video=dict(num_frames=8, size=16)), stored)
    assert times_of(out["video"]).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert (out["audio"] * 10_000).round().tolist() == [*range(200), *range(100)]


def test_audio_stride_and_target_fps(directory):
    data = train(
        directory, video=dict(num_frames=4, size=16, fps=3.0), audio=dict(num_samples=50, stride=3)
    )
    out = run(data, toy.example(1))
    assert np.diff(times_of(out["video"])).tolist() == [3, 3, 3]  # int(10 / 3)
    steps = np.diff((out["audio"] * 10_000).round())
    assert set(steps.tolist()) <= {3.0, 3.0 - 2000}  # the second value: wraps around the end


def test_missing_modalities_are_zero_with_mask_zero(directory):
    data = train(directory, touch=dict(size=8))
    out = run(data, schema.Example(labels=[3]))
    for name in ("video", "audio", "touch"):
        assert out[f"{name}_mask"] == 0 and not out[name].any()
    assert not out["text"].any() and out["text_mask"].tolist() == [0, 0]
    assert out["label"] == 3
    whole = run(data, toy.example(2, touch=[image_files.encode_jpeg(np.full((9, 12, 3), 77, np.uint8))]))
    assert all(whole[f"{name}_mask"] == 1 for name in ("video", "audio", "touch"))
    assert np.abs(whole["touch"].astype(int) - 77).max() <= 2 and whole["touch"].shape == (8, 8, 3)


def test_text_candidates_skip_empty_captions(directory):
    data = train(directory)
    words = data.tokenizer.words
    out = run(data, toy.example(0, captions=["Red, circle!", "", "blue", "up up"]))
    assert out["text"].tolist() == [[words["red"], words["circle"], 0, 0], [words["blue"], 0, 0, 0]]
    assert out["text_mask"].tolist() == [1, 1]
    one = run(data, toy.example(0, captions=["up"]))
    assert one["text_mask"].tolist() == [1, 0] and not one["text"][1].any()


def test_random_sampling_uses_all_captions(directory):
    data = train(directory, text=dict(max_tokens=1, candidates=1, sample="random"))
    captions = ["red", "blue", "circle"]
    tokens = {int(run(data, toy.example(0, captions=captions), p)["text"][0, 0]) for p in range(30)}
    assert tokens == {data.tokenizer.words[c] for c in captions}
    first = train(directory, text=dict(max_tokens=1, candidates=1))
    tokens = {int(run(first, toy.example(0, captions=captions), p)["text"][0, 0]) for p in range(9)}
    assert tokens == {data.tokenizer.words["red"]}


def test_single_labels_and_multi_labels(directory):
    assert run(train(directory), toy.example(0, labels=[4, 2]))["label"] == 4
    assert run(train(directory), toy.example(0, labels=[]))["label"] == -1
    multi = train(directory, label=dict(multi_label=True))
    assert run(multi, toy.example(0, labels=[4, 2, 2]))["label"].tolist() == [0, 0, 1, 0, 1]
    assert run(multi, toy.example(0, labels=[]))["label"].tolist() == [0] * 5


@pytest.mark.parametrize("labels, wrong", [([5], 5), ([-1], -1), ([0, 9], 9)])
def test_error_for_a_label_out_of_range(directory, labels, wrong):
    facts = (wrong, "[0, 5)", "data.label.num_classes")
    with raises(tf.errors.InvalidArgumentError, *facts):
        run(train(directory), toy.example(0, labels=labels))


def test_error_for_missing_required_text_and_for_empty_audio(directory):
    with raises(tf.errors.InvalidArgumentError, "data.text.require_text"):
        run(train(directory, text=dict(require_text=True)), toy.example(0, captions=[""]))
    with raises(tf.errors.InvalidArgumentError, "audio", "waveform"):
        run(train(directory), toy.without_samples(0))


def test_feature_keys_of_other_tools_tf_examples_and_png_frames_are_read(directory):
    """Other tools write `waveform/floats`, `label/index`, a tf.Example, or PNG frames."""
    png = tf.io.encode_png(np.full((20, 24, 3), 99, np.uint8)).numpy()
    proto = tf.train.Example()
    feature = proto.features.feature
    feature["image/encoded"].bytes_list.value.append(png)
    feature["waveform/floats"].float_list.value.extend([0.5] * 10)
    feature["label/index"].int64_list.value.append(2)
    feature["caption/string"].bytes_list.value.append(b"red")
    out = run(train(directory), proto.SerializeToString())
    assert (out["video"] == 99).all() and (out["audio"] == 0.5).all()
    assert out["label"] == 2 and out["text_mask"].tolist() == [1, 0]


def test_int32_waveforms_stored_as_floats_are_repaired(tmp_path):
    directory = toy.build(tmp_path, 2, waveform_format="int32")
    audio = np.linspace(-0.5, 0.5, 300).astype(np.float32)
    reinterpreted = (audio * 2.0**31).astype(np.int32).view(np.float32)
    proto = tf.train.SequenceExample.FromString(schema.encode(toy.example(0, waveform=None)))
    floats = proto.feature_lists.feature_list[schema.WAVEFORM[0]].feature.add().float_list
    floats.CopyFrom(schema._float_list(reinterpreted))
    data = train(directory, video=None)
    np.testing.assert_allclose(run(data, proto.SerializeToString())["audio"], audio, atol=1e-6)


def test_evaluation_views_are_crops_by_clips_in_crop_major_order(directory):
    data = evaluate(directory, num_clips=2, multi_crop=True, num_audio_clips=3)
    stored = toy.example(1)
    ramp = np.tile(np.arange(40, dtype=np.uint8) * 6, (32, 1))
    stored.frames = [
        image_files.encode_jpeg(np.stack([ramp * 0 + 10 * t + 3, ramp, ramp], -1)) for t in range(20)
    ]
    out = run(data, stored)
    assert out["video"].shape == (6, 4, 16, 16, 3) and out["audio"].shape == (3, 300)
    times = times_of(out["video"])
    assert (
        times.tolist() == [list(range(4)), list(range(16, 20))] * 3
    )  # the clip index varies fastest
    position = out["video"][:, 0, :, :, 1].mean((-1, -2))
    assert position[0] == pytest.approx(position[1], abs=1)
    assert position[0] < position[2] - 5 < position[4] - 10
    starts = (out["audio"][:, 0] * 10_000).round()
    assert starts.tolist() == [0, 850, 1700]


def test_a_single_evaluation_view_is_central(directory):
    out = run(evaluate(directory), toy.example(1))
    assert times_of(out["video"]).tolist() == [[8, 9, 10, 11]]
    assert round(float(out["audio"][0, 0]) * 10_000) == 850


def test_vgg_exact_and_inception_crops_keep_frames_consecutive(directory):
    for options in (dict(exact=True), dict(crop="inception", flip=False)):
        video = dict(num_frames=4, size=16, min_resize=20) | options
        out = run(train(directory, video=video), toy.example(1))
        assert out["video"].shape == (4, 16, 16, 3)
        assert np.diff(times_of(out["video"])).tolist() == [1, 1, 1]


def test_sample_rate_must_equal_that_of_the_dataset(directory):
    with raises(UserError, "data.audio.sample_rate=48000", "toy", "1000 Hz", "--sample-rate"):
        train(directory, audio=dict(num_samples=300, sample_rate=48_000))
