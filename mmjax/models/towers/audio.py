"""Audio towers: `wat_*` over pieces of a waveform, `spt_*` over patches of a log-mel spectrogram.

Source: VATT (Akbari et al. 2021), sizes as in its published code; `small` and `tiny` are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx

from mmjax.models.blocks.patches import SIZES, PatchTransformer
from mmjax.models.blocks.transformer import EncoderConfig


class WaveformTransformer(PatchTransformer):
    """Waveforms [N, samples] in [-1, 1].

    Args:
      encoder: options of the encoder.
      patch_size: samples of a patch.
      buckets: rows of the table of positions.
      keep_tokens: fraction that DropToken keeps.
      rngs: for initialization.
      **options: of `PatchTransformer`.
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
    """Spectrograms [N, frames, bins]; no DropToken, as published.

    VATT's published code lays positions out frequency-major over tokens that are time-major;
    `swap_axes=True` repeats that for weights trained with it (none were released).

    Args:
      encoder: options of the encoder.
      patch_size: frames and bins of a patch.
      buckets: rows of the temporal and spectral table of positions.
      swap_axes: see above.
      rngs: for initialization.
      **options: of `PatchTransformer`.
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
