"""MobileNetV3 with dilated last blocks, the backbone of LRASPP and DeepLabv3.

Source: Howard et al. 2019, Searching for MobileNetV3, arXiv 1905.02244; details as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.convolution import ConvolutionConfig, draw_kernels, square_unit
from mmjax.models.blocks.inverted_residual import InvertedResidual, round_channels

_EPSILON = 1e-3  # of torchvision's BatchNorm


class Block(NamedTuple):
    """A block of a MobileNetV3.

    Attributes:
      size: Kernel size of the depthwise convolution.
      inner: Its channels.
      out: Output channels.
      squeeze: Whether it has squeeze-and-excitation.
      hard_swish: Whether the activation is the hard swish instead of ReLU.
      stride: Stride of the depthwise convolution.
      dilation: Its dilation.
    """

    size: int
    inner: int
    out: int
    squeeze: bool
    hard_swish: bool
    stride: int = 1
    dilation: int = 1


# Table 1 of the paper; the last three blocks are dilated instead of strided.
LARGE = (
    Block(3, 16, 16, False, False),
    Block(3, 64, 24, False, False, 2),
    Block(3, 72, 24, False, False),
    Block(5, 72, 40, True, False, 2),
    Block(5, 120, 40, True, False),
    Block(5, 120, 40, True, False),
    Block(3, 240, 80, False, True, 2),
    Block(3, 200, 80, False, True),
    Block(3, 184, 80, False, True),
    Block(3, 184, 80, False, True),
    Block(3, 480, 112, True, True),
    Block(3, 672, 112, True, True),
    Block(5, 672, 160, True, True, 1, 2),
    Block(5, 960, 160, True, True, 1, 2),
    Block(5, 960, 160, True, True, 1, 2),
)


class MobileNetV3(nnx.Module):
    """`stem` (3×3, stride 2) → `blocks` → `last` (1×1), the first and the last with hard swish.

    Args:
      cfg: Options; `width_multiplier` has no effect.
      blocks: The blocks.
      stem: Channels of the first convolution.
      last: Channels of the last convolution.
      low: Index of the block whose output is the low-level map.
      momentum: Momentum of BatchNorm's running averages: the weight of their previous value.
      rngs: Random number generators for initialization.

    Attributes:
      low_features: Channels of the low-level map.

    Raises:
      UserError: `blocks` has no block with the index `low`.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        blocks: Sequence[Sequence[int]] = LARGE,
        stem: int = 16,
        last: int = 960,
        low: int = 3,
        momentum: float = 0.99,
        rngs: nnx.Rngs,
    ):
        if not 0 <= low < len(blocks):
            raise UserError(
                f"low must be the index of one of {len(blocks)} blocks, from 0; got {low}."
            )
        self.cfg, self.low = cfg, low
        options = dict(cfg=cfg, rngs=rngs, epsilon=_EPSILON, momentum=momentum)
        self.stem = square_unit(
            in_features=3, out_features=stem, size=3, stride=2, relu=False, **options
        )
        self.blocks, features = nnx.Dict(), stem
        for index, block in enumerate(Block(*block) for block in blocks):
            self.blocks[str(index)] = InvertedResidual(
                in_features=features,
                inner=block.inner,
                out_features=block.out,
                size=block.size,
                stride=block.stride,
                dilation=block.dilation,
                squeezed=round_channels(block.inner / 4) if block.squeeze else 0,
                activation=jax.nn.hard_swish if block.hard_swish else jax.nn.relu,
                **options,
            )
            features = block.out
        self.low_features, self.out_features = Block(*blocks[low]).out, last
        self.last = square_unit(
            in_features=features, out_features=last, size=1, relu=False, **options
        )
        draw_kernels(self, rngs.params(), init="kaiming")

    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the low-level map and the last map.

        Args:
          x: [N, H, W, 3] in the compute dtype.
          train: Whether BatchNorm uses the batch and updates its running averages.
        """
        maps = self.maps(x, train=train)
        return maps[1 + self.low], maps[-1]

    def maps(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Returns the outputs of the stem, of all blocks, and of the last convolution."""

        def unit(unit: nnx.Module, x: jax.Array) -> jax.Array:
            return jax.nn.hard_swish(unit(x, train=train))

        maps = [self.cfg.run(unit, self.stem, x)]
        for index in range(len(self.blocks)):
            block = self.blocks[str(index)]
            maps.append(self.cfg.run(lambda block, x: block(x, train=train), block, maps[-1]))
        return [*maps, self.cfg.run(unit, self.last, maps[-1])]
