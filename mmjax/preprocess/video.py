"""What happens to a batch on the device, inside jit: scaling, augmentation, spectrograms, mixup.

Functions work on any leading dimensions. Random ones take a key and draw once per leading index:
one color change per clip, one λ per sample. Nothing here keeps state, so the same key gives the
same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError

# --------------------------------------------------------------------------------------------------
# Video


def normalize_video(video: jax.Array, *, zero_centered: bool = True) -> jax.Array:
    """uint8 frames as float32 in [-1, 1] (`zero_centered`) or [0, 1]; any shape."""
    if video.dtype != jnp.uint8:
        raise TypeError(f"Frames must be uint8, not {video.dtype}.")
    video = video.astype(jnp.float32)
    return video * (2.0 / 255.0) - 1.0 if zero_centered else video * (1.0 / 255.0)


def flip_video(video: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mirrors left and right the clips [..., T, H, W, 3] for which `wanted` [...] is True."""
    return jnp.where(wanted[..., None, None, None, None], video[..., ::-1, :], video)


def color_jitter(
    key: jax.Array,
    video: jax.Array,
    *,
    probability: float = 0.8,
    brightness: float = 32.0 / 255.0,
    saturation: tuple[float, float] = (0.6, 1.4),
    contrast: tuple[float, float] = (0.6, 1.4),
    hue: float = 0.2,
) -> jax.Array:
    """Changes a clip's colors with some probability: the color augmentation of VATT and DMVR.

    In this order: brightness adds U(-brightness, brightness); saturation and contrast are
    multiplied by a factor from their range, contrast around each frame's mean of each channel; hue
    is turned by U(-hue, hue) of a full turn; the result is clipped to [0, 1]. All frames of a clip
    change alike. Saturation and hue are those of HSV.

    Args:
      key: one key for all clips.
      video: float [..., T, H, W, 3] in [0, 1].
    """
    clips = video.shape[:-4]
    keys = jax.random.split(key, 5)

    def draw(key, low, high):
        return jax.random.uniform(key, (*clips, 1, 1, 1, 1), jnp.float32, low, high)

    changed = video + draw(keys[0], -brightness, brightness)
    changed = adjust_saturation(changed, draw(keys[1], *saturation))
    changed = adjust_contrast(changed, draw(keys[2], *contrast))
    changed = adjust_hue(changed, draw(keys[3], -hue, hue))
    changed = jnp.clip(changed, 0.0, 1.0)
    return jnp.where(draw(keys[4], 0.0, 1.0) < probability, changed, video)


def adjust_contrast(video: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Spreads each channel of each frame [..., H, W, 3] around its mean by `factor`."""
    mean = video.mean(axis=(-3, -2), keepdims=True)
    return (video - mean) * factor + mean


def adjust_saturation(video: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Multiplies the saturation of HSV by `factor`, up to 1; hue and value stay. [..., 3]."""
    value = video.max(axis=-1, keepdims=True)
    spread = value - video.min(axis=-1, keepdims=True)
    saturation = jnp.where(value > 0, spread / jnp.where(value > 0, value, 1.0), 0.0)
    wanted = jnp.clip(saturation * factor, 0.0, 1.0)
    # With hue and value fixed, a channel's distance from the value is proportional to the
    # saturation.
    ratio = jnp.where(saturation > 0, wanted / jnp.where(saturation > 0, saturation, 1.0), 0.0)
    return value - (value - video) * ratio


def adjust_hue(video: jax.Array, turn: jax.Array | float) -> jax.Array:
    """Turns the hue of HSV by `turn` (1 is a full turn), keeping largest and smallest channel."""
    red, green, blue = video[..., 0], video[..., 1], video[..., 2]
    high, low = video.max(axis=-1), video.min(axis=-1)
    spread = high - low
    safe = jnp.where(spread > 0, spread, 1.0)
    # In sixths of a turn. Where `high` and a channel are computed twice, they may differ by a bit:
    # they are not compared with each other.
    hue = jnp.where(
        (red >= green) & (red >= blue),
        (green - blue) / safe,
        jnp.where(green >= blue, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    turn = jnp.asarray(turn)
    hue = (hue + 6.0 * (turn[..., 0] if turn.ndim else turn)) % 6.0
    channels = (
        jnp.abs(hue - 3.0) - 1.0,
        2.0 - jnp.abs(hue - 2.0),
        2.0 - jnp.abs(hue - 4.0),
    )
    shares = jnp.clip(jnp.stack(channels, axis=-1), 0.0, 1.0)
    return low[..., None] + spread[..., None] * shares


def space_to_depth(video: jax.Array, *, block: tuple[int, int, int] = (2, 2, 2)) -> jax.Array:
    """[..., T, H, W, C] → [..., T/t, H/h, W/w, t·h·w·C], channels in the order (t, h, w, c)."""
    *lead, frames, height, width, channels = video.shape
    t, h, w = block
    if frames % t or height % h or width % w:
        raise UserError(f"Clips of {frames}x{height}x{width} do not divide into blocks of {block}.")
    video = video.reshape(*lead, frames // t, t, height // h, h, width // w, w, channels)
    n = len(lead)
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3, n + 5, n + 6)
    return video.transpose(order).reshape(*lead, frames // t, height // h, width // w, -1)


# --------------------------------------------------------------------------------------------------
# Audio


def audio_noise(key: jax.Array, waveform: jax.Array, level: float) -> jax.Array:
    """Adds normal noise with standard deviation `level` times each waveform's peak; [..., S]."""
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
    """Log-mel spectrogram: VATT's log(1 + 10000 · mel), from magnitudes of a Hann-windowed STFT.

    Args:
      waveform: [..., S].
      sample_rate: Hz.
      window, step: seconds; 2048 and 1024 samples at 48 kHz. The last windows are padded with
        zeros, so that there are ceil(S / step) of them.
      num_bins: triangular bands, equally wide in mels, between the frequencies `low` and `high` in
        Hz; `high` is lowered to half the sample rate where that is less.
      normalize: stretch each example to [0, 1]; a constant one becomes 0.

    Returns:
      float32 [..., F, num_bins].

    Raises:
      UserError: the window or step has no sample, or `low` is not below `high`.
    """
    length, hop = int(window * sample_rate), int(step * sample_rate)
    if length < 2 or hop < 1:
        raise UserError(
            f"log_mel: window={window} s and step={step} s are too short at {sample_rate} Hz."
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
    spread = mel.max(axis=(-2, -1), keepdims=True) - smallest
    return (mel - smallest) / jnp.where(spread > 0, spread, 1.0)


def mel_matrix(
    *, num_bins: int, num_frequencies: int, sample_rate: int, low: float, high: float
) -> np.ndarray:
    """Weights [num_frequencies, num_bins] from linear frequencies to HTK mel bands.

    Triangles in the mel scale m = 1127 ln(1 + f / 700), without normalization of their area, and
    nothing from the frequency 0: what `tf.signal.linear_to_mel_weight_matrix` gives.
    """
    if not 0 <= low < high:
        raise UserError(
            f"log_mel: the lowest frequency {low} Hz must be below the highest, {high} Hz."
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
    """The periodic Hann window."""
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
      key: one key for all.
      spectrogram: [..., F, M].
      time_masks, frequency_masks: how many stripes along each axis.
      time_width, frequency_width: the widest one; widths are uniform from 0 to this, positions
        uniform.
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
            striped = _stripes(axis_key, (*lead, count), min(width, size), size)
            keep &= ~jnp.expand_dims(striped, -1 if axis == -2 else -2)
    return jnp.where(keep, spectrogram, 0.0)


def _stripes(key: jax.Array, shape: Sequence[int], widest: int, size: int) -> jax.Array:
    """bool [..., size], True in any of the last axis of `shape` stripes."""
    width_key, start_key = jax.random.split(key)
    width = jax.random.randint(width_key, shape, 0, widest + 1)
    start = jax.random.randint(start_key, shape, 0, size - width + 1)
    position = jnp.arange(size)
    inside = (position >= start[..., None]) & (position < (start + width)[..., None])
    return inside.any(axis=-2)


# --------------------------------------------------------------------------------------------------
# Mixup


def mixup(key: jax.Array, tree: Any, *, alpha: float, beta: float | None = None) -> Any:
    """Mixes every example with another of the batch: λ x + (1 − λ) x' (Zhang et al. 2018).

    λ ~ Beta(alpha, beta) is drawn once per example, and with its partner is the same for all
    leaves: mix inputs and targets together. `beta` defaults to `alpha`; VATT uses Beta(5, 5).

    Args:
      tree: float arrays [B, ...].

    Raises:
      TypeError: a leaf is not of floating point, such as class numbers: make them targets [B, C]
        first.
    """
    size = jax.tree.leaves(tree)[0].shape[0]
    weight_key, order_key = jax.random.split(key)
    weight = jax.random.beta(weight_key, alpha, alpha if beta is None else beta, (size,))
    return mix(tree, weight, jax.random.permutation(order_key, size))


def mix(tree: Any, weight: jax.Array, positive: jax.Array) -> Any:
    """weight · x + (1 − weight) · x[partner] of every leaf [B, ...]; `weight`, `positive`: [B]."""

    def one(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"mixup needs floating-point arrays, not {x.dtype} {x.shape}.")
        w = weight.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
        return w * x + (1 - w) * x[positive]

    return jax.tree.map(one, tree)
