"""Resizing and pixel shuffling of feature maps (pyVTAB's specification, 19.5 and 19.6)."""

import jax
import numpy as np
import pytest

from mmjax.models.decoders import resize


@pytest.mark.parametrize(
    "row, half_pixel, corners",
    [
        ([0, 1, 2], [0, 0.4, 1, 1.6, 2], [0, 0.5, 1, 1.5, 2]),
        ([0, 1], [0, 0.25, 0.75, 1], [0, 1 / 3, 2 / 3, 1]),
        # Shrinking does not antialias: at positions 0.75 and 3.25, or at the corners.
        ([0, 1, 4, 9, 16], [0.75, 9 + 0.25 * 7], [0, 16]),
        ([3, 5], [4], [3]),
    ],
)
def test_bilinear_conventions_of_pytorch(row, half_pixel, corners):
    x = np.float32(row)
    size = len(half_pixel)
    for axis in (0, 1):
        shape = (len(row), 1) if axis == 0 else (1, len(row))
        new = (size, 1) if axis == 0 else (1, size)
        maps = x.reshape(1, *shape, 1) * np.float32([1, -2])
        actual = np.asarray(resize.resize_half_pixel(maps, new)).reshape(size, 2)
        np.testing.assert_allclose(actual, np.outer(half_pixel, [1, -2]), rtol=1e-6, atol=1e-7)
        actual = np.asarray(resize.resize_corners(maps, new)).reshape(size, 2)
        np.testing.assert_allclose(actual, np.outer(corners, [1, -2]), rtol=1e-6, atol=1e-7)


def test_enlarging_with_half_pixel_centers_equals_jax_image_resize():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7, 4)).astype(np.float32)
    expected = jax.image.resize(x, (2, 3, 11, 13, 4), "linear", antialias=False)
    np.testing.assert_allclose(resize.resize_half_pixel(x, (11, 13)), expected, atol=1e-5)


def test_nearest_pixels_are_those_of_pytorch():
    x = np.arange(520 * 2).reshape(1, 520, 2, 1)
    small = np.asarray(resize.resize_nearest(x, (224, 2)))[0, :, 0, 0] // 2
    np.testing.assert_array_equal(small[:8], [0, 2, 4, 6, 9, 11, 13, 16])
    np.testing.assert_array_equal(small[-3:], [513, 515, 517])
    wide = np.asarray(resize.resize_nearest(x[:, :1], (1, 5)))[0, 0, :, 0]
    np.testing.assert_array_equal(wide, [0, 0, 0, 1, 1])


def test_pixel_shuffle_keeps_the_channel_order_of_pytorch():
    channel, y = np.meshgrid(np.arange(8), np.arange(2))
    x = (2 * channel + y).astype(np.float32)[:, None]  # [2, 1, 8]
    expected = [[0, 2], [4, 6], [1, 3], [5, 7]], [[8, 10], [12, 14], [9, 11], [13, 15]]
    np.testing.assert_array_equal(np.moveaxis(resize.pixel_shuffle(x), -1, 0), expected)


def test_maps_one_pixel_too_large_are_cut_and_others_are_resized():
    x = np.random.default_rng(0).normal(size=(1, 6, 8, 2)).astype(np.float32)
    np.testing.assert_array_equal(resize.fit(x, (5, 8)), x[:, :5])
    np.testing.assert_array_equal(resize.fit(x, None), x)
    np.testing.assert_array_equal(resize.fit(x, (4, 8)), resize.resize_half_pixel(x, (4, 8)))
    assert resize.fit(x, (12, 9)).shape == (1, 12, 9, 2)
    assert resize.halve(x[:, :5]).shape == (1, 3, 4, 2)
