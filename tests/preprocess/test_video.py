"""Preprocessing on device against NumPy, SciPy, Matplotlib and TensorFlow."""

import colorsys

import jax
import jax.numpy as jnp
import matplotlib.colors
import numpy as np
import pytest
import scipy.optimize
import scipy.signal

from mmjax.errors import UserError
from mmjax.preprocess import video as preprocess
from tests.messages import raises

KEY = jax.random.key(0)
color_jitter = jax.jit(preprocess.color_jitter, static_argnames=("saturation", "contrast"))


def clips(count=3, seed=0):
    """Random [count, T, H, W, 3] in [0, 1], including gray, black and white pixels."""
    video = np.random.default_rng(seed).random((count, 2, 6, 5, 3)).astype(np.float32)
    video[:, :, 0] = video[:, :, 0, :, :1]
    video[:, :, 1] = 0
    video[:, :, 2] = 1
    return video


def test_normalize_video_maps_uint8_to_the_unit_range():
    frames = np.array([0, 51, 255], np.uint8)
    np.testing.assert_allclose(preprocess.normalize_video(frames), [-1, -0.6, 1], atol=1e-6)
    unit = preprocess.normalize_video(frames, zero_centered=False)
    np.testing.assert_allclose(unit, [0, 0.2, 1], atol=1e-6)
    with raises(TypeError, "uint8", "float32"):
        preprocess.normalize_video(frames.astype(np.float32))


def test_flip_video_mirrors_only_the_selected_clips():
    video = clips(4)
    result = preprocess.flip_video(video, np.array([True, False, False, True]))
    for clip, before, flipped in zip(result, video, (1, 0, 0, 1), strict=True):
        np.testing.assert_array_equal(clip, np.flip(before, 2) if flipped else before)


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.4])
def test_saturation_is_scaled_in_hsv(factor):
    hsv = matplotlib.colors.rgb_to_hsv(clips())
    hsv[..., 1] = np.clip(hsv[..., 1] * factor, 0, 1)
    result = preprocess.adjust_saturation(clips(), factor)
    np.testing.assert_allclose(result, matplotlib.colors.hsv_to_rgb(hsv), atol=1e-6)


@pytest.mark.parametrize("turn", [-0.2, 0.13, 0.5, 1.0])
def test_hue_is_shifted_in_hsv(turn):
    hsv = matplotlib.colors.rgb_to_hsv(clips())
    hsv[..., 0] = (hsv[..., 0] + turn) % 1.0
    result = preprocess.adjust_hue(clips(), turn)
    np.testing.assert_allclose(result, matplotlib.colors.hsv_to_rgb(hsv), atol=2e-6)


def test_contrast_scales_each_frame_around_its_mean():
    video = clips()
    result = np.asarray(preprocess.adjust_contrast(video, 0.5))
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


def test_color_jitter_applies_operations_in_the_published_order():
    # Degenerate ranges fix two of the samples. An optimizer recovers the other two.
    video = 0.3 + 0.4 * clips(1)
    fixed = dict(probability=1.0, saturation=(1.3, 1.3), contrast=(0.7, 0.7))
    result = color_jitter(KEY, video, brightness=0.0, hue=0.0, **fixed)
    np.testing.assert_allclose(result[0], reference_jitter(video[0], 0, 1.3, 0.7, 0), atol=2e-6)

    result = np.asarray(color_jitter(KEY, video, brightness=0.1, hue=0.2, **fixed))[0]

    def distance(samples):
        return np.abs(reference_jitter(video[0], samples[0], 1.3, 0.7, samples[1]) - result).max()

    grid = [(b, h) for b in np.linspace(-0.1, 0.1, 5) for h in np.linspace(-0.2, 0.2, 9)]
    fit = scipy.optimize.minimize(distance, min(grid, key=distance), method="Nelder-Mead")
    assert fit.fun < 1e-3 and np.all(np.abs(fit.x) < (0.1, 0.2))
    assert max(map(distance, grid)) > 0.2


def test_color_jitter_is_sampled_once_per_clip():
    frame = clips(1)[:, :1]
    video = np.broadcast_to(frame, (64, 4, *frame.shape[2:])).copy()
    result = np.asarray(color_jitter(KEY, video))
    assert result.min() >= 0 and result.max() <= 1
    np.testing.assert_allclose(
        result, result[:, :1].repeat(4, axis=1), atol=1e-6
    )  # all frames are equal
    changed = np.abs(result - video).max((1, 2, 3, 4)) > 1e-3
    assert 0.65 < changed.mean() < 0.95  # 0.8 expected
    first, second = result[changed][:2]
    assert np.abs(first - second).max() > 1e-2  # clips differ
    np.testing.assert_array_equal(result, color_jitter(KEY, video))
    np.testing.assert_array_equal(color_jitter(KEY, video, probability=0.0), video)


def test_color_jitter_accepts_any_leading_dimensions():
    video = clips(4)
    views = color_jitter(KEY, video.reshape(2, 2, *video.shape[1:]))
    np.testing.assert_allclose(views.reshape(video.shape), color_jitter(KEY, video), atol=1e-6)
    assert jax.eval_shape(color_jitter, KEY, video[0]).shape == video[0].shape


def test_space_to_depth_moves_blocks_into_channels():
    video = np.arange(2 * 4 * 4 * 6 * 3).reshape(2, 4, 4, 6, 3)
    result = np.asarray(preprocess.space_to_depth(video))
    assert result.shape == (2, 2, 2, 3, 24)
    for t, h, w in np.ndindex(2, 2, 2):
        channels = slice(3 * (4 * t + 2 * h + w), 3 * (4 * t + 2 * h + w) + 3)
        np.testing.assert_array_equal(result[..., channels], video[:, t::2, h::2, w::2])
    with raises(UserError, "4x4x6", "(3, 2, 2)"):
        preprocess.space_to_depth(video, block=(3, 2, 2))


def test_audio_noise_is_proportional_to_each_peak():
    waveform = np.zeros((2, 20_000), np.float32)
    waveform[0, 0], waveform[1, 0] = 0.5, -1.0
    noise = np.asarray(preprocess.audio_noise(KEY, waveform, 0.01)) - waveform
    np.testing.assert_allclose(noise.std(-1), [0.005, 0.01], rtol=0.03)
    silence = np.zeros((1, 8), np.float32)
    np.testing.assert_array_equal(preprocess.audio_noise(KEY, silence, 0.01), silence)


# Waveforms and spectrograms.


def tone(frequency, sample_rate, seconds=0.5):
    return np.sin(2 * np.pi * frequency * np.arange(int(seconds * sample_rate)) / sample_rate)


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 48_000])
def test_log_mel_matches_scipy(sample_rate):
    random = np.random.default_rng(0)
    waveform = (tone(440, sample_rate) + 0.1 * random.normal(size=sample_rate // 2)) / 2
    length, hop = int(0.032 * sample_rate), int(0.016 * sample_rate)
    frames = -(-len(waveform) // hop)
    padded = np.pad(waveform, (0, (frames - 1) * hop + length - len(waveform)))
    transform = scipy.signal.ShortTimeFFT(
        scipy.signal.get_window("hann", length), hop, sample_rate, phase_shift=None
    )
    # The first window inside the signal is centered at length / 2.
    start = length // 2 // hop
    spectrum = transform.stft(padded, p0=start, p1=start + frames)  # [frequency, frame]
    magnitude = np.abs(spectrum).T
    high = min(7600, sample_rate / 2)
    # The mel scale of HTK, with the base-10 logarithm.
    mel = 2595 * np.log10(1 + transform.f / 700)
    edges = np.linspace(*(2595 * np.log10(1 + np.array([80, high]) / 700)), 42)
    bands = [np.interp(mel, edges[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(40)]
    expected = np.log(1 + 10_000 * magnitude @ np.stack(bands, 1))
    result = preprocess.log_mel(
        waveform,
        sample_rate=sample_rate,
        window=0.032,
        step=0.016,
        num_bins=40,
        normalize=False,
    )
    np.testing.assert_allclose(result, expected, atol=1e-3, rtol=1e-4)
    normalized = (expected - expected.min()) / (expected.max() - expected.min())
    result = preprocess.log_mel(
        waveform, sample_rate=sample_rate, window=0.032, step=0.016, num_bins=40
    )
    np.testing.assert_allclose(result, normalized, atol=1e-4)


def test_log_mel_matches_tensorflow_with_the_settings_of_vatt():
    """3.2 s at 48 kHz: 150 frames of 80 bins, windows of 2048 samples and hops of 1024."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    # Noise in every band: most of the spectrum of a pure tone would be float32 rounding error.
    waveform = 0.2 * random.normal(size=(2, 153_600)).astype(np.float32)
    waveform[0] += tone(440, 48_000, 3.2)
    spectrum = tf.signal.stft(waveform, 2048, 1024, pad_end=True)
    matrix = tf.signal.linear_to_mel_weight_matrix(80, 1025, 48_000, 80.0, 7600.0)
    mel = np.log(1 + 10_000 * np.abs(spectrum) @ matrix.numpy())
    assert mel.shape == (2, 150, 80)
    result = preprocess.log_mel(waveform, sample_rate=48_000, normalize=False)
    np.testing.assert_allclose(result, mel, atol=2e-3)
    low, high = mel.min((1, 2), keepdims=True), mel.max((1, 2), keepdims=True)
    result = preprocess.log_mel(waveform, sample_rate=48_000)
    np.testing.assert_allclose(result, (mel - low) / (high - low), atol=2e-4)


def test_log_mel_accepts_any_leading_dimensions():
    shape = jax.eval_shape(
        lambda x: preprocess.log_mel(x, sample_rate=48_000),
        jax.ShapeDtypeStruct((2, 3, 153_600), jnp.float32),
    )
    assert shape.shape == (2, 3, 150, 80)


def test_log_mel_gradients_are_finite_and_correct_with_silence():
    noise = 0.3 * np.random.default_rng(0).normal(size=8_000)
    waveforms = np.stack([tone(440, 16_000), np.zeros(8_000), noise]).astype(np.float32)
    waveforms[0, 4_000:] = 0  # silent frames after others

    @jax.jit
    @jax.value_and_grad
    def mean(x):
        return preprocess.log_mel(x, sample_rate=16_000).mean()

    gradient = np.asarray(mean(waveforms)[1])
    assert np.isfinite(gradient).all() and np.abs(gradient[0]).max() > 0
    # Central difference along the gradient of the noise, where the function is smooth.
    norm = np.linalg.norm(gradient[2])
    step = 0.003 * gradient * np.array([0, 0, 1 / norm])[:, None]
    difference = (mean(waveforms + step)[0] - mean(waveforms - step)[0]) / 0.006
    np.testing.assert_allclose(difference, norm, rtol=0.02)


def test_log_mel_normalizes_each_example_separately():
    waveforms = np.stack([tone(440, 16_000), 0.01 * tone(2_000, 16_000), np.zeros(8_000)])
    result = np.asarray(jax.jit(lambda x: preprocess.log_mel(x, sample_rate=16_000))(waveforms))
    np.testing.assert_allclose(result.min((1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(result.max((1, 2)), [1, 1, 0], atol=1e-6)  # silence is 0, not NaN


def test_invalid_log_mel_options_are_an_error():
    with raises(UserError, "log_mel", "window=1e-05", "8000 Hz"):
        preprocess.log_mel(np.zeros(80), sample_rate=8_000, window=1e-5)
    with raises(UserError, "log_mel", "9000.0 Hz", "8000.0 Hz"):
        preprocess.log_mel(np.zeros(4_000), sample_rate=16_000, low=9_000.0, high=12_000.0)


def test_spec_augment_masks_frames_and_bands():
    spectrogram = np.ones((200, 30, 20), np.float32)
    options = dict(time_masks=2, time_width=6, frequency_masks=1, frequency_width=4)
    result = np.asarray(preprocess.spec_augment(KEY, spectrogram, **options))
    frames = (result == 0).all(2)  # [N, T]: masked frames
    bands = (result == 0).all(1)  # [N, F]: masked bands
    np.testing.assert_array_equal(result == 0, frames[:, :, None] | bands[:, None, :])
    widths = bands.sum(1)
    assert set(widths) == {0, 1, 2, 3, 4}
    assert frames.sum(1).max() <= 12 and len(set(frames.sum(1))) > 6
    starts = np.diff(np.pad(bands, ((0, 0), (1, 1))).astype(int)) == 1
    assert starts.sum(1).max() == 1  # one contiguous mask
    assert bands.any(0).all()  # masks reach every band
    np.testing.assert_array_equal(result, preprocess.spec_augment(KEY, spectrogram, **options))
    no_masks = dict(time_masks=0, frequency_masks=0)
    np.testing.assert_array_equal(
        preprocess.spec_augment(KEY, spectrogram, **no_masks), spectrogram
    )


# Mixup.


def test_mixup_mixes_inputs_and_targets_with_the_same_weights():
    count = 4_000
    # One-hot vectors: a mixed one shows its weight and the other example.
    x = np.eye(8, dtype=np.float32)[np.arange(count) % 8]
    images = x[:, :, None, None] * np.ones((1, 1, 2, 3), np.float32)
    mixed, targets = jax.jit(lambda tree: preprocess.mixup(KEY, tree, alpha=5.0))((images, x))
    np.testing.assert_allclose(mixed, np.asarray(targets)[:, :, None, None] * np.ones((2, 3)))
    np.testing.assert_allclose(np.sum(targets, axis=1), 1, atol=1e-6)
    own = np.asarray(targets)[np.arange(count), np.arange(count) % 8]
    other = own[np.max(targets, axis=1) + np.sort(targets, axis=1)[:, -2] > 0.999]
    weights = other[other < 0.999]  # mixed with another class: `own` is λ ~ Beta(5, 5)
    np.testing.assert_allclose(weights.mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(weights.var(), 1 / 44, rtol=0.1)


def test_mixup_weights_follow_a_beta_distribution_of_two_parameters():
    x = np.eye(2, dtype=np.float32)[np.arange(2_000) % 2]
    mixed = np.asarray(preprocess.mixup(KEY, x, alpha=10.0, beta=2.0))
    own = mixed[np.arange(2_000), np.arange(2_000) % 2]
    np.testing.assert_allclose(own[own < 0.9999].mean(), 10 / 12, atol=0.02)


def test_mix_interpolates_with_the_given_weights_and_permutation():
    x = np.array([[1.0], [2.0], [4.0]], np.float32)
    result = preprocess.mix(x, jnp.array([1.0, 0.75, 0.0]), jnp.array([2, 0, 1]))
    np.testing.assert_allclose(result, [[1.0], [1.75], [2.0]])


def test_mixup_of_integer_labels_is_an_error():
    with raises(TypeError, "mixup", "int32"):
        preprocess.mixup(KEY, {"label": jnp.arange(4)}, alpha=1.0)
