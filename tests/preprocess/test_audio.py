"""Waveforms and spectrograms against NumPy, SciPy and TensorFlow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from mmjax.errors import UserError
from mmjax.preprocess import audio
from tests.messages import raises

# Compiled as a whole, because JAX compiles each operation outside of jax.jit separately.
audio_noise = jax.jit(audio.audio_noise)
log_mel = jax.jit(
    audio.log_mel,
    static_argnames=("sample_rate", "window", "step", "num_bins", "low", "high", "normalize"),
)
spec_augment = jax.jit(
    audio.spec_augment,
    static_argnames=("time_masks", "time_width", "frequency_masks", "frequency_width"),
)

KEY = jax.random.key(0)


def test_audio_noise_is_proportional_to_each_peak():
    waveform = np.zeros((2, 20_000), np.float32)
    waveform[0, 0], waveform[1, 0] = 0.5, -1.0
    noise = np.asarray(audio_noise(KEY, waveform, 0.01)) - waveform
    np.testing.assert_allclose(noise.std(-1), [0.005, 0.01], rtol=0.03)
    silence = np.zeros((1, 8), np.float32)
    np.testing.assert_array_equal(audio_noise(KEY, silence, 0.01), silence)


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
    result = log_mel(
        waveform,
        sample_rate=sample_rate,
        window=0.032,
        step=0.016,
        num_bins=40,
        normalize=False,
    )
    np.testing.assert_allclose(result, expected, atol=1e-3, rtol=1e-4)
    normalized = (expected - expected.min()) / (expected.max() - expected.min())
    result = log_mel(waveform, sample_rate=sample_rate, window=0.032, step=0.016, num_bins=40)
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
    result = log_mel(waveform, sample_rate=48_000, normalize=False)
    np.testing.assert_allclose(result, mel, atol=2e-3)
    low, high = mel.min((1, 2), keepdims=True), mel.max((1, 2), keepdims=True)
    result = log_mel(waveform, sample_rate=48_000)
    np.testing.assert_allclose(result, (mel - low) / (high - low), atol=2e-4)


def test_log_mel_accepts_any_leading_dimensions():
    shape = jax.eval_shape(
        lambda x: log_mel(x, sample_rate=48_000),
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
        return log_mel(x, sample_rate=16_000).mean()

    gradient = np.asarray(mean(waveforms)[1])
    assert np.isfinite(gradient).all() and np.abs(gradient[0]).max() > 0
    # Central difference along the gradient of the noise, where the function is smooth.
    norm = np.linalg.norm(gradient[2])
    step = 0.003 * gradient * np.array([0, 0, 1 / norm])[:, None]
    difference = (mean(waveforms + step)[0] - mean(waveforms - step)[0]) / 0.006
    np.testing.assert_allclose(difference, norm, rtol=0.02)


def test_log_mel_normalizes_each_example_separately():
    waveforms = np.stack([tone(440, 16_000), 0.01 * tone(2_000, 16_000), np.zeros(8_000)])
    result = np.asarray(jax.jit(lambda x: log_mel(x, sample_rate=16_000))(waveforms))
    np.testing.assert_allclose(result.min((1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(result.max((1, 2)), [1, 1, 0], atol=1e-6)  # silence is 0, not NaN


def test_invalid_log_mel_options_are_an_error():
    with raises(UserError, "log_mel", "window=1e-05", "8000 Hz"):
        log_mel(np.zeros(80), sample_rate=8_000, window=1e-5)
    with raises(UserError, "log_mel", "9000.0 Hz", "8000.0 Hz"):
        log_mel(np.zeros(4_000), sample_rate=16_000, low=9_000.0, high=12_000.0)


def test_spec_augment_masks_frames_and_bands():
    spectrogram = np.ones((200, 30, 20), np.float32)
    options = dict(time_masks=2, time_width=6, frequency_masks=1, frequency_width=4)
    result = np.asarray(spec_augment(KEY, spectrogram, **options))
    frames = (result == 0).all(2)  # [N, T]: masked frames
    bands = (result == 0).all(1)  # [N, F]: masked bands
    np.testing.assert_array_equal(result == 0, frames[:, :, None] | bands[:, None, :])
    widths = bands.sum(1)
    assert set(widths) == {0, 1, 2, 3, 4}
    assert frames.sum(1).max() <= 12 and len(set(frames.sum(1))) > 6
    starts = np.diff(np.pad(bands, ((0, 0), (1, 1))).astype(int)) == 1
    assert starts.sum(1).max() == 1  # one contiguous mask
    assert bands.any(0).all()  # masks reach every band
    np.testing.assert_array_equal(result, spec_augment(KEY, spectrogram, **options))
    no_masks = dict(time_masks=0, frequency_masks=0)
    np.testing.assert_array_equal(spec_augment(KEY, spectrogram, **no_masks), spectrogram)
