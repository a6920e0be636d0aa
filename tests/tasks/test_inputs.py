"""From a batch as it travels to what towers take."""

import jax
import numpy as np
import pytest

from mmjax import config, preprocess
from mmjax.data import loader
from mmjax.errors import UserError
from mmjax.models.towers import build_tower
from mmjax.state import ModelDef
from mmjax.tasks import DataFacts, make_task
from mmjax.tasks.inputs import Inputs

DRAW = np.random.default_rng(0)
FRAMES = DRAW.integers(0, 256, (2, 4, 8, 6, 3), np.uint8)
SOUND = DRAW.normal(size=(5, 400)).astype(np.float32)


def test_a_picture_is_shown_as_often_as_asked():
    out = Inputs(repeat_frames=4)({"video": FRAMES[:, :1]}, None, train=False)["video"]
    assert out.shape == (2, 4, 8, 6, 3)
    for number in range(4):
        np.testing.assert_allclose(out[:, number], FRAMES[:, 0] * (2 / 255) - 1, atol=1e-6)


def test_space_to_depth_is_what_a_tower_of_24_channels_takes():
    inputs = Inputs(space_to_depth=True, zero_centered=False)
    out = inputs({"video": FRAMES}, None, train=False)["video"]
    assert out.shape == (2, 2, 4, 3, 24)
    block = FRAMES[1, 2:4, 4:6, 0:2] / 255  # (t, h, w, c) of one output pixel
    np.testing.assert_allclose(out[1, 1, 2, 0], block.reshape(-1), atol=1e-6)
    shapes = inputs.shapes({"video": jax.ShapeDtypeStruct((2, 16, 64, 64, 3), np.uint8)})
    tower = ModelDef(lambda rngs: build_tower(dict(name="i3d", channels=24), rngs=rngs)).module
    assert tower.flops(shapes["video"][1:]) > 0


def test_sound_is_mixed_with_that_of_another_example_in_training_only():
    inputs = Inputs(audio_mixup=(10.0, 2.0))
    batch = {"audio": SOUND}
    np.testing.assert_array_equal(inputs(batch, None, train=False)["audio"], SOUND)
    mixed = np.asarray(inputs(batch, jax.random.key(3), train=True)["audio"])
    partners = 0
    for row, own in zip(mixed, SOUND, strict=True):
        # row = λ own + (1 − λ) other for some other of the batch and 0 < λ < 1
        errors = []
        for other in SOUND:
            basis = np.stack([own, other], axis=1)
            weights, *_ = np.linalg.lstsq(basis, row, rcond=None)
            errors.append(np.abs(basis @ weights - row).max())
        best = int(np.argmin(errors))
        assert errors[best] < 1e-5
        partners += not np.allclose(row, own)
    assert partners >= 2


def test_mel_bands_are_those_of_sound_after_its_stride():
    """A tone of 1 kHz is in the band of 1 kHz, whether every sample is taken or every second."""
    seconds = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)
    bands = []
    for stride in (1, 2):
        facts = DataFacts(spec={}, sample_rate=16_000 / stride)
        inputs = Inputs.from_config(dict(spectrogram=dict(num_bins=40, high=3500.0)), facts)
        out = inputs({"audio": tone[None, ::stride]}, None, train=False)["audio"]
        bands.append(int(np.asarray(out)[0].mean(axis=0).argmax()))
    matrix = preprocess.mel_matrix(
        num_bins=40, num_frequencies=1025, sample_rate=16_000, low=80.0, high=3500.0
    )
    wanted = int(matrix[128].argmax())  # 1000 Hz is bin 128 of 1025 up to 8000 Hz
    assert bands == [wanted, wanted]


def test_the_sample_rate_of_a_loader_counts_its_stride():
    def rate(**audio):
        section = dict(train="world:tiny", audio=dict(num_samples=500, **audio))
        return DataFacts.of(loader.make_train_data(section, batch_size=8, seed=0)).sample_rate

    assert rate() == 8000 and rate(stride=2) == 4000


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(repeat_frames=0), "repeat_frames=0 must be at least 1"),
        (dict(audio_mixup=(1.0,)), "audio_mixup=.* two numbers"),
        (dict(spec_augment={}), "spec_augment needs config.augment.spectrogram"),
        (dict(spectrogram={}), "the dataset does not say: set config.data.audio.sample_rate"),
        (dict(spectrogram=dict(bins=3), sample_rate=8000), "augment.spectrogram.bins"),
        (
            dict(spectrogram={}, spec_augment=dict(spectrogram=1), sample_rate=8000),
            "augment.spec_augment.spectro",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Inputs(**options)


PICTURES = DRAW.integers(0, 256, (4, 6, 6, 3), np.uint8)


def test_pictures_are_scaled_or_as_their_sections_say():
    batch = {"image": PICTURES, "touch": PICTURES[::-1], "touch_background": PICTURES}
    plain = Inputs()(batch, None, train=False)
    assert plain.keys() == {"image", "touch"}
    np.testing.assert_allclose(plain["image"], PICTURES * (2 / 255) - 1, atol=1e-6)
    inputs = Inputs(image=dict(std=(0.5,) * 3), touch=dict(subtract_background=True))
    out = inputs(batch, None, train=False)
    np.testing.assert_allclose(out["image"], PICTURES / 127.5, atol=1e-5)
    np.testing.assert_allclose(out["touch"], PICTURES[::-1] / 255 - PICTURES / 255, atol=1e-6)
    shapes = inputs.shapes({k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()})
    assert shapes == {"image": (4, 6, 6, 3), "touch": (4, 6, 6, 3)}


def test_images_and_touch_are_flipped_independently_in_training():
    one = np.repeat(PICTURES[:1], 60, axis=0)
    inputs = Inputs(image=dict(horizontal_flip=0.5), touch=dict(horizontal_flip=0.5))
    out = inputs({"image": one, "touch": one}, jax.random.key(1), train=True)
    flipped = {m: (np.abs(x - one / 255) > 1e-3).any((1, 2, 3)) for m, x in out.items()}
    assert all(15 < which.sum() < 45 for which in flipped.values())
    assert not np.array_equal(flipped["image"], flipped["touch"])


def test_features_of_towers_stay_as_they_are():
    rows = DRAW.normal(size=(4, 5)).astype(np.float32)
    inputs = Inputs(image=dict(grayscale=1.0), touch=dict(subtract_background=True))
    batch = {"image": rows, "touch": rows, "text": rows[:, None]}
    out = inputs(batch, jax.random.key(1), train=True)
    assert all(np.array_equal(out[name], batch[name]) for name in batch)
    with pytest.raises(UserError, match="augment.image.crop"):
        Inputs(image=dict(crop=1))


VIEWS = DRAW.integers(0, 256, (40, 3, 6, 6, 3), np.uint8)


def test_each_view_is_augmented_by_its_own_section_with_a_draw_of_its_own():
    sections = (dict(horizontal_flip=0.5), dict(horizontal_flip=0.5), dict(std=(0.5,) * 3))
    batch = {"image": np.repeat(VIEWS[:, :1], 3, axis=1)}
    inputs = Inputs(image=sections)
    out = np.asarray(inputs(batch, jax.random.key(1), train=True)["image"])
    assert out.shape == (40, 3, 6, 6, 3) and out.dtype == np.float32
    flipped = (np.abs(out - batch["image"] / 255) > 1e-3).any((2, 3, 4))
    assert 8 < flipped[:, 0].sum() < 32 and 8 < flipped[:, 1].sum() < 32
    assert not np.array_equal(flipped[:, 0], flipped[:, 1])
    np.testing.assert_allclose(out[:, 2], batch["image"][:, 2] / 127.5, atol=1e-5)
    again = inputs(batch, jax.random.key(1), train=True)["image"]
    assert np.array_equal(out, again)
    # View v of a key is what its section alone makes of that view with the v-th key of it.
    one = Inputs(image=sections[0])(batch, jax.random.key(1), train=True)["image"]
    assert np.array_equal(one[:, 0], out[:, 0]) and np.array_equal(one[:, 1], out[:, 1])


def test_views_without_a_section_are_scaled_and_shapes_know_them():
    batch = {"image": VIEWS}
    out = Inputs()(batch, jax.random.key(0), train=True)["image"]
    np.testing.assert_allclose(out, VIEWS * (2 / 255) - 1, atol=1e-6)
    spec = {"image": jax.ShapeDtypeStruct((8, 3, 16, 16, 3), np.uint8)}
    for image in (None, dict(), (dict(), dict(grayscale=0.2), dict()), dict(in_eval=True)):
        assert Inputs(image=image).shapes(spec) == {"image": (8, 3, 16, 16, 3)}


def test_evaluation_takes_the_first_section_whatever_the_views():
    inputs = Inputs(image=(dict(mean=(0.1,) * 3), dict(mean=(0.9,) * 3)))
    batch = {"image": VIEWS[:, :1]}
    seen = inputs.each_view(lambda x: x.reshape(len(x), -1), batch, "image")
    assert seen.shape == (40, 1, 6 * 6 * 3)
    np.testing.assert_allclose(
        seen.reshape(VIEWS[:, :1].shape), VIEWS[:, :1] / 255 - 0.1, atol=1e-6
    )


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(image=(dict(), dict())), "2 sections, but the pictures of an example have 3 views"),
        (dict(image=(dict(), dict(crop=1), dict())), r"augment.image\[1\].crop"),
        (dict(image=()), "must be a section, or several"),
        (dict(image=(dict(), 3)), "must be a section, or several"),
        (dict(touch=(dict(), dict())), "config.augment.touch must be one section"),
    ],
)
def test_sections_that_do_not_fit_the_views_are_named(options, message):
    with pytest.raises(UserError, match=message):
        Inputs(**options)({"image": VIEWS}, jax.random.key(0), train=True)


def test_several_sections_need_several_views():
    with pytest.raises(UserError, match=r"2 sections.*1 views \(config.data.image.crops\)"):
        Inputs(image=(dict(), dict()))({"image": PICTURES}, jax.random.key(0), train=True)


def test_views_are_encoded_one_after_the_other_with_their_backgrounds():
    felt, calm = (DRAW.integers(0, 256, (4, 2, 6, 6, 3), np.uint8) for _ in range(2))
    inputs = Inputs(touch=dict(subtract_background=True))
    batch = {"touch": felt, "touch_background": calm, "image": felt}
    seen = inputs.each_view(lambda x: x.mean((1, 2)), batch, "touch")
    want = (felt.astype(float) - calm).mean((2, 3)) / 255
    assert seen.shape == (4, 2, 3)
    np.testing.assert_allclose(seen, want, atol=1e-6)


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
def test_every_task_evaluates_pictures_less_their_background(name):
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
    task = make_task(cfg, DataFacts(spec=spec, num_classes=3))
    params, extra = jax.jit(task.init)(jax.random.key(0))
    calm = DRAW.integers(0, 100, (4, 1, 16, 16, 3), np.uint8)
    felt = calm + DRAW.integers(0, 100, calm.shape, np.uint8)
    run = jax.jit(task.predict["features"])

    def seen(batch):
        return np.asarray(run(params, extra, batch)["touch"])

    want = seen({"touch": felt, "touch_background": calm})
    assert want.shape[:2] == (4, 1) and np.ptp(want, axis=0).max() > 1e-3
    brighter = seen({"touch": felt + 50, "touch_background": calm + 50})
    np.testing.assert_allclose(brighter, want, atol=1e-5)
    assert np.abs(seen({"touch": felt + 50, "touch_background": calm}) - want).max() > 1e-3
    with pytest.raises(UserError, match="subtract_background needs backgrounds in the batch"):
        run(params, extra, {"touch": felt})


def test_views_of_pictures_are_for_the_task_that_takes_them():
    facts = DataFacts(spec={"image": jax.ShapeDtypeStruct((4, 1, 8, 8, 3), np.uint8)})
    with pytest.raises(UserError, match="data.image.crops makes views.*--task=guided"):
        Inputs.from_config({}, facts)
    Inputs.from_config({}, facts, views=True)
