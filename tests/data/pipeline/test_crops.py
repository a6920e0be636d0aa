"""Resizing and cropping against NumPy, and decode-and-crop against VATT's order of operations."""

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data.pipeline import crops


def gradient_image(height, width):
    """Returns a smooth color image in which every position looks different."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [128 + 90 * np.sin(x / 9 + y / 31), 255 * y / height, 255 * x / width]
    return np.stack(waves, -1).astype(np.uint8)


def jpeg(image):
    return tf.io.encode_jpeg(image, quality=98, chroma_downsampling=False).numpy()


def bilinear(image, height, width):
    """Resizes [H, W, C] bilinearly with half-pixel centers, from the definition."""

    def weights(old, new):
        source = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(source).astype(int)
        high = np.minimum(low + 1, old - 1)
        matrix = np.zeros((new, old))
        np.add.at(matrix, (np.arange(new), low), 1 - (source - low))
        np.add.at(matrix, (np.arange(new), high), source - low)
        return matrix

    vertical, horizontal = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("yh,hwc,xw->yxc", vertical, image.astype(np.float64), horizontal)


def difference(a, b):
    return np.abs(np.asarray(a, np.int32) - np.asarray(b, np.int32))


@pytest.mark.parametrize("shape", [(45, 70), (70, 45), (20, 27), (32, 50)])
def test_resize_shortest_is_bilinear_and_truncates_to_uint8(shape):
    image = gradient_image(*shape)
    result = crops.resize_shortest(tf.constant(image[None]), 32).numpy()[0]
    height, width = [side * 32 // min(shape) for side in shape]
    assert result.shape == (height, width, 3) and result.dtype == np.uint8
    expected = bilinear(image, height, width)
    assert (
        np.abs(result + 0.5 - expected) < 0.5 + 1e-3
    ).all()  # truncation: expected - 1 < result <= expected


def test_resize_to_the_same_size_is_the_identity_and_rounded_rounds():
    image = gradient_image(16, 16)[None]
    assert np.array_equal(crops.resize(tf.constant(image), (16, 16)).numpy(), image)
    result = crops.resize(tf.constant(image), (10, 13), rounded=True).numpy()[0]
    assert np.abs(result - bilinear(image[0], 10, 13)).max() <= 0.5 + 1e-3


def test_central_crop_pads_with_zeros():
    frames = np.stack([gradient_image(37, 50)] * 2)
    result = crops.central_crop(tf.constant(frames), 33).numpy()
    assert np.array_equal(result, frames[:, 2:35, 8:41])
    small = crops.central_crop(tf.constant(frames[:, :24]), 32).numpy()
    assert not small[:, :4].any() and not small[:, 28:].any()
    assert np.array_equal(small[:, 4:28], frames[:, :24, 9:41])


@pytest.mark.parametrize("portrait", [False, True])
def test_multi_crop_takes_start_middle_and_end_of_the_longer_side(portrait):
    frames = gradient_image(32, 49)[None]
    frames = frames.transpose(0, 2, 1, 3) if portrait else frames
    result = crops.multi_crop(tf.constant(frames), 32).numpy()
    for crop, start in zip(result, (0, 8, 17), strict=True):
        window = slice(start, start + 32)
        expected = frames[:, window] if portrait else frames[:, :, window]
        assert np.array_equal(crop, expected)


def test_decoding_a_window_equals_cropping_the_decoded_image():
    stored = [jpeg(gradient_image(64, 80)), jpeg(gradient_image(64, 80)[::-1])]
    window = tf.constant([16, 32, 24, 40])
    whole = crops.decode(tf.constant(stored), count=2).numpy()
    part = crops.decode(tf.constant(stored), window, count=2).numpy()
    assert np.array_equal(part, whole[:, 16:40, 32:72])
    # With an unknown number of frames, they are decoded in a loop.
    loop = crops.decode(tf.constant(stored), window).numpy()
    assert np.array_equal(loop, part)


def test_png_frames_decode_exactly_and_encoded_size_is_read():
    image = gradient_image(40, 56)
    stored = tf.constant([tf.io.encode_png(image).numpy()])
    assert crops.encoded_size(stored[0]).numpy().tolist() == [40, 56]
    assert crops.encoded_size(tf.constant(jpeg(image))).numpy().tolist() == [40, 56]
    assert np.array_equal(crops.decode(stored, count=1).numpy()[0], image)
    part = crops.decode(stored, tf.constant([3, 5, 20, 30]), count=1).numpy()[0]
    assert np.array_equal(part, image[3:23, 5:35])


@pytest.mark.parametrize("jitter", [False, True])
def test_vgg_window_approximates_vatts_order_of_operations(jitter):
    """Crop-then-resize is close to VATT's jitter, resize and crop of the whole frame."""
    image = gradient_image(120, 160)
    options = dict(size=64, min_resize=72, scale_jitter=jitter)
    offsets = set()
    for number in range(12):
        seed = tf.constant([5, number], tf.int64)
        window = crops.vgg_window(tf.constant([120, 160]), seed, **options).numpy()
        top, left, height, width = window
        assert top >= 0 and left >= 0 and top + height <= 120 and left + width <= 160
        offsets.add((top, left))
        part = tf.constant(image[None, top : top + height, left : left + width])
        result = crops.resize(part, (64, 64)).numpy()
        expected = crops.vgg_exact(tf.constant(image[None]), seed, **options).numpy()
        # Another window, even one a few pixels off, differs by far more (checked below).
        assert difference(result, expected).mean() < 4.0
        off = np.roll(image, (6, 6), (0, 1))[None, top : top + height, left : left + width]
        moved = crops.resize(tf.constant(off), (64, 64)).numpy()
        assert difference(moved, expected).mean() > 2 * difference(result, expected).mean()
    assert len(offsets) > 6


def test_scale_jitter_has_the_documented_range_and_probability():
    shape = tf.constant([1000, 2000])
    scales = np.array(
        [crops.jittered_size(shape, tf.constant([0, n], tf.int64)).numpy() for n in range(300)]
    ) / [1000, 2000]
    changed = (scales != 1).any(1)
    assert 0.72 < changed.mean() < 0.88
    assert scales[changed].min() >= 0.799 and scales[changed].max() <= 1.2
    assert abs(np.corrcoef(scales[changed].T)[0, 1]) < 0.2  # height and width independently


def test_inception_windows_respect_the_area_and_aspect_ranges():
    shape = tf.constant([240, 320])
    for number in range(100):
        seed = tf.constant([1, number], tf.int64)
        window = crops.inception_window(shape, seed, area=(0.08, 1.0), aspect=(0.5, 2.0)).numpy()
        top, left, height, width = window
        assert top >= 0 and left >= 0 and top + height <= 240 and left + width <= 320
        assert 0.07 <= height * width / (240 * 320) <= 1
        assert 0.48 <= width / height <= 2.08


def test_flip_mirrors_whole_clips_with_probability_one_half():
    frames = tf.constant(np.stack([gradient_image(8, 8)] * 3))
    flipped = 0
    for number in range(60):
        mirrored = crops.random_flip(tf.constant([0, number], tf.int64))
        result = crops.flip(frames, mirrored).numpy()
        if not np.array_equal(result, frames):
            assert np.array_equal(result, frames.numpy()[:, :, ::-1])
            flipped += 1
    assert 18 < flipped < 42


@pytest.mark.parametrize("length, steps, stride, number", [(250, 32, 2, 4), (20, 32, 2, 4)])
def test_evaluation_windows_are_evenly_spaced_and_short_clips_loop(length, steps, stride, number):
    starts = crops.window_starts(tf.constant(length), steps * stride, number).numpy()
    expected = np.floor(np.linspace(0, max(0, length - steps * stride), number))
    assert starts.tolist() == expected.tolist()
    index = crops.looped(tf.constant(starts), steps, stride, tf.constant(length)).numpy()
    assert index.shape == (number, steps)
    for start, indices in zip(starts, index, strict=True):
        tiled = np.tile(np.arange(length), 9)
        assert indices.tolist() == tiled[start : start + steps * stride : stride].tolist()


def test_a_single_evaluation_window_is_central():
    assert crops.window_starts(tf.constant(251), 64, 1).numpy().tolist() == [93]


def test_the_placeholder_of_a_missing_image_is_black():
    frames = crops.decode(tf.constant([crops.black_jpeg()]), count=1)
    resized = crops.resize(frames, (50, 40)).numpy()
    assert resized.shape == (1, 50, 40, 3) and not resized.any()


@tf.function(reduce_retracing=True)
def _resized_crops(shape, seeds, area):
    def one(seed):
        return crops.resized_crop_window(shape, seed, area=tf.unstack(area))

    return tf.map_fn(one, seeds, fn_output_signature=tf.int32)


def resized_crops(shape, area, number, seed=5):
    seeds = np.stack([np.full(number, seed), np.arange(number)], 1)
    shape, area = tf.constant(shape, tf.int32), tf.constant(area, tf.float64)
    return _resized_crops(shape, tf.constant(seeds, tf.int64), area).numpy()


def torchvision_crops(shape, area, number):
    """Samples RandomResizedCrop windows as torchvision's documentation describes them."""
    rng, (height, width) = np.random.default_rng(1), shape
    size = height * width * rng.uniform(*area, (number, 10))
    aspect = (4 / 3) ** rng.uniform(-1, 1, (number, 10))
    extents = np.rint(np.sqrt(np.stack([size / aspect, size * aspect], -1))).astype(int)
    fits = ((extents >= 1) & (extents <= shape)).all(-1)
    extent = extents[np.arange(number), fits.argmax(1)]
    if height * 3 > width * 4:
        largest = (round(width * 4 / 3), width)
    elif width * 3 > height * 4:
        largest = (height, round(height * 4 / 3))
    else:
        largest = shape
    any_fits = fits.any(1)[:, None]
    extent = np.where(any_fits, extent, largest)
    middle = (np.array(shape) - extent) // 2
    start = np.where(any_fits, rng.integers(0, np.array(shape) - extent + 1), middle)
    return np.concatenate([start, extent], 1)


@pytest.mark.parametrize(
    "shape, area",
    [
        ((224, 224), (0.2, 1.0)),
        ((300, 400), (0.5, 1.0)),
        ((60, 150), (0.2, 1.0)),
        ((9, 7), (0.08, 1)),
    ],
)
def test_resized_crops_are_distributed_like_those_of_torchvision(shape, area):
    stats = pytest.importorskip("scipy.stats")
    result, expected = resized_crops(shape, area, 3000), torchvision_crops(shape, area, 3000)
    assert (result[:, :2] >= 0).all() and (result[:, 2:] >= 1).all()
    assert (result[:, :2] + result[:, 2:] <= shape).all()
    measures = (
        lambda w: w[:, 2] * w[:, 3],
        lambda w: w[:, 3] / w[:, 2],
        lambda w: w[:, 0],
        lambda w: w[:, 1],
        lambda w: w[:, 0] * shape[0] + w[:, 1] * w[:, 3],  # correlation of position and size
    )
    for number, measure in enumerate(measures):
        test = stats.ks_2samp(measure(result), measure(expected))
        assert test.pvalue > 1e-3, (number, test)


@pytest.mark.parametrize(
    "shape, window",
    [
        ((40, 400), [0, 173, 40, 53]),
        ((400, 30), [180, 0, 40, 30]),
        ((1, 50), [0, 24, 1, 1]),
        ((1, 1), [0, 0, 1, 1]),
    ],
)
def test_the_fallback_crop_is_the_largest_central_one(shape, window):
    assert (resized_crops(shape, (1.0, 1.0), 5) == window).all()


def test_resized_crops_are_a_function_of_the_seed():
    a, b = (resized_crops((224, 224), (0.2, 1.0), 50, seed) for seed in (1, 2))
    assert np.array_equal(a, resized_crops((224, 224), (0.2, 1.0), 50, 1))
    assert (a != b).any(1).all() and len({tuple(window) for window in a}) == 50
