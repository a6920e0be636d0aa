"""MobileNetV2 for single images, as in torchvision: the tower `mobilenet_v2`.

Source: Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv
1801.04381. Padding, initialization and rounding of channels are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.convolution import (
    ConvolutionConfig,
    ConvolutionTower,
    draw_kernels,
    square_unit,
)
from mmjax.models.blocks.inverted_residual import InvertedResidual, round_channels
from mmjax.models.blocks.transformer import Remat

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


def _relu6(x: jax.Array) -> jax.Array:
    """Returns ReLU6, with ReLU's gradient at 0."""
    return jnp.minimum(jax.nn.relu(x), 6)


class MobileNetV2(ConvolutionTower):
    """A tower for images [N, H, W, 3] of any size: the mean of the last feature map, 1280 features.

    Args:
      groups: (expansion, channels, blocks, stride) of each group of blocks; only the first block of
        a group is strided.
      width_multiplier: Factor of all channel counts, each rounded to a multiple of 8. It does not
        reduce the output channels.
      stem: Channels of the first convolution, before the multiplier.
      head: Channels of the last convolution, before the multiplier.
      dtype: Dtype of computation; BatchNorm runs in float32.
      param_dtype: Dtype of parameters.
      remat: What the backward pass recomputes; see `ConvolutionConfig`.
      rngs: Random number generators for initialization.

    Raises:
      UserError: Invalid groups.
    """

    input_axes = ("H", "W")
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
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        cfg = ConvolutionConfig(
            width_multiplier=width_multiplier, dtype=dtype, param_dtype=param_dtype, remat=remat
        )
        groups = tuple(tuple(group) for group in groups)
        values = [value for group in groups for value in group]
        if not groups or any(len(group) != 4 for group in groups) or min(values) < 1:
            raise UserError(
                "groups must be (expansion, channels, blocks, stride) for each group, all at least "
                f"1; got {groups}."
            )
        self.cfg = cfg
        self.blocks = tuple(count for _, _, count, _ in groups)
        self.strides = tuple(stride for *_, stride in groups)
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
                    inner=expansion * features,
                    out_features=width,
                    stride=stride if j == 0 else 1,
                    activation=_relu6,
                    rngs=rngs,
                )
                features = width
        self.out_features = round_channels(head * max(1.0, width_multiplier))
        self.head = square_unit(
            cfg=cfg, in_features=features, out_features=self.out_features, size=1, rngs=rngs
        )
        draw_kernels(self, rngs.params(), init="kaiming")

    def feature_map(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns [N, H/32, W/32, out_features] for the default groups, rounded up."""

        last = self._group_outputs(x, train=train)[-1]
        return self._unit(self.head, last, train=train)

    def feature_maps(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns the last map of each resolution, before the last convolution.

        They have the names of a ResNet's maps, and 16, 24, 32, 96 and 320 channels by default, as
        in timm.

        Args:
          x: [N, H, W, 3].
          train: Whether BatchNorm uses the batch and updates its running averages.

        Returns:
          {'conv': [N, H/2, W/2, C], 'block1': [N, H/4, W/4, C], …}, in the compute dtype, sizes
          rounded up.

        Raises:
          InputError: The input has other axes or channels.
        """
        outputs = self._group_outputs(self.prepare(x), train=train)
        following = (*self.strides[1:], 2)
        maps = [y for y, stride in zip(outputs, following, strict=True) if stride > 1]
        names = ("conv", *(f"block{index}" for index in range(1, len(maps))))
        return dict(zip(names, maps, strict=True))

    def _unit(self, unit: nnx.Module, x: jax.Array, *, train: bool) -> jax.Array:
        return self.cfg.run(lambda unit, x: _relu6(unit(x, train=train)), unit, x)

    def _group_outputs(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Returns the outputs of all groups."""
        x, outputs = self._unit(self.stem, x, train=train), []
        for g, count in enumerate(self.blocks):
            for j in range(count):
                block = self.groups[str(g)][str(j)]
                x = self.cfg.run(lambda block, x: block(x, train=train), block, x)
            outputs.append(x)
        return outputs


CONFIGS: dict[str, dict[str, Any]] = {"mobilenet_v2": {}}
