"""Windows of scaled images and masks."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mmjax.data.pipeline import mask_geometry as geometry
from mmjax.data.storage import mask_files

IMAGE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
MASK = np.random.default_rng(1).integers(0, 21, (37, 53), np.uint8)


def int_pair(values):
    return tf.constant(values, tf.int32)


def test_floor_rule_takes_the_pixels_of_ttdl():
    position = np.arange(520)
    masks = [(position // 250).astype(np.uint8), (position % 250).astype(np.uint8)]
    high, low = (
        geometry.cut_mask(
            tf.constant(mask[None].repeat(520, 0)),
            int_pair([224, 224]),
            int_pair([0, 0]),
            (224, 224),
            "floor",
        ).numpy()[5]
        for mask in masks
    )
    source = 250 * high.astype(int) + low
    assert source[:8].tolist() == [0, 2, 4, 6, 9, 11, 13, 16]
    assert source[-3:].tolist() == [513, 515, 517]
    assert np.array_equal(source, np.arange(224) * 520 // 224)


@pytest.mark.parametrize("scaled", [(37, 53), (20, 31), (74, 106), (90, 41)])
def test_windows_are_those_of_the_whole_scaled_image(scaled):
    whole = tf.image.resize(IMAGE, scaled, antialias=True).numpy().round().astype(np.uint8)
    whole_mask = mask_files.resize(MASK, scaled)
    floor = MASK[np.arange(scaled[0]) * 37 // scaled[0]][:, np.arange(scaled[1]) * 53 // scaled[1]]
    window, size = np.s_[3:18, 7:24], (15, 17)
    arguments = int_pair(scaled), int_pair([3, 7]), size
    image = geometry.cut_image(tf.constant(IMAGE), *arguments).numpy()
    assert np.abs(image.astype(int) - whole[window]).max() <= 1
    assert (image == whole[window]).mean() > 0.99
    mask = geometry.cut_mask(tf.constant(MASK), *arguments).numpy()
    assert np.array_equal(mask, whole_mask[window])
    mask = geometry.cut_mask(tf.constant(MASK), *arguments, "floor").numpy()
    assert np.array_equal(mask, floor[window])


def test_downscaling_antialiases_as_pillow():
    image = geometry.cut_image(
        tf.constant(IMAGE), int_pair([12, 17]), int_pair([0, 0]), (12, 17)
    ).numpy()
    pillow = np.asarray(Image.fromarray(IMAGE).resize((17, 12), Image.Resampling.BILINEAR))
    assert np.abs(image.astype(int) - pillow).max() <= 1


def test_pixels_outside_have_the_mean_color_and_no_class():
    arguments = int_pair([37, 53]), int_pair([-4, 40]), (50, 20)
    image = geometry.cut_image(tf.constant(IMAGE), *arguments).numpy()
    mask = geometry.cut_mask(tf.constant(MASK), *arguments).numpy()
    inside = np.zeros((50, 20), bool)
    inside[4:41, :13] = True
    assert np.array_equal(image[inside].reshape(37, 13, 3), IMAGE[:, 40:])
    assert np.array_equal(mask[inside].reshape(37, 13), MASK[:, 40:])
    assert (image[~inside] == geometry.PADDING).all() and (mask[~inside] == 255).all()


def test_scaled_sizes_are_rounded_down_as_in_ttdl():
    sizes = [(375, 500), (500, 333), (520, 520), (281, 500)]
    scaled = [geometry.scaled_size(int_pair(s), shorter_side=520).numpy().tolist() for s in sizes]
    assert scaled == [[520, 693], [780, 520], [520, 520], [520, 925]]
    assert geometry.scaled_size(int_pair((10, 21)), shorter_side=0).numpy().tolist() == [10, 21]
    double = geometry.scaled_size(int_pair((10, 21)), shorter_side=20, factor=0.25)
    assert double.numpy().tolist() == [5, 10]


def test_center_windows_are_those_of_torchvision():
    # (scaled, size): position; half a pixel of room is rounded to even, and of padding upwards.
    expected = {(10, 4): 3, (11, 4): 4, (13, 4): 4, (4, 10): -3, (5, 8): -1, (4, 9): -2}
    starts = {
        (scaled, size): int(geometry.center_start(int_pair([scaled, scaled]), size)[0])
        for scaled, size in expected
    }
    assert starts == expected


def test_random_windows_reach_every_position_and_contain_small_images():
    seeds = [tf.constant([0, k], tf.int64) for k in range(0, 600, 2)]
    starts = {tuple(geometry.random_start(int_pair([6, 2]), 4, s).numpy().tolist()) for s in seeds}
    assert starts == {(row, column) for row in range(3) for column in range(-2, 1)}
