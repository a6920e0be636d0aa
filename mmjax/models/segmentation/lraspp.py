"""LRASPP, a small segmentation head on MobileNetV3: `lraspp_mobilenet_v3_large`, `lraspp_demo`.

Source: Howard et al. 2019, Searching for MobileNetV3, arXiv 1905.02244, section 6.4; details as in
torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from mmjax.models.blocks.convolution import ConvolutionConfig, square_unit
from mmjax.models.blocks.initializers import fan_in_uniform
from mmjax.models.decoders.base import convolution
from mmjax.models.decoders.resize import resize_half_pixel
from mmjax.models.segmentation.base import SegmentationModel
from mmjax.models.segmentation.mobilenet_v3 import LARGE, Block, MobileNetV3


class LRASPPHead(nnx.Module):
    """The last map, scaled per channel by its mean, is resized and added to the low-level map.

    Args:
      cfg: Dtypes.
      low_features: Channels of the low-level map.
      in_features: Channels of the last map.
      width: Channels in between.
      num_classes: Channels of the output.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        low_features: int,
        in_features: int,
        width: int,
        num_classes: int,
        rngs: nnx.Rngs,
    ):
        self.dtype = cfg.dtype
        options = dict(dtype=cfg.dtype, param_dtype=cfg.param_dtype, rngs=rngs)
        uniform = fan_in_uniform(in_features)
        self.reduce = square_unit(
            cfg=cfg,
            in_features=in_features,
            out_features=width,
            size=1,
            kernel_init=uniform,
            rngs=rngs,
        )
        self.scale = nnx.Conv(
            in_features, width, (1, 1), use_bias=False, kernel_init=uniform, **options
        )
        self.low = convolution(low_features, num_classes, 1, **options)
        self.high = convolution(width, num_classes, 1, **options)

    def __call__(self, low: jax.Array, high: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits [N, h, w, num_classes] of the size of the low-level map."""
        scale = jax.nn.sigmoid(self.scale(high.mean((1, 2), keepdims=True)))
        x = self.reduce(high, train=train) * scale
        return self.low(low) + self.high(resize_half_pixel(x, low.shape[1:3]))


class LRASPP(SegmentationModel):
    """LRASPP on a dilated MobileNetV3; the bottleneck is the last map of the backbone.

    It has no dropout.

    Args:
      blocks: Blocks of the backbone; see `mmjax.models.segmentation.mobilenet_v3.Block`.
      stem: Channels of its first convolution.
      last: Channels of its last convolution.
      low: Index of the block whose output is the low-level map.
      width: Channels of the head.
      momentum: Momentum of BatchNorm's running averages in the backbone.
      rngs: Random number generators for initialization.
      **options: Arguments of `SegmentationModel`.
    """

    def __init__(
        self,
        *,
        blocks: Sequence[Sequence[Any]] = LARGE,
        stem: int = 16,
        last: int = 960,
        low: int = 3,
        width: int = 128,
        momentum: float = 0.99,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(**options)
        self.backbone = MobileNetV3(
            cfg=self.cfg,
            blocks=blocks,
            stem=stem,
            last=last,
            low=low,
            momentum=momentum,
            rngs=rngs,
        )
        self.bottleneck_width = self.backbone.out_features
        self.head = LRASPPHead(
            cfg=self.cfg,
            low_features=self.backbone.low_features,
            in_features=self.bottleneck_width,
            width=width,
            num_classes=self.num_classes,
            rngs=rngs,
        )

    def forward(
        self, x: jax.Array, *, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, None]:
        """Returns logits of 1/8 of the image, the bottleneck, and None; see the base class."""
        del key
        low, high = self.backbone(x, train=train)
        return self.head(low, high, train=train), high, None


# The bottleneck has 1/8 of the resolution of the image, the logits 1/4. Averages with torchvision's
# momentum would still contain a third of their initial values after 100 steps.
_DEMO_BLOCKS = (
    Block(3, 16, 16, False, False, 2),
    Block(3, 48, 24, True, True, 2),
    Block(3, 72, 24, True, True, 1, 2),
)
CONFIGS: dict[str, dict[str, Any]] = {
    "lraspp_mobilenet_v3_large": {},
    "lraspp_demo": dict(
        blocks=_DEMO_BLOCKS, stem=16, last=96, low=0, width=32, momentum=0.9, image_size=64
    ),
}
