"""Image augmentations against Pillow, SciPy and NumPy, and their random sampling."""

import jax
import numpy as np
import PIL.Image
import pytest
import scipy.ndimage

from mmjax.errors import UserError
from mmjax.pixel_statistics import CLIP_MEAN, CLIP_STD, SUBTRACTED_MEAN, SUBTRACTED_STD
from mmjax.preprocess import color, image
from tests.messages import raises

KEY = jax.random.key(7)
BYTES = np.random.default_rng(0).integers(0, 256, (3, 12, 14, 3), np.uint8)
FLOATS = (BYTES / 255).astype(np.float32)


def keys_of(x, key=KEY):
    """Returns one key per image."""
    return jax.random.split(key, len(x))


@pytest.mark.parametrize(("kernel_size", "sigma"), [(9, 0.7), (5, 2.0), (1, 1.0)])
def test_blur_is_a_gaussian_with_mirrored_edges(kernel_size, sigma):
    half = kernel_size // 2
    blur = image.GaussianBlur(probability=1.0, kernel_size=kernel_size, sigma=(sigma, sigma))
    result = jax.jit(blur)(keys_of(FLOATS), FLOATS)
    expected = scipy.ndimage.gaussian_filter(
        FLOATS.astype(np.float64), (0, sigma, sigma, 0), mode="mirror", radius=(0, half, half, 0)
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("sigma_yx", [(0.1, 2.0), (1.5, 0.4)])
def test_blur_can_differ_between_vertical_and_horizontal(sigma_yx):
    blur = image.GaussianBlur(probability=1.0, kernel_size=15, sigma=(5.0, 5.0), sigma_yx=sigma_yx)
    result = jax.jit(blur)(keys_of(FLOATS), FLOATS)
    expected = scipy.ndimage.gaussian_filter(
        FLOATS.astype(np.float64), (0, *sigma_yx, 0), mode="mirror", radius=(0, 7, 7, 0)
    )
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_flips_and_quarter_turns_match_pillow():
    square = BYTES[:, :, :12]
    changes = {
        image.horizontal_flip: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        image.vertical_flip: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        image.quarter_turn: PIL.Image.Transpose.ROTATE_90,
    }
    for change, method in changes.items():
        expected = [np.asarray(PIL.Image.fromarray(x).transpose(method)) for x in square]
        assert np.array_equal(change(keys_of(square), square, 1.0), expected)


@pytest.mark.parametrize(
    ("change", "probability"),
    [
        (image.horizontal_flip, 0.5),
        (image.vertical_flip, 0.25),
        (image.quarter_turn, 0.5),
        (color.grayscale, 0.2),
        (lambda keys, x, p: image.GaussianBlur(probability=p, kernel_size=3)(keys, x), 0.5),
    ],
)
def test_each_image_is_changed_independently(change, probability):
    x = np.repeat(FLOATS[:1, :4, :4], 2000, axis=0)

    @jax.jit
    def run(key):
        return change(keys_of(x, key), x, probability)

    def is_changed(key):
        return (np.asarray(run(key)) != x).any(axis=(1, 2, 3))

    changed, again, other = is_changed(KEY), is_changed(KEY), is_changed(jax.random.key(8))
    assert abs(changed.mean() - probability) < 0.04
    assert np.array_equal(changed, again)
    assert not np.array_equal(changed, other)


TVL_IMAGE = dict(
    mean=CLIP_MEAN,
    std=CLIP_STD,
    horizontal_flip=0.5,
    color_jitter=dict(brightness=(0.8, 1.1), contrast=(0.7, 1.3), saturation=(0.8, 1.2)),
    grayscale=0.2,
    blur=dict(kernel_size=9, sigma=(0.5, 1.0)),
)


def test_evaluation_only_normalizes_any_leading_dimensions():
    augment = jax.jit(image.Augmentation.from_config(TVL_IMAGE, "augment.image"))
    expected = (BYTES / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    np.testing.assert_allclose(augment(BYTES, key=None), expected, atol=1e-5)
    np.testing.assert_allclose(augment(BYTES[:, None], key=None)[:, 0], expected, atol=1e-5)
    plain = image.Augmentation()
    np.testing.assert_allclose(plain(BYTES, key=KEY), BYTES / 255, atol=1e-6)


def test_training_augmentation_depends_only_on_the_key():
    augment = jax.jit(image.Augmentation.from_config(TVL_IMAGE, "augment.image"))
    first, again = augment(BYTES, key=KEY), augment(BYTES, key=KEY)
    assert np.array_equal(first, again) and first.dtype == np.float32
    assert not np.array_equal(first, augment(BYTES, key=jax.random.key(8)))


def augmented(augment, x, ids, key, background=None, **batch):
    batch = dict(batch, example_id=np.asarray(ids, np.int32))
    return np.asarray(augment(x, background, key=key, batch=batch))


STRONG = dict(
    TVL_IMAGE, vertical_flip=0.5, blur=dict(kernel_size=3), color_jitter=dict(hue=(-0.1, 0.1))
)


@pytest.mark.parametrize("in_eval", [False, True])
def test_augmentation_depends_on_the_example_and_not_on_its_neighbors(in_eval):
    augment = jax.jit(image.Augmentation(**STRONG, in_eval=in_eval))
    key = None if in_eval else KEY
    x = np.random.default_rng(3).integers(0, 256, (12, 6, 6, 3), np.uint8)
    ids = np.arange(100, 112)
    whole = augmented(augment, x, ids, key)
    for part in (slice(None, None, -1), slice(3, 8), slice(7, 8)):
        np.testing.assert_allclose(
            augmented(augment, x[part], ids[part], key), whole[part], atol=1e-5
        )
    # The same pixels with other ids are augmented differently.
    same = np.repeat(x[:1], 12, axis=0)
    assert len({out.tobytes() for out in augmented(augment, same, ids, key)}) > 6
    assert len({out.tobytes() for out in augmented(augment, same, [5] * 12, key)}) == 1


def test_augmentation_changes_with_the_step_and_the_source():
    augment = jax.jit(image.Augmentation(**STRONG))
    x, ids = np.repeat(BYTES[:1], 8, axis=0), np.arange(8)
    first = augmented(augment, x, ids, KEY)
    assert not np.array_equal(first, augmented(augment, x, ids, jax.random.key(8)))
    sources = [augmented(augment, x, ids, KEY, source=np.full(8, n)) for n in (0, 1)]
    assert not np.array_equal(*sources)


def test_without_example_ids_the_position_in_the_batch_selects_the_augmentation():
    augment = jax.jit(image.Augmentation(**STRONG))
    expected = augmented(augment, BYTES, np.arange(3), KEY)
    assert np.array_equal(augment(BYTES, key=KEY), expected)


def test_in_eval_flips_some_images_the_same_in_each_evaluation():
    augment = jax.jit(image.Augmentation(horizontal_flip=0.5, in_eval=True))
    x = np.random.default_rng(3).integers(0, 256, (40, 6, 5, 3), np.uint8)
    out = augmented(augment, x, np.arange(40), None)
    flipped = (np.abs(out - x / 255) > 1e-3).any(axis=(1, 2, 3))
    assert 8 < flipped.sum() < 32
    assert np.array_equal(out, augmented(augment, x, np.arange(40), None))


def test_in_eval_augments_an_image_and_its_background_identically():
    section = dict(horizontal_flip=0.5, subtract_background=True, in_eval=True)
    augment = jax.jit(image.Augmentation.from_config(section, "augment.touch"))
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
        mean=SUBTRACTED_MEAN,
        std=SUBTRACTED_STD,
        subtract_background=True,
    )
    augment = jax.jit(image.Augmentation.from_config(section, "augment.touch"))
    difference = touch / 255 - background / 255
    scaled = (difference - SUBTRACTED_MEAN) / np.array(SUBTRACTED_STD)
    for key in (None, KEY):
        np.testing.assert_allclose(augment(touch, background, key=key), scaled, atol=2e-4)

    jitter = dict(
        brightness=(0.5, 0.9), probability=1.0
    )  # no clipping, so each factor can be recovered
    section = dict(subtract_background=True, color_jitter=jitter, horizontal_flip=1.0)
    augment = jax.jit(image.Augmentation.from_config(section, "augment.touch"))
    result = np.asarray(augment(touch, background, key=KEY))[:, :, ::-1]
    factors = [np.vdot(r, d) / np.vdot(d, d) for r, d in zip(result, difference, strict=True)]
    for jittered, factor, before in zip(result, factors, difference, strict=True):
        np.testing.assert_allclose(jittered, factor * before, atol=1e-5)
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
        (
            dict(color_jitter=dict(contrast=(1.2, 0.8))),
            (f"config.{JITTER}.contrast=(1.2, 0.8)", "low <= high"),
        ),
        (dict(color_jitter=dict(hue=0.1)), (f"config.{JITTER}.hue", 0.1)),
        (
            dict(color_jitter=dict(order="mixed")),
            (f"config.{JITTER}.order", "'mixed'", "batch, fixed, random"),
        ),
        (dict(color_jitter=dict(gamma=1)), (f"'{JITTER}.gamma'", f"{JITTER}.saturation")),
        (dict(blur=dict(kernel_size=4)), (f"{BLUR}.kernel_size=4", "odd")),
        (dict(blur=dict(sigma=(0.0, 1.0))), (f"{BLUR}.sigma=(0.0, 1.0)", 0.001)),
        (dict(blur=dict(sigma_yx=(1.0, 0.0))), (f"{BLUR}.sigma_yx=(1.0, 0.0)", 0.001)),
        (dict(blur=dict(sigma_yx=2.0)), (f"{BLUR}.sigma_yx", "tuple", 2.0)),
    ],
)
def test_invalid_options_are_an_error(section, facts):
    with raises(UserError, *facts):
        image.Augmentation.from_config(section, "augment.touch")


def test_subtraction_without_a_background_is_an_error():
    augment = image.Augmentation(subtract_background=True, where="augment.touch")
    facts = ["config.augment.touch.subtract_background", "config.data.touch.background"]
    with raises(UserError, *facts, "'recording'"):
        augment(BYTES, key=None)


def test_a_blur_kernel_larger_than_the_image_is_an_error():
    with raises(UserError, "kernel_size=25", 24, 12):
        image.GaussianBlur(kernel_size=25)(keys_of(FLOATS), FLOATS)
