"""Video clips: training clips loop, evaluation views, crops."""

import numpy as np
import pytest

from mmjax.data.storage import image_files
from tests.data import toy_clips as toy
from tests.data.pipeline.one_record import evaluate, run, times_of, train


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return toy.build(tmp_path_factory.mktemp("toy"), 12)


def test_evaluation_views_are_crops_by_clips_in_crop_major_order(directory):
    data = evaluate(directory, num_clips=2, multi_crop=True, num_audio_clips=3)
    stored = toy.example(1)
    ramp = np.tile(np.arange(40, dtype=np.uint8) * 6, (32, 1))
    stored.frames = [
        image_files.encode_jpeg(np.stack([ramp * 0 + 10 * t + 3, ramp, ramp], -1))
        for t in range(20)
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


def test_short_clips_loop(directory):
    stored = toy.example(1, waveform=toy.waveform(0.2))
    stored.frames = stored.frames[:3]
    out = run(train(directory, video=dict(num_frames=8, size=16)), stored)
    assert times_of(out["video"]).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert (out["audio"] * 10_000).round().tolist() == [*range(200), *range(100)]
