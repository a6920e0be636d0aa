"""From a batch as it travels to what towers take."""

import jax
import numpy as np
import pytest

from mmjax import preprocess
from mmjax.data import loader
from mmjax.errors import UserError
from mmjax.models.towers import build_tower
from mmjax.state import ModelDef
from mmjax.tasks import DataFacts
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
