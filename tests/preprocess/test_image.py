"""Image augmentations against Pillow, SciPy and NumPy, and their random sampling."""

import colorsys
import itertools

import jax
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import scipy.ndimage

from mmjax.errors import UserError
from mmjax.preprocess import image as image_ops
from tests.messages import raises

KEY = jax.random.key(7)
BYTES = np.random.default_rng(0).integers(0, 256, (3, 12, 14, 3), np.uint8)
FLOATS = (BYTES / 255).astype(np.float32)


def jittered(x, **ranges):
    return np.asarray(image_ops.color_jitter(KEY, x, probability=1.0, **ranges))


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
def test_hue_is_shifted_in_hsv(turn):
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
        lambda key: image_ops.color_jitter(key, x, probability=1.0, order="batch", **RANGES)
    )
    for key in jax.random.split(KEY, 30):
        (order,) = {order_of(image, in_order) for image in np.asarray(jitter(key))}
        orders.add(order)
    assert len(orders) > 12


def test_factors_are_uniform_and_applied_with_the_given_probability():
    x = np.full((4000, 1, 1, 3), 0.5, np.float32)
    result = np.asarray(image_ops.color_jitter(KEY, x, probability=0.8, brightness=(0.8, 1.1)))
    factors = result[:, 0, 0, 0] / 0.5
    assert abs((factors == 1).mean() - 0.2) < 0.03
    sampled = factors[factors != 1]
    assert sampled.min() >= 0.8 - 1e-6 and sampled.max() <= 1.1 + 1e-6
    counts, _ = np.histogram(sampled, 6, (0.8, 1.1))
    assert np.abs(counts / counts.mean() - 1).max() < 0.2


def test_grayscale_matches_pillow():
    result = np.asarray(image_ops.grayscale(KEY, FLOATS, 1.0)) * 255
    for image, original in zip(result, BYTES, strict=True):
        expected = np.asarray(PIL.Image.fromarray(original).convert("L")).astype(float)
        assert np.abs(image - expected[..., None]).max() <= 0.51


@pytest.mark.parametrize(("kernel_size", "sigma"), [(9, 0.7), (5, 2.0), (1, 1.0)])
def test_blur_is_a_gaussian_with_mirrored_edges(kernel_size, sigma):
    half = kernel_size // 2
    result = image_ops.gaussian_blur(
        KEY, FLOATS, probability=1.0, kernel_size=kernel_size, sigma=(sigma, sigma)
    )
    expected = scipy.ndimage.gaussian_filter(
        FLOATS.astype(np.float64), (0, sigma, sigma, 0), mode="mirror", radius=(0, half, half, 0)
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("sigma_yx", [(0.1, 2.0), (1.5, 0.4)])
def test_blur_can_differ_between_vertical_and_horizontal(sigma_yx):
    result = image_ops.gaussian_blur(
        KEY, FLOATS, probability=1.0, kernel_size=15, sigma=(5.0, 5.0), sigma_yx=sigma_yx
    )
    expected = scipy.ndimage.gaussian_filter(
        FLOATS.astype(np.float64), (0, *sigma_yx, 0), mode="mirror", radius=(0, 7, 7, 0)
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_flips_and_quarter_turns_match_pillow():
    square = BYTES[:, :, :12]
    changes = {
        image_ops.horizontal_flip: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        image_ops.vertical_flip: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        image_ops.quarter_turn: PIL.Image.Transpose.ROTATE_90,
    }
    for change, method in changes.items():
        expected = [np.asarray(PIL.Image.fromarray(image).transpose(method)) for image in square]
        assert np.array_equal(change(KEY, square, 1.0), expected)


@pytest.mark.parametrize(
    ("change", "probability"),
    [
        (image_ops.horizontal_flip, 0.5),
        (image_ops.vertical_flip, 0.25),
        (image_ops.quarter_turn, 0.5),
        (image_ops.grayscale, 0.2),
        (lambda key, x, p: image_ops.gaussian_blur(key, x, probability=p, kernel_size=3), 0.5),
    ],
)
def test_each_image_is_changed_independently(change, probability):
    x = np.repeat(FLOATS[:1, :4, :4], 2000, axis=0)
    changed = (np.asarray(change(KEY, x, probability)) != x).any(axis=(1, 2, 3))
    assert abs(changed.mean() - probability) < 0.04
    again = (np.asarray(change(KEY, x, probability)) != x).any(axis=(1, 2, 3))
    assert np.array_equal(changed, again)
    other = (np.asarray(change(jax.random.key(8), x, probability)) != x).any(axis=(1, 2, 3))
    assert not np.array_equal(changed, other)


TVL_IMAGE = dict(
    mean=image_ops.CLIP_MEAN,
    std=image_ops.CLIP_STD,
    horizontal_flip=0.5,
    color_jitter=dict(brightness=(0.8, 1.1), contrast=(0.7, 1.3), saturation=(0.8, 1.2)),
    grayscale=0.2,
    blur=dict(kernel_size=9, sigma=(0.5, 1.0)),
)


def test_evaluation_only_normalizes_any_leading_dimensions():
    augment = image_ops.Augmentation.from_config(TVL_IMAGE, "augment.image")
    expected = (BYTES / 255 - np.array(image_ops.CLIP_MEAN)) / np.array(image_ops.CLIP_STD)
    np.testing.assert_allclose(augment(BYTES, key=None), expected, atol=1e-5)
    np.testing.assert_allclose(augment(BYTES[:, None], key=None)[:, 0], expected, atol=1e-5)
    plain = image_ops.Augmentation()
    np.testing.assert_allclose(plain(BYTES, key=KEY), BYTES / 255, atol=1e-6)


def test_training_augmentation_depends_only_on_the_key():
    augment = jax.jit(image_ops.Augmentation.from_config(TVL_IMAGE, "augment.image"))
    first, again = augment(BYTES, key=KEY), augment(BYTES, key=KEY)
    assert np.array_equal(first, again) and first.dtype == np.float32
    assert not np.array_equal(first, augment(BYTES, key=jax.random.key(8)))


def test_in_eval_augments_each_image_deterministically():
    augment = jax.jit(
        image_ops.Augmentation(horizontal_flip=0.5, in_eval=True), static_argnames="key"
    )
    x = np.random.default_rng(3).integers(0, 256, (40, 6, 5, 3), np.uint8)
    out = augment(x, key=None)
    flipped = (np.abs(out - x / 255) > 1e-3).any(axis=(1, 2, 3))
    assert 8 < flipped.sum() < 32 and np.array_equal(out, augment(x, key=None))
    np.testing.assert_array_equal(out[:7], augment(x[:7], key=None))  # independent of the batch
    np.testing.assert_array_equal(out[::-1], augment(x[::-1], key=None))


def test_in_eval_augments_an_image_and_its_background_identically():
    section = dict(horizontal_flip=0.5, subtract_background=True, in_eval=True)
    augment = image_ops.Augmentation.from_config(section, "augment.touch")
    x = np.random.default_rng(3).integers(0, 256, (20, 6, 5, 3), np.uint8)
    difference = (x - np.float32(BYTES[0, 0, 0])) / 255
    out = augment(x, np.broadcast_to(BYTES[0, 0, 0], x.shape), key=None)
    plain, mirrored = (
        (np.abs(out - expected) < 1e-4).all(axis=(1, 2, 3))
        for expected in (difference, difference[:, :, ::-1])
    )
    assert plain.any() and mirrored.any() and (plain | mirrored).all()


def test_backgrounds_are_color_jittered_with_their_image_and_subtracted():
    touch, background = BYTES[:, :, :12], np.roll(BYTES, 1, axis=0)[:, :, :12]
    section = dict(
        mean=image_ops.SUBTRACTED_MEAN, std=image_ops.SUBTRACTED_STD, subtract_background=True
    )
    augment = image_ops.Augmentation.from_config(section, "augment.touch")
    difference = touch / 255 - background / 255
    scaled = (difference - image_ops.SUBTRACTED_MEAN) / np.array(image_ops.SUBTRACTED_STD)
    for key in (None, KEY):
        np.testing.assert_allclose(augment(touch, background, key=key), scaled, atol=2e-4)

    jitter = dict(
        brightness=(0.5, 0.9), probability=1.0
    )  # no clipping, so each factor can be recovered
    augment = image_ops.Augmentation.from_config(
        dict(subtract_background=True, color_jitter=jitter, horizontal_flip=1.0), "augment.touch"
    )
    result = np.asarray(augment(touch, background, key=KEY))[:, :, ::-1]
    factors = [np.vdot(r, d) / np.vdot(d, d) for r, d in zip(result, difference, strict=True)]
    for image, factor, before in zip(result, factors, difference, strict=True):
        np.testing.assert_allclose(image, factor * before, atol=1e-5)
    assert len({round(factor, 4) for factor in factors}) == 3 and 0.5 <= min(factors) <= 0.9
    evaluated = augment(touch, background, key=None)
    np.testing.assert_allclose(evaluated, difference, atol=1e-6)


JITTER, BLUR = "augment.touch.color_jitter", "config.augment.touch.blur"


@pytest.mark.parametrize(
    ("section", "facts"),
    [
        (dict(flip=0.5), ("'augment.touch.flip'", "augment.touch.horizontal_flip")),
        (dict(where="x"), ("'augment.touch.where'", "augment.touch.horizontal_flip")),
        (dict(mean=0.5), ("config.augment.touch.mean", 0.5)),
        (dict(std=(1.0, 0.0, 1.0)), ("config.augment.touch.std=(1.0, 0.0, 1.0)", 0)),
        (dict(quarter_turn=1.5), ("config.augment.touch.quarter_turn=1.5", "[0, 1]")),
        (dict(color_jitter=dict(contrast=(1.2, 0.8))), (JITTER, "contrast=(1.2, 0.8)")),
        (dict(color_jitter=dict(hue=0.1)), (JITTER, "hue", 0.1)),
        (
            dict(color_jitter=dict(order="mixed")),
            (JITTER, "order='mixed'", "'random'", "'batch'", "'fixed'"),
        ),
        (dict(color_jitter=dict(gamma=1)), (f"'{JITTER}.gamma'", f"{JITTER}.saturation")),
        (dict(blur=dict(kernel_size=4)), (BLUR, "kernel_size=4", "odd")),
        (dict(blur=dict(sigma=(0.0, 1.0))), (BLUR, "sigma=(0.0, 1.0)", 0.001)),
        (dict(blur=dict(sigma_yx=(1.0, 0.0))), (BLUR, "sigma_yx=(1.0, 0.0)", 0.001)),
        (dict(blur=dict(sigma_yx=2.0)), (BLUR, "sigma_yx=2.0", "(vertical, horizontal)")),
    ],
)
def test_invalid_options_are_an_error(section, facts):
    with raises(UserError, *facts):
        image_ops.Augmentation.from_config(section, "augment.touch")


def test_subtraction_without_a_background_is_an_error():
    augment = image_ops.Augmentation(subtract_background=True, where="augment.touch")
    facts = ["config.augment.touch.subtract_background", "config.data.touch.background"]
    with raises(UserError, *facts, "'recording'"):
        augment(BYTES, key=None)


def test_a_blur_kernel_larger_than_the_image_is_an_error():
    with raises(UserError, "kernel_size=25", 24, 12):
        image_ops.gaussian_blur(KEY, FLOATS, kernel_size=25)
