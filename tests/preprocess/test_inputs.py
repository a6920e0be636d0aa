"""Model inputs: scaling, augmentation and spectrograms of loaded batches."""

import jax
import numpy as np
import pytest

from mmjax import config
from mmjax.data.pipeline import loader
from mmjax.data_spec import DataSpec
from mmjax.errors import UserError
from mmjax.models.towers.registry import build_tower
from mmjax.preprocess.audio import mel_matrix
from mmjax.preprocess.inputs import Inputs
from mmjax.state import ModelDef
from mmjax.tasks import make_task
from tests.messages import raises
from tests.random_arrays import random_arrays

RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (2, 4, 8, 6, 3), np.uint8)
AUDIO = RNG.normal(size=(5, 400)).astype(np.float32)


def test_repeat_frames_repeats_a_single_frame():
    out = Inputs(repeat_frames=4)({"video": FRAMES[:, :1]}, None, train=False)["video"]
    assert out.shape == (2, 4, 8, 6, 3)
    for frame in range(4):
        np.testing.assert_allclose(out[:, frame], FRAMES[:, 0] * (2 / 255) - 1, atol=1e-6)


def test_space_to_depth_fits_a_tower_with_24_channels():
    inputs = Inputs(space_to_depth=True, zero_centered=False)
    out = inputs({"video": FRAMES}, None, train=False)["video"]
    assert out.shape == (2, 2, 4, 3, 24)
    block = FRAMES[1, 2:4, 4:6, 0:2] / 255  # (t, h, w, c) of one output pixel
    np.testing.assert_allclose(out[1, 1, 2, 0], block.reshape(-1), atol=1e-6)
    shapes = inputs.shapes({"video": jax.ShapeDtypeStruct((2, 16, 64, 64, 3), np.uint8)})
    model = ModelDef(lambda rngs: build_tower(dict(name="i3d", channels=24), rngs=rngs))
    video = jax.ShapeDtypeStruct(shapes["video"], np.float32)
    encode = lambda params, extra, video: model.bind(params, extra)(video)  # noqa: E731
    features, _ = jax.eval_shape(encode, model.params, model.extra, video)
    assert video.shape == (2, 8, 32, 32, 24) and features.shape == (2, 1024)


def test_audio_mixup_mixes_two_examples_only_in_training():
    inputs = Inputs(audio_mixup=(10.0, 2.0))
    batch = {"audio": AUDIO}
    np.testing.assert_array_equal(inputs(batch, None, train=False)["audio"], AUDIO)
    mixed = np.asarray(inputs(batch, jax.random.key(3), train=True)["audio"])
    num_mixed = 0
    for result, own in zip(mixed, AUDIO, strict=True):
        # result = λ own + (1 − λ) other, where other is an example of the batch and 0 < λ < 1
        errors = []
        for other in AUDIO:
            basis = np.stack([own, other], axis=1)
            weights, *_ = np.linalg.lstsq(basis, result, rcond=None)
            errors.append(np.abs(basis @ weights - result).max())
        best = int(np.argmin(errors))
        assert errors[best] < 1e-5
        num_mixed += not np.allclose(result, own)
    assert num_mixed >= 2


def test_mel_bands_use_the_sample_rate_after_the_stride():
    """A tone of 1 kHz is in the 1 kHz band with stride 1 and stride 2."""
    seconds = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)
    bands = []
    for stride in (1, 2):
        data_spec = DataSpec(batch={}, sample_rate=16_000 / stride)
        inputs = Inputs.from_config(dict(spectrogram=dict(num_bins=40, high=3500.0)), data_spec)
        out = inputs({"audio": tone[None, ::stride]}, None, train=False)["audio"]
        bands.append(int(np.asarray(out)[0].mean(axis=0).argmax()))
    matrix = mel_matrix(
        num_bins=40, num_frequencies=1025, sample_rate=16_000, low=80.0, high=3500.0
    )
    expected = int(matrix[128].argmax())  # 1000 Hz is bin 128 of 1025 up to 8000 Hz
    assert bands == [expected, expected]


def test_the_sample_rate_is_divided_by_the_stride():
    def rate(**audio):
        section = dict(train="world:tiny", audio=dict(num_samples=500, **audio))
        return DataSpec.of(loader.make_train_data(section, batch_size=8, seed=0)).sample_rate

    assert rate() == 8000 and rate(stride=2) == 4000


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(repeat_frames=0), ("augment.repeat_frames", 0, 1)),
        (dict(audio_mixup=(1.0,)), ("augment.audio_mixup", "(1.0,)")),
        (dict(spec_augment={}), ("augment.spec_augment", "config.augment.spectrogram")),
        (
            dict(spectrogram={}),
            ("augment.spectrogram", "config.data.audio.sample_rate", "mmjax index"),
        ),
        (
            dict(spectrogram=dict(bins=3), sample_rate=8000),
            ("augment.spectrogram.bins", "augment.spectrogram.num_bins"),
        ),
        (
            dict(spectrogram={}, spec_augment=dict(spectrogram=1), sample_rate=8000),
            ("augment.spec_augment.spectrogram", "augment.spec_augment.time_width"),
        ),
    ],
)
def test_invalid_options_are_refused(options, facts):
    with raises(UserError, *facts):
        Inputs(**options)


IMAGES = RNG.integers(0, 256, (4, 6, 6, 3), np.uint8)


def test_images_are_scaled_or_normalized_by_their_section():
    batch = {"image": IMAGES, "touch": IMAGES[::-1], "touch_background": IMAGES}
    scaled = Inputs()(batch, None, train=False)
    assert scaled.keys() == {"image", "touch"}
    np.testing.assert_allclose(scaled["image"], IMAGES * (2 / 255) - 1, atol=1e-6)
    inputs = Inputs(image=dict(std=(0.5,) * 3), touch=dict(subtract_background=True))
    out = inputs(batch, None, train=False)
    np.testing.assert_allclose(out["image"], IMAGES / 127.5, atol=1e-5)
    np.testing.assert_allclose(out["touch"], IMAGES[::-1] / 255 - IMAGES / 255, atol=1e-6)
    shapes = inputs.shapes({k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()})
    assert shapes == {"image": (4, 6, 6, 3), "touch": (4, 6, 6, 3)}


def test_images_and_touch_are_flipped_independently_in_training():
    repeated = np.repeat(IMAGES[:1], 60, axis=0)
    inputs = Inputs(image=dict(horizontal_flip=0.5), touch=dict(horizontal_flip=0.5))
    out = inputs({"image": repeated, "touch": repeated}, jax.random.key(1), train=True)
    flipped = {m: (np.abs(x - repeated / 255) > 1e-3).any((1, 2, 3)) for m, x in out.items()}
    assert all(15 < which.sum() < 45 for which in flipped.values())
    assert not np.array_equal(flipped["image"], flipped["touch"])


def test_a_reference_is_changed_like_its_image():
    images = RNG.integers(0, 256, (16, 8, 8, 3), np.uint8)
    inputs = Inputs(image=dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), horizontal_flip=0.5))
    batch = {"image": images, "reference": images}
    for key in (None, jax.random.key(3)):
        out = inputs(batch, key, train=key is not None)
        np.testing.assert_array_equal(out["reference"], out["image"])
    assert np.any(out["image"] != inputs(batch, None, train=False)["image"])
    plain = Inputs(zero_centered=False)({"reference": images}, None, train=False)["reference"]
    np.testing.assert_allclose(plain, images / 255, atol=1e-6)


def test_precomputed_features_are_not_augmented():
    features = RNG.normal(size=(4, 5)).astype(np.float32)
    inputs = Inputs(image=dict(grayscale=1.0), touch=dict(subtract_background=True))
    batch = {"image": features, "touch": features, "text": features[:, None]}
    out = inputs(batch, jax.random.key(1), train=True)
    assert all(np.array_equal(out[name], batch[name]) for name in batch)
    with raises(UserError, "augment.image.crop", "augment.image.blur"):
        Inputs(image=dict(crop=1))


VIEWS = RNG.integers(0, 256, (40, 3, 6, 6, 3), np.uint8)


def test_each_view_has_its_own_section_and_randomness():
    sections = (dict(horizontal_flip=0.5), dict(horizontal_flip=0.5), dict(std=(0.5,) * 3))
    batch = {"image": np.repeat(VIEWS[:, :1], 3, axis=1)}
    inputs = Inputs(image=sections)
    out = np.asarray(inputs(batch, jax.random.key(1), train=True)["image"])
    assert out.shape == (40, 3, 6, 6, 3) and out.dtype == np.float32
    flipped = (np.abs(out - batch["image"] / 255) > 1e-3).any((2, 3, 4))
    assert 8 < flipped[:, 0].sum() < 32 and 8 < flipped[:, 1].sum() < 32
    assert not np.array_equal(flipped[:, 0], flipped[:, 1])
    np.testing.assert_allclose(out[:, 2], batch["image"][:, 2] / 127.5, atol=1e-5)
    repeated = inputs(batch, jax.random.key(1), train=True)["image"]
    assert np.array_equal(out, repeated)
    # A single section for all views uses the same key for each view.
    shared = Inputs(image=sections[0])(batch, jax.random.key(1), train=True)["image"]
    assert np.array_equal(shared[:, :2], out[:, :2])


def test_views_without_a_section_are_scaled_and_keep_their_shape():
    batch = {"image": VIEWS}
    out = Inputs()(batch, jax.random.key(0), train=True)["image"]
    np.testing.assert_allclose(out, VIEWS * (2 / 255) - 1, atol=1e-6)
    spec = {"image": jax.ShapeDtypeStruct((8, 3, 16, 16, 3), np.uint8)}
    for image in (None, dict(), (dict(), dict(grayscale=0.2), dict()), dict(in_eval=True)):
        assert Inputs(image=image).shapes(spec) == {"image": (8, 3, 16, 16, 3)}


def test_evaluation_uses_the_first_section_for_all_views():
    inputs = Inputs(image=(dict(mean=(0.1,) * 3), dict(mean=(0.9,) * 3)))
    batch = {"image": VIEWS[:, :1]}
    features = inputs.each_view(lambda x: x.reshape(len(x), -1), batch, "image")
    assert features.shape == (40, 1, 6 * 6 * 3)
    np.testing.assert_allclose(
        features.reshape(VIEWS[:, :1].shape), VIEWS[:, :1] / 255 - 0.1, atol=1e-6
    )


@pytest.mark.parametrize(
    "options, facts",
    [
        (dict(image=(dict(), dict())), ("config.augment.image", 2, 3, "config.data.image.crops")),
        (
            dict(image=(dict(), dict(crop=1), dict())),
            ("augment.image[1].crop", "augment.image[1].blur"),
        ),
        (dict(image=()), ("config.augment.image", "()")),
        (dict(image=(dict(), 3)), ("config.augment.image", "({}, 3)")),
        (dict(touch=(dict(), dict())), ("config.augment.touch", "one section")),
    ],
)
def test_sections_that_do_not_match_the_views_are_refused(options, facts):
    with raises(UserError, *facts):
        Inputs(**options)({"image": VIEWS}, jax.random.key(0), train=True)


def test_several_sections_require_several_views():
    with raises(UserError, "config.augment.image", 2, 1, "config.data.image.crops"):
        Inputs(image=(dict(), dict()))({"image": IMAGES}, jax.random.key(0), train=True)


def test_each_view_is_encoded_with_its_own_background():
    touched, background = (RNG.integers(0, 256, (4, 2, 6, 6, 3), np.uint8) for _ in range(2))
    inputs = Inputs(touch=dict(subtract_background=True))
    batch = {"touch": touched, "touch_background": background, "image": touched}
    features = inputs.each_view(lambda x: x.mean((1, 2)), batch, "touch")
    expected = (touched.astype(float) - background).mean((2, 3)) / 255
    assert features.shape == (4, 2, 3)
    np.testing.assert_allclose(features, expected, atol=1e-6)


ENCODER = dict(width=8, num_layers=1, num_heads=1, head_dim=8, mlp_dim=8, projection=12)
TOUCH = dict(ENCODER, name="touch_tiny", image_size=16, patch_size=8)
MODELS = {
    "finetune": dict(name="classifier", backbone=TOUCH, dropout_rate=0.0),
    "pretrain": dict(
        name="tx_fac",
        video=None,
        audio=None,
        text=None,
        head="joint",
        touch=TOUCH,
        image=dict(TOUCH, name="clip_vit_tiny"),
    ),
    "touch": dict(touch=TOUCH, image=dict(TOUCH, name="clip_vit_tiny"), text=None),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_task_subtracts_the_background_in_evaluation(name):
    cfg = config.base()
    cfg.task, cfg.model = name, MODELS[name]
    cfg.augment = dict(touch=dict(subtract_background=True))
    cfg.loss = {} if name == "finetune" else dict(weights=dict(touch_image=1.0))
    square = jax.ShapeDtypeStruct((4, 16, 16, 3), np.uint8)
    spec = {"touch": square, "touch_background": square}
    if name == "finetune":
        spec["label"] = jax.ShapeDtypeStruct((4,), np.int32)
    else:
        spec["image"] = square
    task = make_task(cfg, DataSpec(batch=spec, num_classes=3))
    params, extra = random_arrays(task.model)
    background = RNG.integers(0, 100, (4, 1, 16, 16, 3), np.uint8)
    touched = background + RNG.integers(0, 100, background.shape, np.uint8)
    run = jax.jit(task.predict["features"])

    def features(batch):
        return np.asarray(run(params, extra, batch)["touch"])

    expected = features({"touch": touched, "touch_background": background})
    assert expected.shape[:2] == (4, 1) and np.ptp(expected, axis=0).max() > 1e-3
    both_brighter = features({"touch": touched + 50, "touch_background": background + 50})
    np.testing.assert_allclose(both_brighter, expected, atol=1e-5)
    touch_brighter = features({"touch": touched + 50, "touch_background": background})
    assert np.abs(touch_brighter - expected).max() > 1e-3
    with raises(
        UserError, "touch.subtract_background", "config.data.touch.background", "'recording'"
    ):
        run(params, extra, {"touch": touched})


def test_image_views_are_refused_by_tasks_that_take_one_view():
    spec = {"image": jax.ShapeDtypeStruct((4, 1, 8, 8, 3), np.uint8)}
    data_spec = DataSpec(batch=spec)
    with raises(UserError, "config.data.image.crops", "--task=guided"):
        Inputs.from_config({}, data_spec)
    inputs = Inputs.from_config({}, data_spec, views=True)
    assert inputs.shapes(spec) == {"image": (4, 1, 8, 8, 3)}
