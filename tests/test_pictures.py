"""Augmentations of pictures against PIL, scipy and numpy, and when they are drawn."""

import colorsys
import itertools

import jax
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import scipy.ndimage

from mmjax import pictures
from mmjax.errors import UserError

KEY = jax.random.key(7)
BYTES = np.random.default_rng(0).integers(0, 256, (3, 12, 14, 3), np.uint8)
FLOATS = (BYTES / 255).astype(np.float32)


def jittered(x, **ranges):
    return np.asarray(pictures.color_jitter(KEY, x, probability=1.0, **ranges))


@pytest.mark.parametrize(
    "name, enhance",
    [
        ("brightness", PIL.ImageEnhance.Brightness),
        ("contrast", PIL.ImageEnhance.Contrast),
        ("saturation", PIL.ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("factor", [0.0, 0.6, 1.3])
def test_blends_are_those_of_pil(name, enhance, factor):
    got = jittered(FLOATS, **{name: (factor, factor)}) * 255
    for row, image in zip(got, BYTES, strict=True):
        want = np.asarray(enhance(PIL.Image.fromarray(image)).enhance(factor)).astype(float)
        assert np.abs(row - want).max() <= 1.5  # PIL rounds its greys and its results


@pytest.mark.parametrize("turn", [-0.3, 0.05, 0.5])
def test_hue_is_turned_in_hsv(turn):
    got = jittered(FLOATS[:1], hue=(turn, turn))[0].reshape(-1, 3)
    for pixel, before in zip(got, FLOATS[0].reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.tolist())
        want = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        np.testing.assert_allclose(pixel, want, atol=1e-5)


RANGES = dict(brightness=(0.6, 0.6), contrast=(1.5, 1.5), saturation=(0.3, 0.3), hue=(0.2, 0.2))


@pytest.fixture(scope="module")
def in_order():
    """{order of colour operations: the first picture after them}."""
    candidates = {}
    for order in itertools.permutations(RANGES):
        row = FLOATS[:1]
        for name in order:
            row = jittered(row, **{name: RANGES[name]})
        candidates[order] = row[0]
    return candidates


def order_of(row, in_order):
    errors = {order: np.abs(row - want).max() for order, want in in_order.items()}
    best = min(errors, key=errors.get)
    assert errors[best] < 1e-5
    return best


def test_each_picture_has_an_order_of_its_own(in_order):
    x = np.repeat(FLOATS[:1], 100, axis=0)
    assert len({order_of(row, in_order) for row in jittered(x, **RANGES)}) > 15
    fixed = jittered(x, **RANGES, order="fixed")
    np.testing.assert_allclose(fixed, np.stack([in_order[tuple(RANGES)]] * 100), atol=1e-5)


def test_all_pictures_of_a_batch_can_have_one_order(in_order):
    x, seen = np.repeat(FLOATS[:1], 6, axis=0), set()
    jitter = jax.jit(
        lambda key: pictures.color_jitter(key, x, probability=1.0, order="batch", **RANGES)
    )
    for key in jax.random.split(KEY, 30):
        (order,) = {order_of(row, in_order) for row in np.asarray(jitter(key))}
        seen.add(order)
    assert len(seen) > 12


def test_factors_are_uniform_in_their_range_and_a_fifth_stays():
    x = np.full((4000, 1, 1, 3), 0.5, np.float32)
    got = np.asarray(pictures.color_jitter(KEY, x, probability=0.8, brightness=(0.8, 1.1)))
    factors = got[:, 0, 0, 0] / 0.5
    assert abs((factors == 1).mean() - 0.2) < 0.03
    drawn = factors[factors != 1]
    assert drawn.min() >= 0.8 - 1e-6 and drawn.max() <= 1.1 + 1e-6
    counts, _ = np.histogram(drawn, 6, (0.8, 1.1))
    assert np.abs(counts / counts.mean() - 1).max() < 0.2


def test_greys_are_those_of_pil():
    got = np.asarray(pictures.grayscale(KEY, FLOATS, 1.0)) * 255
    for row, image in zip(got, BYTES, strict=True):
        want = np.asarray(PIL.Image.fromarray(image).convert("L")).astype(float)
        assert np.abs(row - want[..., None]).max() <= 0.51


@pytest.mark.parametrize("kernel_size, sigma", [(9, 0.7), (5, 2.0), (1, 1.0)])
def test_blur_is_a_gaussian_over_mirrored_edges(kernel_size, sigma):
    half = kernel_size // 2
    got = pictures.gaussian_blur(
        KEY, FLOATS, probability=1.0, kernel_size=kernel_size, sigma=(sigma, sigma)
    )
    want = scipy.ndimage.gaussian_filter(
        FLOATS.astype(np.float64), (0, sigma, sigma, 0), mode="mirror", radius=(0, half, half, 0)
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("sigma_yx", [(0.1, 2.0), (1.5, 0.4)])
def test_blur_may_differ_between_rows_and_columns(sigma_yx):
    got = pictures.gaussian_blur(
        KEY, FLOATS, probability=1.0, kernel_size=15, sigma=(5.0, 5.0), sigma_yx=sigma_yx
    )
    want = scipy.ndimage.gaussian_filter(
        FLOATS.astype(np.float64), (0, *sigma_yx, 0), mode="mirror", radius=(0, 7, 7, 0)
    )
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_flips_and_turns_are_those_of_pil():
    square = BYTES[:, :, :12]
    changes = {
        pictures.horizontal_flip: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        pictures.vertical_flip: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        pictures.quarter_turn: PIL.Image.Transpose.ROTATE_90,
    }
    for change, method in changes.items():
        want = [np.asarray(PIL.Image.fromarray(image).transpose(method)) for image in square]
        assert np.array_equal(change(KEY, square, 1.0), want)


@pytest.mark.parametrize(
    "change, probability",
    [
        (pictures.horizontal_flip, 0.5),
        (pictures.vertical_flip, 0.25),
        (pictures.quarter_turn, 0.5),
        (pictures.grayscale, 0.2),
        (lambda key, x, p: pictures.gaussian_blur(key, x, probability=p, kernel_size=3), 0.5),
    ],
)
def test_each_picture_is_changed_on_its_own(change, probability):
    x = np.repeat(FLOATS[:1, :4, :4], 2000, axis=0)
    changed = (np.asarray(change(KEY, x, probability)) != x).any(axis=(1, 2, 3))
    assert abs(changed.mean() - probability) < 0.04
    again = (np.asarray(change(KEY, x, probability)) != x).any(axis=(1, 2, 3))
    assert np.array_equal(changed, again)
    other = (np.asarray(change(jax.random.key(8), x, probability)) != x).any(axis=(1, 2, 3))
    assert not np.array_equal(changed, other)


TVL_IMAGE = dict(
    mean=pictures.CLIP_MEAN,
    std=pictures.CLIP_STD,
    horizontal_flip=0.5,
    color_jitter=dict(brightness=(0.8, 1.1), contrast=(0.7, 1.3), saturation=(0.8, 1.2)),
    grayscale=0.2,
    blur=dict(kernel_size=9, sigma=(0.5, 1.0)),
)


def test_evaluation_only_normalises_and_takes_any_leading_dimensions():
    augment = pictures.Augmentation.from_config(TVL_IMAGE, "augment.image")
    want = (BYTES / 255 - np.array(pictures.CLIP_MEAN)) / np.array(pictures.CLIP_STD)
    np.testing.assert_allclose(augment(BYTES, key=None), want, atol=1e-5)
    np.testing.assert_allclose(augment(BYTES[:, None], key=None)[:, 0], want, atol=1e-5)
    plain = pictures.Augmentation()
    np.testing.assert_allclose(plain(BYTES, key=KEY), BYTES / 255, atol=1e-6)


def test_training_augments_and_is_a_function_of_the_key():
    augment = jax.jit(pictures.Augmentation.from_config(TVL_IMAGE, "augment.image"))
    first, again = augment(BYTES, key=KEY), augment(BYTES, key=KEY)
    assert np.array_equal(first, again) and first.dtype == np.float32
    assert not np.array_equal(first, augment(BYTES, key=jax.random.key(8)))


def test_evaluation_augments_if_asked_and_gives_the_same_each_time():
    augment = jax.jit(
        pictures.Augmentation(horizontal_flip=0.5, in_eval=True), static_argnames="key"
    )
    x = np.random.default_rng(3).integers(0, 256, (40, 6, 5, 3), np.uint8)
    out = augment(x, key=None)
    flipped = (np.abs(out - x / 255) > 1e-3).any(axis=(1, 2, 3))
    assert 8 < flipped.sum() < 32 and np.array_equal(out, augment(x, key=None))
    np.testing.assert_array_equal(out[:7], augment(x[:7], key=None))  # whatever the batch
    np.testing.assert_array_equal(out[::-1], augment(x[::-1], key=None))


def test_evaluation_augments_a_picture_and_its_background_alike():
    section = dict(horizontal_flip=0.5, subtract_background=True, in_eval=True)
    augment = pictures.Augmentation.from_config(section, "augment.touch")
    x = np.random.default_rng(3).integers(0, 256, (20, 6, 5, 3), np.uint8)
    difference = (x - np.float32(BYTES[0, 0, 0])) / 255
    out = augment(x, np.broadcast_to(BYTES[0, 0, 0], x.shape), key=None)
    plain, mirrored = (
        (np.abs(out - wanted) < 1e-4).all(axis=(1, 2, 3))
        for wanted in (difference, difference[:, :, ::-1])
    )
    assert plain.any() and mirrored.any() and (plain | mirrored).all()


def test_backgrounds_change_colour_with_their_picture_and_are_subtracted():
    touch, calm = BYTES[:, :, :12], np.roll(BYTES, 1, axis=0)[:, :, :12]
    section = dict(
        mean=pictures.SUBTRACTED_MEAN, std=pictures.SUBTRACTED_STD, subtract_background=True
    )
    augment = pictures.Augmentation.from_config(section, "augment.touch")
    difference = touch / 255 - calm / 255
    scaled = (difference - pictures.SUBTRACTED_MEAN) / np.array(pictures.SUBTRACTED_STD)
    for key in (None, KEY):
        np.testing.assert_allclose(augment(touch, calm, key=key), scaled, atol=2e-4)

    jitter = dict(brightness=(0.5, 0.9), probability=1.0)  # nothing is clipped: a factor is seen
    augment = pictures.Augmentation.from_config(
        dict(subtract_background=True, color_jitter=jitter, horizontal_flip=1.0), "augment.touch"
    )
    got = np.asarray(augment(touch, calm, key=KEY))[:, :, ::-1]
    factors = [np.vdot(g, d) / np.vdot(d, d) for g, d in zip(got, difference, strict=True)]
    for row, factor, before in zip(got, factors, difference, strict=True):
        np.testing.assert_allclose(row, factor * before, atol=1e-5)
    assert len({round(factor, 4) for factor in factors}) == 3 and 0.5 <= min(factors) <= 0.9
    evaluated = augment(touch, calm, key=None)
    np.testing.assert_allclose(evaluated, difference, atol=1e-6)


@pytest.mark.parametrize(
    "section, message",
    [
        (dict(flip=0.5), "augment.touch.flip"),
        (dict(where="x"), "augment.touch.where"),
        (dict(mean=0.5), r"config.augment.touch.mean=0.5 must be three numbers"),
        (dict(std=(1.0, 0.0, 1.0)), "std=.* above 0"),
        (dict(quarter_turn=1.5), "quarter_turn=1.5 must be a probability"),
        (dict(color_jitter=dict(contrast=(1.2, 0.8))), r"color_jitter: contrast=\(1.2, 0.8\)"),
        (dict(color_jitter=dict(hue=0.1)), r"hue=0.1 must be \(low, high\) with -0.5 <= low"),
        (dict(color_jitter=dict(order="mixed")), "order='mixed' must be 'random', 'batch' or"),
        (dict(color_jitter=dict(gamma=1)), "augment.touch.color_jitter.gamma"),
        (dict(blur=dict(kernel_size=4)), "config.augment.touch.blur: kernel_size=4 must be odd"),
        (dict(blur=dict(sigma=(0.0, 1.0))), r"blur: sigma=\(0.0, 1.0\)"),
        (dict(blur=dict(sigma_yx=(1.0, 0.0))), r"blur: sigma_yx=\(1.0, 0.0\) must be"),
        (dict(blur=dict(sigma_yx=2.0)), r"sigma_yx=2.0 must be \(vertical, horizontal\)"),
    ],
)
def test_wrong_options_are_named(section, message):
    with pytest.raises(UserError, match=message):
        pictures.Augmentation.from_config(section, "augment.touch")


def test_a_missing_background_and_a_kernel_larger_than_the_picture():
    augment = pictures.Augmentation(subtract_background=True, where="augment.touch")
    with pytest.raises(UserError, match="set config.data.touch.background to a file"):
        augment(BYTES, key=None)
    with pytest.raises(UserError, match="below 24 for pictures of 12 pixels"):
        pictures.gaussian_blur(KEY, FLOATS, kernel_size=25)
