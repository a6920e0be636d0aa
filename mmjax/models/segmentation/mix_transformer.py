"""Mix transformers (MiT), the hierarchical backbones of SegFormer.

Source: Xie et al. 2021, SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers, arXiv 2105.15203, section 3.1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.attention import attend
from mmjax.models.blocks.convolution import ConvolutionConfig
from mmjax.models.blocks.depthwise import Depthwise
from mmjax.models.blocks.noise import check_rate, drop_path, split_key
from mmjax.models.blocks.transformer import gelu

_EPSILON = 1e-6  # of LayerNorm in blocks and after stages
_PATCH_EPSILON = 1e-5  # of LayerNorm after strided convolutions


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixTransformerConfig:
    """Sizes of a mix transformer, one per stage; the default is MiT-B0.

    Attributes:
      widths: Features of a token.
      depths: Number of blocks.
      num_heads: Number of attention heads.
      reductions: Height and width of the squares of tokens that become one key and value.
      mlp_ratio: Hidden features of the MLP over those of a token.
      drop_path_rate: Rate of stochastic depth in the last block, 0 in the first, linear in between.

    Raises:
      UserError: Invalid or different numbers of sizes.
    """

    widths: tuple[int, ...] = (32, 64, 160, 256)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 5, 8)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratio: int = 4
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        names = ("widths", "depths", "num_heads", "reductions")
        sizes = {name: tuple(getattr(self, name)) for name in names}
        flat = [size for stage in sizes.values() for size in stage]
        if len(set(map(len, sizes.values()))) != 1 or min(flat, default=0) < 1:
            values = ", ".join(f"{name}={size}" for name, size in sizes.items())
            raise UserError(f"A mix transformer needs as many of each size, all ≥ 1; got {values}.")
        for width, heads in zip(self.widths, self.num_heads, strict=True):
            if width % heads:
                raise UserError(
                    f"widths of a mix transformer must be multiples of num_heads; got {width} and "
                    f"{heads}."
                )
        check_rate("drop_path_rate", self.drop_path_rate)

    def strides(self) -> list[int]:
        """Returns the size of the image over that of the map of each stage."""
        return [4 * 2**stage for stage in range(len(self.widths))]

    def min_size(self) -> int:
        """Returns the smallest image whose maps have at least one square of tokens."""
        pairs = zip(self.strides(), self.reductions, strict=True)
        return max(stride * (reduction - 1) + 1 for stride, reduction in pairs)


def _linear(
    cfg: ConvolutionConfig, in_features: int, out_features: int, *, rngs: nnx.Rngs
) -> nnx.Linear:
    return nnx.Linear(
        in_features,
        out_features,
        kernel_init=nnx.initializers.normal(0.02),
        dtype=cfg.dtype,
        param_dtype=cfg.param_dtype,
        rngs=rngs,
    )


def _convolution(
    cfg: ConvolutionConfig,
    in_features: int,
    out_features: int,
    size: int,
    *,
    stride: int,
    padding: int,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    return nnx.Conv(
        in_features,
        out_features,
        (size, size),
        strides=(stride, stride),
        padding=((padding, padding),) * 2,
        kernel_init=nnx.initializers.normal(math.sqrt(2 / (size * size * out_features))),
        dtype=cfg.dtype,
        param_dtype=cfg.param_dtype,
        rngs=rngs,
    )


def _norm(
    cfg: ConvolutionConfig, features: int, epsilon: float, *, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        features,
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=cfg.dtype,
        param_dtype=cfg.param_dtype,
        rngs=rngs,
    )


class ReducedAttention(nnx.Module):
    """Multi-head attention over a map, with keys and values of a map of lower resolution.

    Args:
      cfg: Dtypes.
      features: Channels of the map.
      num_heads: Number of attention heads.
      reduction: Factor between the resolutions: size and stride of the convolution `reduce`; 1
        omits it.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        features: int,
        num_heads: int,
        reduction: int,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        for name in ("query", "key", "value", "out"):
            setattr(self, name, _linear(cfg, features, features, rngs=rngs))
        if reduction > 1:
            self.reduce = _convolution(
                cfg, features, features, reduction, stride=reduction, padding=0, rngs=rngs
            )
            self.reduce_norm = _norm(cfg, features, _PATCH_EPSILON, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # [N, h, w, C]
        source = self.reduce_norm(self.reduce(x)) if hasattr(self, "reduce") else x
        heads = (self.num_heads, x.shape[-1] // self.num_heads)
        query, key, value = (
            layer(tokens).reshape(len(x), -1, *heads)
            for layer, tokens in ((self.query, x), (self.key, source), (self.value, source))
        )
        y = attend(query, key, value, scale=heads[1] ** -0.5)
        return self.out(y.reshape(x.shape))


class MixFeedForward(nnx.Module):
    """Dense layer → 3×3 depthwise convolution → GELU → dense layer, over a map.

    Args:
      cfg: Dtypes.
      features: Channels of the map.
      hidden: Channels in between.
      rngs: Random number generators for initialization.
    """

    def __init__(self, *, cfg: ConvolutionConfig, features: int, hidden: int, rngs: nnx.Rngs):
        self.up = _linear(cfg, features, hidden, rngs=rngs)
        self.depthwise = Depthwise(
            hidden,
            hidden,
            (3, 3),
            padding=((1, 1), (1, 1)),
            feature_group_count=hidden,
            kernel_init=nnx.initializers.normal(math.sqrt(2 / 9)),
            dtype=cfg.dtype,
            param_dtype=cfg.param_dtype,
            rngs=rngs,
        )
        self.down = _linear(cfg, hidden, features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # [N, h, w, C]
        return self.down(gelu(self.depthwise(self.up(x))))


class MixBlock(nnx.Module):
    """Attention and feed-forward, each after its norm and added to its input.

    Args:
      cfg: Dtypes.
      features: Channels of the map.
      num_heads, reduction: See `ReducedAttention`.
      hidden: See `MixFeedForward`.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        features: int,
        num_heads: int,
        reduction: int,
        hidden: int,
        rngs: nnx.Rngs,
    ):
        self.attention_norm = _norm(cfg, features, _EPSILON, rngs=rngs)
        self.attention = ReducedAttention(
            cfg=cfg, features=features, num_heads=num_heads, reduction=reduction, rngs=rngs
        )
        self.mlp_norm = _norm(cfg, features, _EPSILON, rngs=rngs)
        self.mlp = MixFeedForward(cfg=cfg, features=features, hidden=hidden, rngs=rngs)

    def __call__(self, x: jax.Array, *, skip_rate: float, key: jax.Array | None) -> jax.Array:
        """Returns a map [N, h, w, C].

        Args:
          x: [N, h, w, C].
          skip_rate: Rate of stochastic depth.
          key: Its random key; None disables it.
        """

        def branch(y: jax.Array, key: jax.Array | None) -> jax.Array:
            tokens = y.reshape(len(y), -1, y.shape[-1])
            return drop_path(tokens, skip_rate, key, segments=[(1, tokens.shape[1])]).reshape(
                y.shape
            )

        keys = split_key(key if skip_rate else None, 2)
        x = x + branch(self.attention(self.attention_norm(x)), keys[0])
        return x + branch(self.mlp(self.mlp_norm(x)), keys[1])


class MixStage(nnx.Module):
    """A strided convolution with overlapping patches, blocks, and a norm."""

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        sizes: MixTransformerConfig,
        stage: int,
        rngs: nnx.Rngs,
    ):
        width = sizes.widths[stage]
        in_features = sizes.widths[stage - 1] if stage else 3
        size, stride = (3, 2) if stage else (7, 4)
        self.patch = _convolution(
            cfg, in_features, width, size, stride=stride, padding=size // 2, rngs=rngs
        )
        self.patch_norm = _norm(cfg, width, _PATCH_EPSILON, rngs=rngs)
        self.blocks = nnx.Dict()
        for index in range(sizes.depths[stage]):
            self.blocks[str(index)] = MixBlock(
                cfg=cfg,
                features=width,
                num_heads=sizes.num_heads[stage],
                reduction=sizes.reductions[stage],
                hidden=sizes.mlp_ratio * width,
                rngs=rngs,
            )
        self.norm = _norm(cfg, width, _EPSILON, rngs=rngs)


class MixTransformer(nnx.Module):
    """Stages of mix blocks; images have any size.

    Args:
      cfg: Dtypes and `remat`.
      sizes: Sizes of the stages.
      rngs: Random number generators for initialization.
    """

    def __init__(self, *, cfg: ConvolutionConfig, sizes: MixTransformerConfig, rngs: nnx.Rngs):
        self.cfg, self.sizes = cfg, sizes
        self.stages = nnx.Dict()
        for stage in range(len(sizes.widths)):
            self.stages[str(stage)] = MixStage(cfg=cfg, sizes=sizes, stage=stage, rngs=rngs)

    def __call__(self, x: jax.Array, *, key: jax.Array | None) -> list[jax.Array]:
        """Returns the maps of all stages, 1/4 of the image and less, sizes rounded up.

        Args:
          x: [N, H, W, 3] in the compute dtype.
          key: Random key of stochastic depth; None disables it.
        """
        depths = self.sizes.depths
        rates = iter(np.linspace(0, self.sizes.drop_path_rate, sum(depths)).tolist())
        keys, maps = iter(split_key(key, sum(depths))), []
        for stage, depth in enumerate(depths):
            layers = self.stages[str(stage)]
            x = layers.patch_norm(layers.patch(x))
            for index in range(depth):
                rate, block_key = next(rates), next(keys)

                def call(
                    block: MixBlock,
                    x: jax.Array,
                    rate: float = rate,
                    key: jax.Array | None = block_key,
                ) -> jax.Array:
                    return block(x, skip_rate=rate, key=key)

                x = self.cfg.run(call, layers.blocks[str(index)], x)
            x = layers.norm(x)
            maps.append(x)
        return maps

    def dense_flops(self, size: Sequence[int]) -> float:
        """Returns the operations of dense layers and attention for one image.

        Args:
          size: Height and width of the image.
        """
        total, sizes = 0.0, self.sizes
        for stage, stride in enumerate(sizes.strides()):
            grid = [math.ceil(side / stride) for side in size]
            tokens = math.prod(grid)
            keys = math.prod(side // sizes.reductions[stage] for side in grid)
            width = sizes.widths[stage]
            block = width * width * (2 * tokens + 2 * keys + 2 * sizes.mlp_ratio * tokens)
            total += 2.0 * sizes.depths[stage] * (block + 2 * tokens * keys * width)
        return total
