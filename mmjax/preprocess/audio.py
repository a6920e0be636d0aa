"""Waveforms and spectrograms on the device, inside jit.

Functions accept any leading dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError


def audio_noise(key: jax.Array, waveform: jax.Array, level: float) -> jax.Array:
    """Adds Gaussian noise to waveforms [..., S].

    Args:
      key: One key for all waveforms.
      waveform: float [..., S].
      level: Standard deviation of the noise relative to the peak of each waveform.
    """
    peak = jnp.abs(waveform).max(axis=-1, keepdims=True)
    return waveform + level * peak * jax.random.normal(key, waveform.shape, waveform.dtype)


def log_mel(
    waveform: jax.Array,
    *,
    sample_rate: int,
    window: float = 0.04267,
    step: float = 0.02134,
    num_bins: int = 80,
    low: float = 80.0,
    high: float = 7600.0,
    normalize: bool = True,
) -> jax.Array:
    """Returns VATT's log-mel spectrogram: log(1 + 10000 · mel) of a Hann-windowed STFT.

    Args:
      waveform: float [..., S].
      sample_rate: Sample rate in Hz.
      window: Length of a window in seconds; the default is 2048 samples at 48 kHz.
      step: Distance of windows in seconds; the default is 1024 samples at 48 kHz. The end is
        padded with zeros, so that there are ceil(S / step) windows.
      num_bins: Number of triangular bands, equally wide in mels, from `low` to `high`.
      low: Lowest frequency in Hz.
      high: Highest frequency in Hz; at most half the sample rate is used.
      normalize: Whether to scale each example to [0, 1]; a constant one becomes 0.

    Returns:
      float32 [..., F, num_bins].

    Raises:
      UserError: The window or step is shorter than a sample, or `low` is not below `high`.
    """
    length, hop = int(window * sample_rate), int(step * sample_rate)
    if length < 2 or hop < 1:
        raise UserError(
            f"log_mel: window={window} s and step={step} s must be at least 2 samples and 1 sample "
            f"long at {sample_rate} Hz; they are {length} and {hop}."
        )
    waveform = waveform.astype(jnp.float32)
    samples = waveform.shape[-1]
    frames = -(-samples // hop)
    pad = max((frames - 1) * hop + length - samples, 0)
    waveform = jnp.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(0, pad)])
    positions = np.arange(frames)[:, None] * hop + np.arange(length)
    windows = waveform[..., positions] * jnp.asarray(_hann(length))  # [..., F, length]
    magnitude = jnp.abs(jnp.fft.rfft(windows))
    matrix = mel_matrix(
        num_bins=num_bins,
        num_frequencies=length // 2 + 1,
        sample_rate=sample_rate,
        low=low,
        high=min(high, sample_rate / 2),
    )
    mel = jnp.matmul(magnitude, jnp.asarray(matrix), precision=jax.lax.Precision.HIGHEST)
    mel = jnp.log1p(10_000.0 * mel)
    if not normalize:
        return mel
    smallest = mel.min(axis=(-2, -1), keepdims=True)
    extent = mel.max(axis=(-2, -1), keepdims=True) - smallest
    return (mel - smallest) / jnp.where(extent > 0, extent, 1.0)


def mel_matrix(
    *, num_bins: int, num_frequencies: int, sample_rate: int, low: float, high: float
) -> np.ndarray:
    """Returns weights from linear frequencies to HTK mel bands.

    They are triangles on the mel scale m = 1127 ln(1 + f / 700), without normalization of their
    area, and 0 for frequency 0. Equals `tf.signal.linear_to_mel_weight_matrix`.

    Args:
      num_bins: Number of bands.
      num_frequencies: Number of frequencies from 0 to half the sample rate.
      sample_rate: Sample rate in Hz.
      low, high: Range of the bands in Hz.

    Returns:
      float32 [num_frequencies, num_bins].

    Raises:
      UserError: `low` is negative or not below `high`.
    """
    if not 0 <= low < high:
        raise UserError(
            f"log_mel: low={low} Hz must be at least 0 and less than high={high} Hz (at most half "
            "the sample rate)."
        )

    def to_mel(frequency):
        return 1127.0 * np.log1p(np.asarray(frequency) / 700.0)

    frequencies = to_mel(np.linspace(0.0, sample_rate / 2, num_frequencies))[1:, None]
    edges = np.linspace(to_mel(low), to_mel(high), num_bins + 2)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies - left) / (center - left)
    falling = (right - frequencies) / (right - center)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    return np.pad(weights, ((1, 0), (0, 0))).astype(np.float32)


def _hann(length: int) -> np.ndarray:
    """Returns the periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(length) / length)).astype(np.float32)


def spec_augment(
    key: jax.Array,
    spectrogram: jax.Array,
    *,
    time_masks: int = 1,
    time_width: int = 16,
    frequency_masks: int = 1,
    frequency_width: int = 16,
) -> jax.Array:
    """Sets random stripes of each spectrogram to 0: the masks of SpecAugment (Park et al. 2019).

    Args:
      key: One key for all spectrograms.
      spectrogram: float [..., F, M].
      time_masks, frequency_masks: Number of stripes along each axis.
      time_width, frequency_width: Largest width of a stripe. Widths are uniform from 0 to this,
        and positions are uniform.
    """
    *lead, frames, bins = spectrogram.shape
    keep = jnp.ones((*lead, frames, bins), bool)
    for axis_key, count, width, size, axis in zip(
        jax.random.split(key),
        (time_masks, frequency_masks),
        (time_width, frequency_width),
        (frames, bins),
        (-2, -1),
        strict=True,
    ):
        if count:
            masked = _stripes(axis_key, (*lead, count), min(width, size), size)
            keep &= ~jnp.expand_dims(masked, -1 if axis == -2 else -2)
    return jnp.where(keep, spectrogram, 0.0)


def _stripes(key: jax.Array, shape: Sequence[int], max_width: int, size: int) -> jax.Array:
    """Returns the union of random stripes.

    Args:
      key: A key.
      shape: [..., number of stripes].
      max_width: Largest width of a stripe.
      size: Length of the axis.

    Returns:
      bool [..., size], True inside a stripe.
    """
    width_key, start_key = jax.random.split(key)
    width = jax.random.randint(width_key, shape, 0, max_width + 1)
    start = jax.random.randint(start_key, shape, 0, size - width + 1)
    position = jnp.arange(size)
    inside = (position >= start[..., None]) & (position < (start + width)[..., None])
    return inside.any(axis=-2)
