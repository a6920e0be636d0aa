"""Inverted residual blocks of MobileNets, with squeeze-and-excitation.

Sources: Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv
1801.04381; Howard et al. 2019, Searching for MobileNetV3, arXiv 1905.02244. Rounding of channels is
torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.blocks.convolution import ConvolutionConfig, square_unit

_DIVISOR = 8


def round_channels(channels: float) -> int:
    """Returns the nearest multiple of 8 that is not below 90% of `channels`."""
    rounded = max(_DIVISOR, int(channels + _DIVISOR / 2) // _DIVISOR * _DIVISOR)
    return rounded if rounded >= 0.9 * channels else rounded + _DIVISOR


class SqueezeExcite(nnx.Module):
    """Scales channels: mean over the map → 1×1 `reduce` → ReLU → 1×1 `expand` → hard sigmoid.

    Kernels are 0 until `draw_kernels` initializes those of the tower.

    Args:
      cfg: Dtypes.
      features: Channels of the map.
      squeezed: Channels in between.
      rngs: Random number generators for initialization.
    """

    def __init__(self, *, cfg: ConvolutionConfig, features: int, squeezed: int, rngs: nnx.Rngs):
        options = dict(
            kernel_init=nnx.initializers.zeros,
            dtype=cfg.dtype,
            param_dtype=cfg.param_dtype,
            rngs=rngs,
        )
        self.reduce = nnx.Conv(features, squeezed, (1, 1), **options)
        self.expand = nnx.Conv(squeezed, features, (1, 1), **options)

    def __call__(self, x: jax.Array) -> jax.Array:  # [N, H, W, C]
        mean = x.mean((1, 2), keepdims=True, dtype=jnp.float32)
        return x * jax.nn.hard_sigmoid(self.expand(jax.nn.relu(self.reduce(mean))))


class InvertedResidual(nnx.Module):
    """1×1 `expand` → `depthwise` → `squeeze` → 1×1 `project`, plus the input if shapes are equal.

    The first two end with the activation; the last has none.

    Args:
      cfg: Options of the tower.
      in_features: Channels of the input.
      inner: Channels of the depthwise convolution; `in_features` omits `expand`.
      out_features: Channels of the output.
      size: Kernel size of the depthwise convolution.
      stride: Its stride.
      dilation: Distance of its elements.
      squeezed: Channels in the middle of `squeeze`; 0 omits it.
      activation: The activation.
      rngs: Random number generators for initialization.
      **options: Arguments of `Unit`, for example of BatchNorm.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        in_features: int,
        inner: int,
        out_features: int,
        size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        squeezed: int = 0,
        activation: Callable[[jax.Array], jax.Array],
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.has_residual = stride == 1 and in_features == out_features
        self.activation = activation
        options = dict(options, cfg=cfg, relu=False, rngs=rngs)
        if inner != in_features:
            self.expand = square_unit(
                in_features=in_features, out_features=inner, size=1, **options
            )
        self.depthwise = square_unit(
            in_features=inner,
            out_features=inner,
            size=size,
            stride=stride,
            dilation=dilation,
            feature_groups=inner,
            **options,
        )
        if squeezed:
            self.squeeze = SqueezeExcite(cfg=cfg, features=inner, squeezed=squeezed, rngs=rngs)
        self.project = square_unit(in_features=inner, out_features=out_features, size=1, **options)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [N, H, W, C]
        y = self.activation(self.expand(x, train=train)) if hasattr(self, "expand") else x
        y = self.activation(self.depthwise(y, train=train))
        if hasattr(self, "squeeze"):
            y = self.squeeze(y)
        y = self.project(y, train=train)
        return x + y if self.has_residual else y
