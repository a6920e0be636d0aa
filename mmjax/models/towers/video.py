"""Video towers `vit_*`: transformers over space-time patches.

Source: VATT (Akbari et al. 2021), sizes as in its published code; `small` and `tiny` are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx

from mmjax.models.blocks.patches import SIZES, PatchTransformer
from mmjax.models.blocks.transformer import EncoderConfig


class VideoTransformer(PatchTransformer):
    """A transformer over patches of frames [N, T, H, W, channels] in [-1, 1].

    Args:
      encoder: Options of the encoder.
      patch_size: Frames, height and width of a patch.
      buckets: Sizes of the temporal, vertical and horizontal position table.
      channels: Channels of a frame.
      keep_tokens: Fraction of the tokens that DropToken keeps.
      rngs: Random number generators for initialization.
      **options: Arguments of `PatchTransformer`.
    """

    def __init__(
        self,
        *,
        encoder: EncoderConfig,
        patch_size: Sequence[int] = (4, 16, 16),
        buckets: Sequence[int] = (8, 14, 14),
        channels: int = 3,
        keep_tokens: float = 0.5,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(
            encoder=encoder,
            patch_size=patch_size,
            channels=channels,
            axes=("temporal", "vertical", "horizontal"),
            buckets=buckets,
            keep_tokens=keep_tokens,
            rngs=rngs,
            **options,
        )


CONFIGS: dict[str, dict[str, Any]] = {f"vit_{size}": dict(SIZES[size]) for size in SIZES}
CONFIGS["vit_tiny"].update(patch_size=(4, 8, 8), buckets=(2, 4, 4))
