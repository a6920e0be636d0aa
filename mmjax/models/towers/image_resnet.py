"""ResNets for single images, as in torchvision: `resnet18` for touch sensors and `resnet50`.

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
      features: Inner channels.
      stride: Stride of the first 3×3 convolution.
      bottleneck: Whether the block has three units.
      **options: Arguments of `ResidualBlock`.
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
    """A tower for images [N, H, W, 3] of any size, with an optional projection.

    Unlike in PyTorch, running variances are biased (see `Unit`). The difference is negligible,
    because a channel has thousands of values per batch.

    Args:
      bottleneck: Whether blocks have three units (ResNet-50 and deeper) instead of two.
      zero_init_last: Whether the scale of the last BatchNorm of each block is initialized to 0, the
        default of timm. torchvision, and LGSSL except for SimSiam, initialize it to 1.
      projection: Width of a float32 dense layer on the pooled features; 0 for none.
      drop_rate: Rate of dropout before it.
      rngs: Random number generators for initialization.
      **options: Arguments of `ResNet`.
    """

    input_axes = ("H", "W")
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
        """Returns a block with the options of `Block`."""
        return Block(bottleneck=self.bottleneck, zero_init_last=self.zero_init_last, **options)

    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes a batch; see `ConvolutionTower`. `key` is also the key of dropout."""
        pooled, tokens = super().__call__(x, key=key)
        if hasattr(self, "projection"):
            pooled = self.projection(dropout(pooled, self.drop_rate, key))
        return pooled, tokens

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Returns the forward operations for one image; `train` has no effect."""
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
