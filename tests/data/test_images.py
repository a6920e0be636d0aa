"""Crops against numpy, and the window decoded in training against VATT's order of operations."""

import numpy as np
import pytest
import tensorflow as tf

from mmjax.data import images


def picture(height, width):
    """A smooth colourful picture whose every place looks different."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [128 + 90 * np.sin(x / 9 + y / 31), 255 * y / height, 255 * x / width]
    return np.stack(waves, -1).astype(np.uint8)


def jpeg(image):
    return tf.io.encode_jpeg(image, quality=98, chroma_downsampling=False).numpy()


def bilinear(image, height, width):
    """Half-pixel bilinear resizing of [H, W, C], from its definition."""

    def weights(old, new):
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, old - 1)
        matrix = np.zeros((new, old))
        np.add.at(matrix, (np.arange(new), low), 1 - (at - low))
        np.add.at(matrix, (np.arange(new), high), at - low)
        return matrix

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns)


def difference(a, b):
    return np.abs(np.asarray(a, np.int32) - np.asarray(b, np.int32))


@pytest.mark.parametrize("shape", [(45, 70), (70, 45), (20, 27), (32, 50)])
def test_resize_shortest_is_bilinear_and_truncated(shape):
    image = picture(*shape)
    got = images.resize_shortest(tf.constant(image[None]), 32).numpy()[0]
    height, width = [side * 32 // min(shape) for side in shape]
    assert got.shape == (height, width, 3) and got.dtype == np.uint8
    want = bilinear(image, height, width)
    assert (np.abs(got + 0.5 - want) < 0.5 + 1e-3).all()  # truncation: want - 1 < got <= want


def test_resize_leaves_the_right_size_alone_and_rounds_when_asked():
    image = picture(16, 16)[None]
    assert np.array_equal(images.resize(tf.constant(image), (16, 16)).numpy(), image)
    got = images.resize(tf.constant(image), (10, 13), rounded=True).numpy()[0]
    assert np.abs(got - bilinear(image[0], 10, 13)).max() <= 0.5 + 1e-3


def test_central_crop_and_its_margin():
    frames = np.stack([picture(37, 50)] * 2)
    got = images.central_crop(tf.constant(frames), 33).numpy()
    assert np.array_equal(got, frames[:, 2:35, 8:41])
    small = images.central_crop(tf.constant(frames[:, :24]), 32).numpy()
    assert not small[:, :4].any() and not small[:, 28:].any()
    assert np.array_equal(small[:, 4:28], frames[:, :24, 9:41])


@pytest.mark.parametrize("upright", [False, True])
def test_multi_crop_is_start_middle_end_of_the_longer_side(upright):
    frames = picture(32, 49)[None]
    frames = frames.transpose(0, 2, 1, 3) if upright else frames
    got = images.multi_crop(tf.constant(frames), 32).numpy()
    for crop, at in zip(got, (0, 8, 17), strict=True):
        want = frames[:, at : at + 32] if upright else frames[:, :, at : at + 32]
        assert np.array_equal(crop, want)


def test_decoding_a_window_equals_decoding_all():
    stored = [jpeg(picture(64, 80)), jpeg(picture(64, 80)[::-1])]
    window = tf.constant([16, 32, 24, 40])
    whole = images.decode(tf.constant(stored), number=2).numpy()
    part = images.decode(tf.constant(stored), window, number=2).numpy()
    assert np.array_equal(part, whole[:, 16:40, 32:72])
    loop = images.decode(tf.constant(stored), window).numpy()  # number unknown: a loop
    assert np.array_equal(loop, part)


def test_png_frames_decode_exactly_and_tell_their_size():
    image = picture(40, 56)
    stored = tf.constant([tf.io.encode_png(image).numpy()])
    assert images.encoded_size(stored[0]).numpy().tolist() == [40, 56]
    assert images.encoded_size(tf.constant(jpeg(image))).numpy().tolist() == [40, 56]
    assert np.array_equal(images.decode(stored, number=1).numpy()[0], image)
    part = images.decode(stored, tf.constant([3, 5, 20, 30]), number=1).numpy()[0]
    assert np.array_equal(part, image[3:23, 5:35])


@pytest.mark.parametrize("jitter", [False, True])
def test_vgg_window_shows_what_vatts_own_order_shows(jitter):
    """Decoding the window and resizing once, against jitter, resize and crop of the whole frame."""
    image = picture(120, 160)
    options = dict(size=64, min_resize=72, scale_jitter=jitter)
    offsets = set()
    for number in range(12):
        seed = tf.constant([5, number], tf.int64)
        window = images.vgg_window(tf.constant([120, 160]), seed, **options).numpy()
        top, left, height, width = window
        assert top >= 0 and left >= 0 and top + height <= 120 and left + width <= 160
        offsets.add((top, left))
        part = tf.constant(image[None, top : top + height, left : left + width])
        got = images.resize(part, (64, 64)).numpy()
        want = images.vgg_exact(tf.constant(image[None]), seed, **options).numpy()
        # Another window, even one a few pixels off, differs by far more (checked below).
        assert difference(got, want).mean() < 4.0
        off = np.roll(image, (6, 6), (0, 1))[None, top : top + height, left : left + width]
        moved = images.resize(tf.constant(off), (64, 64)).numpy()
        assert difference(moved, want).mean() > 2 * difference(got, want).mean()
    assert len(offsets) > 6


def test_scale_jitter_has_its_range_and_its_probability():
    shape = tf.constant([1000, 2000])
    draws = np.array(
        [images.jittered_size(shape, tf.constant([0, n], tf.int64)).numpy() for n in range(300)]
    ) / [1000, 2000]
    changed = (draws != 1).any(1)
    assert 0.72 < changed.mean() < 0.88
    assert draws[changed].min() >= 0.799 and draws[changed].max() <= 1.2
    assert abs(np.corrcoef(draws[changed].T)[0, 1]) < 0.2  # height and width independently


def test_inception_windows_keep_to_area_and_aspect():
    shape = tf.constant([240, 320])
    for number in range(100):
        seed = tf.constant([1, number], tf.int64)
        window = images.inception_window(shape, seed, area=(0.08, 1.0), aspect=(0.5, 2.0)).numpy()
        top, left, height, width = window
        assert top >= 0 and left >= 0 and top + height <= 240 and left + width <= 320
        assert 0.07 <= height * width / (240 * 320) <= 1
        assert 0.48 <= width / height <= 2.08


def test_flip_mirrors_whole_clips_every_other_time():
    frames = tf.constant(np.stack([picture(8, 8)] * 3))
    flipped = 0
    for number in range(60):
        wanted = images.drawn_flip(tf.constant([0, number], tf.int64))
        got = images.flip(frames, wanted).numpy()
        if not np.array_equal(got, frames):
            assert np.array_equal(got, frames.numpy()[:, :, ::-1])
            flipped += 1
    assert 18 < flipped < 42


@pytest.mark.parametrize("length, steps, stride, number", [(250, 32, 2, 4), (20, 32, 2, 4)])
def test_test_windows_are_spread_and_loop(length, steps, stride, number):
    starts = images.window_starts(tf.constant(length), steps * stride, number).numpy()
    want = np.floor(np.linspace(0, max(0, length - steps * stride), number))
    assert starts.tolist() == want.tolist()
    index = images.looped(tf.constant(starts), steps, stride, tf.constant(length)).numpy()
    assert index.shape == (number, steps)
    for start, row in zip(starts, index, strict=True):
        tiled = np.tile(np.arange(length), 9)
        assert row.tolist() == tiled[start : start + steps * stride : stride].tolist()


def test_one_test_window_is_the_middle_one():
    assert images.window_starts(tf.constant(251), 64, 1).numpy().tolist() == [93]


def test_the_stand_in_for_a_missing_picture_stays_black():
    frames = images.decode(tf.constant([images.black_jpeg()]), number=1)
    assert not images.resize(frames, (50, 40)).numpy().any()


@tf.function(reduce_retracing=True)
def _resized_crops(shape, seeds, area):
    def one(seed):
        return images.resized_crop_window(shape, seed, area=tf.unstack(area))

    return tf.map_fn(one, seeds, fn_output_signature=tf.int32)


def resized_crops(shape, area, number, seed=5):
    seeds = np.stack([np.full(number, seed), np.arange(number)], 1)
    shape, area = tf.constant(shape, tf.int32), tf.constant(area, tf.float64)
    return _resized_crops(shape, tf.constant(seeds, tf.int64), area).numpy()


def torchvision_crops(shape, area, number):
    """RandomResizedCrop by its description, all windows at once."""
    draw, (height, width) = np.random.default_rng(1), shape
    size = height * width * draw.uniform(*area, (number, 10))
    aspect = (4 / 3) ** draw.uniform(-1, 1, (number, 10))
    extents = np.rint(np.sqrt(np.stack([size / aspect, size * aspect], -1))).astype(int)
    fits = ((extents >= 1) & (extents <= shape)).all(-1)
    extent = extents[np.arange(number), fits.argmax(1)]
    if height * 3 > width * 4:
        largest = (round(width * 4 / 3), width)
    elif width * 3 > height * 4:
        largest = (height, round(height * 4 / 3))
    else:
        largest = shape
    found = fits.any(1)[:, None]
    extent = np.where(found, extent, largest)
    middle = (np.array(shape) - extent) // 2
    start = np.where(found, draw.integers(0, np.array(shape) - extent + 1), middle)
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
def test_resized_crops_are_distributed_as_torchvisions(shape, area):
    stats = pytest.importorskip("scipy.stats")
    got, want = resized_crops(shape, area, 3000), torchvision_crops(shape, area, 3000)
    assert (got[:, :2] >= 0).all() and (got[:, 2:] >= 1).all()
    assert (got[:, :2] + got[:, 2:] <= shape).all()
    measures = (
        lambda w: w[:, 2] * w[:, 3],
        lambda w: w[:, 3] / w[:, 2],
        lambda w: w[:, 0],
        lambda w: w[:, 1],
        lambda w: w[:, 0] * shape[0] + w[:, 1] * w[:, 3],  # whether they go together
    )
    for number, measure in enumerate(measures):
        test = stats.ks_2samp(measure(got), measure(want))
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
def test_where_no_crop_fits_it_is_the_largest_in_the_middle(shape, window):
    assert (resized_crops(shape, (1.0, 1.0), 5) == window).all()


def test_resized_crops_of_other_seeds_are_others():
    a, b = (resized_crops((224, 224), (0.2, 1.0), 50, seed) for seed in (1, 2))
    assert np.array_equal(a, resized_crops((224, 224), (0.2, 1.0), 50, 1))
    assert (a != b).any(1).all() and len({tuple(window) for window in a}) == 50
