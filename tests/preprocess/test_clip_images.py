"""Inputs of CLIP's image towers against Pillow's bicubic filter."""

import jax
import numpy as np
import PIL.Image
import pytest

from mmjax.pixel_statistics import CLIP_MEAN, CLIP_STD
from mmjax.preprocess.clip_images import clip_images

prepare = jax.jit(clip_images, static_argnums=1)
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 37, 52, 3), np.uint8)


def by_pillow(image, size, new, start):
    """Resizes each channel in floating point without clipping, crops and normalizes."""
    channels = [PIL.Image.fromarray(image[..., c]) for c in range(3)]
    resized = [c.resize(new[::-1], PIL.Image.Resampling.BICUBIC) for c in channels]
    x = np.stack([np.asarray(c) for c in resized], axis=-1)
    x = x[start[0] : start[0] + size, start[1] : start[1] + size]
    return (x - np.array(CLIP_MEAN)) / np.array(CLIP_STD)


@pytest.mark.parametrize(
    ("size", "new", "start"),
    [(16, (16, 22), (0, 3)), (37, (37, 52), (0, 8)), (50, (50, 70), (0, 10))],
)
def test_the_shorter_side_is_resized_and_the_center_is_cropped(size, new, start):
    floats = PIXELS.astype(np.float32) / 255
    for images, shape, where in (
        (floats, new, start),
        (floats.transpose(0, 2, 1, 3), new[::-1], start[::-1]),
    ):
        expected = np.stack([by_pillow(image, size, shape, where) for image in images])
        actual = prepare(images, size)
        assert actual.shape == (2, size, size, 3)
        np.testing.assert_allclose(actual, expected, atol=2e-5)
    # Sharp edges overshoot the range of pixels.
    if size == 50:
        assert (floats.min() - CLIP_MEAN[0]) / CLIP_STD[0] > expected.min()


def test_bytes_equal_floats_and_images_of_the_size_are_only_normalized():
    square = PIXELS[:, :, :37]
    expected = (square / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(prepare(square, 37), expected, atol=1e-5)
    np.testing.assert_array_equal(prepare(PIXELS[None], 16)[0], prepare(PIXELS, 16))
