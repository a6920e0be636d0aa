"""Audio towers: `wat_*` for waveforms and `spt_*` for log-mel spectrograms.

Source: VATT (Akbari et al. 2021), sizes as in its published code; `small` and `tiny` are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx

from mmjax.models.blocks.patches import SIZES, PatchTransformer
from mmjax.models.blocks.transformer import EncoderConfig


class WaveformTransformer(PatchTransformer):
    """A transformer over patches of waveforms [N, samples] in [-1, 1].

    Args:
      encoder: Options of the encoder.
      patch_size: Samples of a patch.
      buckets: Size of the position table.
      keep_tokens: Fraction of the tokens that DropToken keeps.
      rngs: Random number generators for initialization.
      **options: Arguments of `PatchTransformer`.
    """

    def __init__(
        self,
        *,
        encoder: EncoderConfig,
        patch_size: int = 128,
        buckets: int = 1200,
        keep_tokens: float = 0.5,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(
            encoder=encoder,
            patch_size=(patch_size,),
            channels=0,
            axes=("temporal",),
            buckets=(buckets,),
            keep_tokens=keep_tokens,
            rngs=rngs,
            **options,
        )


class SpectrogramTransformer(PatchTransformer):
    """A transformer over patches of spectrograms [N, frames, bins]; no DropToken, as published.

    Args:
      encoder: Options of the encoder.
      patch_size: Frames and bins of a patch.
      buckets: Sizes of the temporal and the spectral position table.
      swap_axes: Whether to flatten positions frequency-major although tokens are time-major, as
        VATT's published code does. Use it only for weights trained that way (none were released).
      rngs: Random number generators for initialization.
      **options: Arguments of `PatchTransformer`.
    """

    def __init__(
        self,
        *,
        encoder: EncoderConfig,
        patch_size: Sequence[int] = (16, 5),
        buckets: Sequence[int] = (9, 16),
        swap_axes: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(
            encoder=encoder,
            patch_size=patch_size,
            channels=0,
            axes=("temporal", "spectral"),
            buckets=buckets,
            swap_axes=swap_axes,
            rngs=rngs,
            **options,
        )


_SIZES = ("tiny", "small", "base", "medium", "large")
WAVEFORM_CONFIGS: dict[str, dict[str, Any]] = {f"wat_{size}": dict(SIZES[size]) for size in _SIZES}
WAVEFORM_CONFIGS["wat_tiny"].update(buckets=100)
SPECTROGRAM_CONFIGS: dict[str, dict[str, Any]] = {
    f"spt_{size}": dict(SIZES[size], use_bias=False) for size in _SIZES
}
