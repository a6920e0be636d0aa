"""ResNets over single images as torchvision has them: `resnet18` of touch sensors, `resnet50`.

Source: He et al. 2016, with torchvision's padding and its stride in the 3×3 convolution ("v1.5");
`resnet18` as in TVL (Fu et al. 2024, arXiv 2402.13232).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from mmjax.models.blocks.initializers import fan_in_uniform
from mmjax.models.blocks.noise import check_rate, dropout
from mmjax.models.towers.resnet import ResidualBlock, ResNet


class Block(ResidualBlock):
    """Two 3×3 units, or 1×1 → 3×3 → 1×1 of four times the width; plus the input, then ReLU.

    Args:
      features: inner channels.
      stride: of the first 3×3 convolution.
      bottleneck: three units.
      **options: of `ResidualBlock`.
    """

    def __init__(self, *, features: int, stride: int, bottleneck: bool, **options: Any):
        units = {"first": (3, features, stride), "second": (3, features, 1)}
        if bottleneck:
            units = {
                "first": (1, features, 1),
                "second": (3, features, stride),
                "third": (1, 4 * features, 1),
            }
        super().__init__(units=units, **options)


class ImageResNet(ResNet):
    """Images [N, H, W, 3] of any size → the mean of the last feature map → projection.

    Unlike torch's, running variances are of the biased kind (see `Unit`): with the thousands of
    values that a channel has in a batch, the same.

    Args:
      bottleneck: blocks of three units (ResNet-50 and deeper), not two.
      zero_init_last: the scale of each block's last BatchNorm starts at 0, as timm has it by
        default; torchvision's and LGSSL's (but for SimSiam) start at 1.
      projection: width of a dense layer, in float32, on the pooled features; 0 for none.
      drop_rate: of dropout before it.
      rngs: for initialization.
      **options: of `ResNet`.
    """

    input_ndim = 3
    pool_padding = ((1, 1), (1, 1))
    kernel_init = "kaiming"

    def __init__(
        self,
        *,
        bottleneck: bool = False,
        zero_init_last: bool = True,
        projection: int = 0,
        drop_rate: float = 0.0,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        check_rate("drop_rate", drop_rate)
        self.bottleneck = bottleneck
        self.zero_init_last = zero_init_last
        self.expansion = 4 if bottleneck else 1
        self.drop_rate = drop_rate
        super().__init__(channels=3, shift=False, rngs=rngs, **options)
        if projection:
            uniform = fan_in_uniform(self.out_features)
            self.projection = nnx.Linear(
                self.out_features,
                projection,
                kernel_init=uniform,
                bias_init=uniform,
                param_dtype=self.cfg.param_dtype,
                rngs=rngs,
            )
            self.out_features = projection

    def make_block(self, **options: Any) -> Block:
        """A block with the options of `Block`, but those of the tower."""
        return Block(bottleneck=self.bottleneck, zero_init_last=self.zero_init_last, **options)

    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes a batch, see `ConvolutionTower`; the key is also the randomness of dropout."""
        pooled, tokens = super().__call__(x, key=key)
        if hasattr(self, "projection"):
            pooled = self.projection(dropout(pooled, self.drop_rate, key))
        return pooled, tokens

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Forward operations for one image of this shape, the same in training."""
        total = super().flops(shape, train=train)
        if hasattr(self, "projection"):
            total += 2.0 * self.projection.in_features * self.projection.out_features
        return total


TOUCH_CONFIGS: dict[str, dict[str, Any]] = {
    "resnet18": dict(blocks=(2, 2, 2, 2), projection=768),
}
IMAGE_CONFIGS: dict[str, dict[str, Any]] = {
    "resnet50": dict(blocks=(3, 4, 6, 3), bottleneck=True),
}
