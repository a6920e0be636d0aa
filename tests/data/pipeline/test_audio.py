"""Audio windows: start times, strides, sample rates and stored formats."""

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.storage import schema
from mmjax.errors import UserError
from tests.data import toy_clips as toy
from tests.data.pipeline.one_record import run, times_of, train
from tests.messages import raises


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return toy.build(tmp_path_factory.mktemp("toy"), 12)


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


def test_audio_stride_and_target_fps(directory):
    data = train(
        directory, video=dict(num_frames=4, size=16, fps=3.0), audio=dict(num_samples=50, stride=3)
    )
    out = run(data, toy.example(1))
    assert np.diff(times_of(out["video"])).tolist() == [3, 3, 3]  # int(10 / 3)
    steps = np.diff((out["audio"] * 10_000).round())
    assert set(steps.tolist()) <= {3.0, 3.0 - 2000}  # the second value: wraps around the end


def test_int32_waveforms_stored_as_floats_are_repaired(tmp_path):
    directory = toy.build(tmp_path, 2, waveform_format="int32")
    audio = np.linspace(-0.5, 0.5, 300).astype(np.float32)
    reinterpreted = (audio * 2.0**31).astype(np.int32).view(np.float32)
    proto = tf.train.SequenceExample.FromString(schema.encode(toy.example(0, waveform=None)))
    floats = proto.feature_lists.feature_list[schema.WAVEFORM[0]].feature.add().float_list
    floats.CopyFrom(schema._float_list(reinterpreted))
    data = train(directory, video=None)
    np.testing.assert_allclose(run(data, proto.SerializeToString())["audio"], audio, atol=1e-6)


def test_sample_rate_must_equal_that_of_the_dataset(directory):
    with raises(UserError, "data.audio.sample_rate=48000", "toy", "1000 Hz", "--sample-rate"):
        train(directory, audio=dict(num_samples=300, sample_rate=48_000))
