"""Operations on video clips against NumPy."""

import numpy as np

from mmjax.errors import UserError
from mmjax.preprocess.video import flip_video, space_to_depth
from tests.messages import raises


def test_flip_video_mirrors_only_the_selected_clips():
    video = np.random.default_rng(0).random((4, 2, 6, 5, 3)).astype(np.float32)
    result = flip_video(video, np.array([True, False, False, True]))
    for clip, before, flipped in zip(result, video, (1, 0, 0, 1), strict=True):
        np.testing.assert_array_equal(clip, np.flip(before, 2) if flipped else before)


def test_space_to_depth_moves_blocks_into_channels():
    video = np.arange(2 * 4 * 4 * 6 * 3).reshape(2, 4, 4, 6, 3)
    result = np.asarray(space_to_depth(video))
    assert result.shape == (2, 2, 2, 3, 24)
    for t, h, w in np.ndindex(2, 2, 2):
        channels = slice(3 * (4 * t + 2 * h + w), 3 * (4 * t + 2 * h + w) + 3)
        np.testing.assert_array_equal(result[..., channels], video[:, t::2, h::2, w::2])
    with raises(UserError, "4x4x6", "(3, 2, 2)"):
        space_to_depth(video, block=(3, 2, 2))
