"""Colors against Pillow, Matplotlib and colorsys, and the sampling of both color jitters."""

import colorsys
import itertools

import jax
import matplotlib.colors
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import scipy.optimize

from mmjax.preprocess import color
from tests.messages import raises

KEY = jax.random.key(7)
BYTES = np.random.default_rng(0).integers(0, 256, (3, 12, 14, 3), np.uint8)
FLOATS = (BYTES / 255).astype(np.float32)


def clips(count=3, seed=0):
    """Returns random [count, T, H, W, 3] in [0, 1] with gray, black and white pixels."""
    video = np.random.default_rng(seed).random((count, 2, 6, 5, 3)).astype(np.float32)
    video[:, :, 0] = video[:, :, 0, :, :1]
    video[:, :, 1] = 0
    video[:, :, 2] = 1
    return video


def jitter(video, **options):
    return jax.jit(color.DMVRColorJitter(**options))(jax.random.key(0), video)


def test_to_float_maps_uint8_to_the_unit_range():
    frames = np.array([0, 51, 255], np.uint8)
    np.testing.assert_allclose(color.to_float(frames, zero_centered=True), [-1, -0.6, 1], atol=1e-6)
    unit = color.to_float(frames)
    np.testing.assert_allclose(unit, [0, 0.2, 1], atol=1e-6)
    with raises(TypeError, "uint8", "float32"):
        color.to_float(frames.astype(np.float32))


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.4])
def test_saturation_is_scaled_in_hsv(factor):
    hsv = matplotlib.colors.rgb_to_hsv(clips())
    hsv[..., 1] = np.clip(hsv[..., 1] * factor, 0, 1)
    result = color.adjust_saturation(clips(), factor)
    np.testing.assert_allclose(result, matplotlib.colors.hsv_to_rgb(hsv), atol=1e-6)


@pytest.mark.parametrize("turn", [-0.2, 0.13, 0.5, 1.0])
def test_hue_is_shifted_in_hsv(turn):
    hsv = matplotlib.colors.rgb_to_hsv(clips())
    hsv[..., 0] = (hsv[..., 0] + turn) % 1.0
    result = color.adjust_hue(clips(), turn)
    np.testing.assert_allclose(result, matplotlib.colors.hsv_to_rgb(hsv), atol=2e-6)


def test_contrast_scales_each_frame_around_its_mean():
    video = clips()
    result = np.asarray(color.adjust_contrast(video, 0.5))
    np.testing.assert_allclose(result.mean((2, 3)), video.mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(result.std((2, 3)), 0.5 * video.std((2, 3)), atol=1e-6)


def reference_jitter(video, brightness, saturation, contrast, hue):
    """Color jitter of one clip with `colorsys`, in the published order of operations."""
    video = video.astype(np.float64) + brightness
    colors = [colorsys.rgb_to_hsv(*rgb) for rgb in video.reshape(-1, 3)]
    colors = [colorsys.hsv_to_rgb(h, min(s * saturation, 1), v) for h, s, v in colors]
    video = np.reshape(colors, video.shape)
    mean = video.mean((1, 2), keepdims=True)
    video = (video - mean) * contrast + mean
    colors = [colorsys.rgb_to_hsv(*rgb) for rgb in video.reshape(-1, 3)]
    colors = [colorsys.hsv_to_rgb((h + hue) % 1, s, v) for h, s, v in colors]
    return np.clip(np.reshape(colors, video.shape), 0, 1)


def test_dmvr_color_jitter_applies_operations_in_the_published_order():
    # Degenerate ranges fix two of the samples. An optimizer recovers the other two.
    video = 0.3 + 0.4 * clips(1)
    fixed = dict(probability=1.0, saturation=(1.3, 1.3), contrast=(0.7, 0.7))
    result = jitter(video, brightness=0.0, hue=0.0, **fixed)
    np.testing.assert_allclose(result[0], reference_jitter(video[0], 0, 1.3, 0.7, 0), atol=2e-6)

    result = np.asarray(jitter(video, brightness=0.1, hue=0.2, **fixed))[0]

    def distance(samples):
        return np.abs(reference_jitter(video[0], samples[0], 1.3, 0.7, samples[1]) - result).max()

    grid = [(b, h) for b in np.linspace(-0.1, 0.1, 5) for h in np.linspace(-0.2, 0.2, 9)]
    fit = scipy.optimize.minimize(distance, min(grid, key=distance), method="Nelder-Mead")
    assert fit.fun < 1e-3 and np.all(np.abs(fit.x) < (0.1, 0.2))
    assert max(map(distance, grid)) > 0.2


def test_dmvr_color_jitter_is_sampled_once_per_clip():
    frame = clips(1)[:, :1]
    video = np.broadcast_to(frame, (64, 4, *frame.shape[2:])).copy()
    result = np.asarray(jitter(video))
    assert result.min() >= 0 and result.max() <= 1
    np.testing.assert_allclose(
        result, result[:, :1].repeat(4, axis=1), atol=1e-6
    )  # all frames are equal
    changed = np.abs(result - video).max((1, 2, 3, 4)) > 1e-3
    assert 0.65 < changed.mean() < 0.95  # 0.8 expected
    first, second = result[changed][:2]
    assert np.abs(first - second).max() > 1e-2  # clips differ
    np.testing.assert_array_equal(result, jitter(video))
    np.testing.assert_array_equal(jitter(video, probability=0.0), video)


def test_dmvr_color_jitter_accepts_any_leading_dimensions():
    video = clips(4)
    views = jitter(video.reshape(2, 2, *video.shape[1:]))
    np.testing.assert_allclose(views.reshape(video.shape), jitter(video), atol=1e-6)
    assert jax.eval_shape(color.DMVRColorJitter(), KEY, video[0]).shape == video[0].shape


def keys_of(x, key=KEY):
    """Returns one key per image."""
    return jax.random.split(key, len(x))


def jittered(x, **ranges):
    jitter = color.ColorJitter(probability=1.0, **ranges)
    return np.asarray(jitter(keys_of(x), x, batch_key=KEY))


@pytest.mark.parametrize(
    ("name", "enhance"),
    [
        ("brightness", PIL.ImageEnhance.Brightness),
        ("contrast", PIL.ImageEnhance.Contrast),
        ("saturation", PIL.ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.3])
def test_brightness_contrast_and_saturation_match_pillow(name, enhance, factor):
    result = jittered(FLOATS, **{name: (factor, factor)}) * 255
    for image, original in zip(result, BYTES, strict=True):
        expected = np.asarray(enhance(PIL.Image.fromarray(original)).enhance(factor)).astype(float)
        assert np.abs(image - expected).max() <= 1.5  # Pillow rounds its gray values and results


@pytest.mark.parametrize("turn", [-0.3, 0.05, 0.5])
def test_hue_of_color_jitter_is_shifted_in_hsv(turn):
    result = jittered(FLOATS[:1], hue=(turn, turn))[0].reshape(-1, 3)
    for pixel, before in zip(result, FLOATS[0].reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        np.testing.assert_allclose(pixel, expected, atol=1e-5)


RANGES = dict(brightness=(0.6, 0.6), contrast=(1.5, 1.5), saturation=(0.3, 0.3), hue=(0.2, 0.2))


@pytest.fixture(scope="module")
def in_order():
    """The first image after all orders of color operations: {order: image}."""
    candidates = {}
    for order in itertools.permutations(RANGES):
        image = FLOATS[:1]
        for name in order:
            image = jittered(image, **{name: RANGES[name]})
        candidates[order] = image[0]
    return candidates


def order_of(image, in_order):
    errors = {order: np.abs(image - expected).max() for order, expected in in_order.items()}
    best = min(errors, key=errors.get)
    assert errors[best] < 1e-5
    return best


def test_the_order_of_color_operations_is_sampled_per_image(in_order):
    x = np.repeat(FLOATS[:1], 100, axis=0)
    assert len({order_of(image, in_order) for image in jittered(x, **RANGES)}) > 15
    fixed = jittered(x, **RANGES, order="fixed")
    np.testing.assert_allclose(fixed, np.stack([in_order[tuple(RANGES)]] * 100), atol=1e-5)


def test_the_order_of_color_operations_can_be_sampled_per_batch(in_order):
    x, orders = np.repeat(FLOATS[:1], 6, axis=0), set()
    jitter = jax.jit(
        lambda key: color.ColorJitter(probability=1.0, order="batch", **RANGES)(
            keys_of(x, key), x, batch_key=key
        )
    )
    for key in jax.random.split(KEY, 30):
        (order,) = {order_of(image, in_order) for image in np.asarray(jitter(key))}
        orders.add(order)
    assert len(orders) > 12


def test_factors_are_uniform_and_applied_with_the_given_probability():
    x = np.full((4000, 1, 1, 3), 0.5, np.float32)
    result = np.asarray(color.ColorJitter(probability=0.8, brightness=(0.8, 1.1))(keys_of(x), x))
    factors = result[:, 0, 0, 0] / 0.5
    assert abs((factors == 1).mean() - 0.2) < 0.03
    sampled = factors[factors != 1]
    assert sampled.min() >= 0.8 - 1e-6 and sampled.max() <= 1.1 + 1e-6
    counts, _ = np.histogram(sampled, 6, (0.8, 1.1))
    assert np.abs(counts / counts.mean() - 1).max() < 0.2


def test_grayscale_matches_pillow():
    result = np.asarray(color.grayscale(keys_of(FLOATS), FLOATS, 1.0)) * 255
    for image, original in zip(result, BYTES, strict=True):
        expected = np.asarray(PIL.Image.fromarray(original).convert("L")).astype(float)
        assert np.abs(image - expected[..., None]).max() <= 0.51
