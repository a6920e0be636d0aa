"""The video tower `i3d`: Inception-v1 inflated to three dimensions.

Sources: Carreira & Zisserman 2017, "Quo Vadis, Action Recognition?"; VATT's published code.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.blocks.convolution import ConvolutionConfig, ConvolutionTower, Unit, draw_kernels
from mmjax.models.blocks.transformer import Remat

# Channels of b0, b1a, b1b, b2a, b2b and b3 of each block.
_MIXED: dict[str, tuple[int, ...]] = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Max pooling before a unit or block: window and strides.
_POOLS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "conv_2b": ((1, 3, 3), (1, 2, 2)),
    "mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


class Mixed(nnx.Module):
    """An Inception block: four branches over the same input, concatenated.

    1×1×1 | 1×1×1 → 3×3×3 | 1×1×1 → 3×3×3 | 3×3×3 max pooling → 1×1×1.

    Args:
      cfg: Options of the tower.
      in_features: Channels of the input.
      channels: Channels of b0, b1a, b1b, b2a, b2b and b3, before the width multiplier.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        in_features: int,
        channels: tuple[int, ...],
        rngs: nnx.Rngs,
    ):
        b0, b1a, b1b, b2a, b2b, b3 = map(cfg.width, channels)

        def unit(fan_in: int, fan_out: int, size: int) -> Unit:
            return Unit(
                cfg=cfg,
                in_features=fan_in,
                out_features=fan_out,
                kernel_size=(size,) * 3,
                rngs=rngs,
            )

        self.b0 = unit(in_features, b0, 1)
        self.b1a = unit(in_features, b1a, 1)
        self.b1b = unit(b1a, b1b, 3)
        self.b2a = unit(in_features, b2a, 1)
        self.b2b = unit(b2a, b2b, 3)
        self.b3 = unit(in_features, b3, 1)
        self.out_features = b0 + b1b + b2b + b3

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [N, T, H, W, C]
        pooled = nnx.max_pool(x, (3, 3, 3), (1, 1, 1), "SAME")
        branches = (
            self.b0(x, train=train),
            self.b1b(self.b1a(x, train=train), train=train),
            self.b2b(self.b2a(x, train=train), train=train),
            self.b3(pooled, train=train),
        )
        return jnp.concatenate(branches, axis=-1)


class I3D(ConvolutionTower):
    """A tower for frames [N, T, H, W, channels] in [-1, 1]; 1024 · width_multiplier features.

    Inputs may have any size: padding and pooling are TensorFlow's SAME. The feature map is 8 times
    smaller in time and 32 times in space.

    Args:
      width_multiplier: Factor of all channel counts (each rounded, at least 1).
      channels: Channels of a frame; 24 after the space-to-depth of 2×2×2 blocks.
      dtype: Dtype of computation; BatchNorm runs in float32.
      param_dtype: Dtype of parameters.
      remat: What the backward pass recomputes; see `ConvolutionConfig`. Its blocks are the
        `mixed_*`.
      rngs: Random number generators for initialization.
    """

    input_axes = ("T", "H", "W")

    def __init__(
        self,
        *,
        width_multiplier: float = 1.0,
        channels: int = 3,
        dtype: Any = "float32",
        param_dtype: Any = "float32",
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        self.cfg = cfg = ConvolutionConfig(
            width_multiplier=width_multiplier, dtype=dtype, param_dtype=param_dtype, remat=remat
        )
        self.channels = channels
        features = cfg.width(64)
        shared = dict(cfg=cfg, rngs=rngs)
        self.conv_1a = Unit(
            in_features=channels,
            out_features=features,
            kernel_size=(7, 7, 7),
            strides=(2, 2, 2),
            **shared,
        )
        self.conv_2b = Unit(
            in_features=features, out_features=features, kernel_size=(1, 1, 1), **shared
        )
        self.conv_2c = Unit(
            in_features=features, out_features=cfg.width(192), kernel_size=(3, 3, 3), **shared
        )
        features = cfg.width(192)
        for name, channels_of_branches in _MIXED.items():
            block = Mixed(in_features=features, channels=channels_of_branches, **shared)
            setattr(self, name, block)
            features = block.out_features
        self.out_features = features
        draw_kernels(self, rngs.params())

    def feature_map(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns [N, T/8, H/32, W/32, out_features], sizes rounded up."""
        for name in ("conv_1a", "conv_2b", "conv_2c", *_MIXED):
            pool = _POOLS.get(name)

            def call(module, x, pool=pool):
                x = x if pool is None else nnx.max_pool(x, *pool, "SAME")
                return module(x, train=train)

            x = self.cfg.run(call, getattr(self, name), x)
        return x


CONFIGS: dict[str, dict[str, Any]] = {"i3d": {}, "i3d_tiny": dict(width_multiplier=0.125)}
