"""MobileNetV2 over single images, as torchvision has it: the tower `mobilenet_v2`.

Source: Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv
1801.04381; padding, initial values and the rounding of channels as torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.convolution import ConvolutionConfig, ConvolutionTower, draw_kernels
from mmjax.models.towers.resnet import square_unit

# (expansion, channels, blocks, stride) of each group: table 2 of the paper.
GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, HEAD = 32, 1280  # channels
_DIVISOR = 8


def round_channels(channels: float) -> int:
    """The multiple of 8 nearest to a number of channels, but none more than a tenth below it."""
    rounded = max(_DIVISOR, int(channels + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
    return rounded if rounded >= 0.9 * channels else rounded + _DIVISOR


def _relu6(x: jax.Array) -> jax.Array:
    """The rest of ReLU6 behind ReLU."""
    return jnp.minimum(x, 6)


class InvertedResidual(nnx.Module):
    """1×1 `expand` → 3×3 `depthwise` (strided) → 1×1 `project`, plus the input where that fits.

    The first two end with ReLU6, the last with nothing.

    Args:
      cfg: options of the tower.
      in_features: channels of the input.
      out_features: channels of the output.
      expansion: inner channels over those of the input; with 1 there is no `expand`.
      stride: of the 3×3 convolution.
      rngs: for initialization.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        in_features: int,
        out_features: int,
        expansion: int,
        stride: int,
        rngs: nnx.Rngs,
    ):
        inner = expansion * in_features
        self.adds = stride == 1 and in_features == out_features
        if expansion != 1:
            self.expand = square_unit(
                cfg=cfg, in_features=in_features, out_features=inner, size=1, rngs=rngs
            )
        self.depthwise = square_unit(
            cfg=cfg,
            in_features=inner,
            out_features=inner,
            size=3,
            stride=stride,
            feature_groups=inner,
            rngs=rngs,
        )
        self.project = square_unit(
            cfg=cfg, in_features=inner, out_features=out_features, size=1, relu=False, rngs=rngs
        )

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [N, H, W, C]
        y = _relu6(self.expand(x, train=train)) if hasattr(self, "expand") else x
        y = _relu6(self.depthwise(y, train=train))
        y = self.project(y, train=train)
        return x + y if self.adds else y


class MobileNetV2(ConvolutionTower):
    """Images [N, H, W, 3] of any size → features of width 1280, the mean of the last map.

    Args:
      groups: (expansion, channels, blocks, stride) of each group of blocks; the stride is its first
        block's.
      width_multiplier: factor of all channel counts, each rounded to a multiple of 8; the last one
        never shrinks.
      stem, head: channels of the first convolution, and of the last one, before that factor.
      dtype: of computation; BatchNorm runs in float32.
      param_dtype: of parameters.
      remat: what the backward pass keeps, see `ConvolutionConfig`.
      rngs: for initialization.

    Raises:
      UserError: groups that are none.
    """

    input_ndim = 3
    channels = 3

    def __init__(
        self,
        *,
        groups: Sequence[Sequence[int]] = GROUPS,
        width_multiplier: float = 1.0,
        stem: int = STEM,
        head: int = HEAD,
        dtype: Any = "float32",
        param_dtype: Any = "float32",
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        cfg = ConvolutionConfig(
            width_multiplier=width_multiplier, dtype=dtype, param_dtype=param_dtype, remat=remat
        )
        groups = tuple(tuple(group) for group in groups)
        numbers = [number for group in groups for number in group]
        if not groups or any(len(group) != 4 for group in groups) or min(numbers) < 1:
            raise UserError(
                f"groups={groups} must be (expansion, channels, blocks, stride) of each group, all "
                "at least 1."
            )
        self.cfg = cfg
        self.blocks = tuple(count for _, _, count, _ in groups)
        features = round_channels(stem * width_multiplier)
        self.stem = square_unit(
            cfg=cfg, in_features=3, out_features=features, size=3, stride=2, rngs=rngs
        )
        self.groups = nnx.Dict()
        for g, (expansion, channels, count, stride) in enumerate(groups):
            self.groups[str(g)] = nnx.Dict()
            width = round_channels(channels * width_multiplier)
            for j in range(count):
                self.groups[str(g)][str(j)] = InvertedResidual(
                    cfg=cfg,
                    in_features=features,
                    out_features=width,
                    expansion=expansion,
                    stride=stride if j == 0 else 1,
                    rngs=rngs,
                )
                features = width
        self.out_features = round_channels(head * max(1.0, width_multiplier))
        self.head = square_unit(
            cfg=cfg, in_features=features, out_features=self.out_features, size=1, rngs=rngs
        )
        draw_kernels(self, rngs.params(), init="kaiming")

    def feature_map(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, 3] → [N, H/32, W/32, out_features] (as published), rounded up."""

        def unit(unit, x):
            return _relu6(unit(x, train=train))

        x = self.cfg.run(unit, self.stem, x)
        for g, count in enumerate(self.blocks):
            for j in range(count):
                block = self.groups[str(g)][str(j)]
                x = self.cfg.run(lambda block, x: block(x, train=train), block, x)
        return self.cfg.run(unit, self.head, x)


CONFIGS: dict[str, dict[str, Any]] = {"mobilenet_v2": {}}
