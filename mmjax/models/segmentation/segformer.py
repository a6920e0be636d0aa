"""SegFormer: a mix transformer with a head of dense layers, as in segmentation_models_pytorch.

Source: Xie et al. 2021, SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers, arXiv 2105.15203.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.blocks.convolution import ConvolutionConfig, square_unit
from mmjax.models.blocks.initializers import glorot_uniform
from mmjax.models.decoders.resize import resize_half_pixel
from mmjax.models.segmentation.base import SegmentationModel
from mmjax.models.segmentation.initialization import classifier, kaiming
from mmjax.models.segmentation.mix_transformer import MixTransformer, MixTransformerConfig


class SegFormerHead(nnx.Module):
    """A dense layer per map → resized to the first map → concatenated → 1×1 `fuse` → `classifier`.

    Args:
      cfg: Dtypes.
      channels: Channels of the maps.
      width: Channels in between.
      num_classes: Channels of the output.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        channels: Sequence[int],
        width: int,
        num_classes: int,
        rngs: nnx.Rngs,
    ):
        self.projections = nnx.Dict()
        for index, features in enumerate(channels):
            self.projections[str(index)] = nnx.Linear(
                features,
                width,
                kernel_init=glorot_uniform,
                dtype=cfg.dtype,
                param_dtype=cfg.param_dtype,
                rngs=rngs,
            )
        joined = len(channels) * width
        self.fuse = square_unit(
            cfg=cfg,
            in_features=joined,
            out_features=width,
            size=1,
            kernel_init=kaiming(joined),
            rngs=rngs,
        )
        self.classifier = classifier(cfg, width, num_classes, rngs=rngs)

    def __call__(self, maps: Sequence[jax.Array], *, train: bool) -> jax.Array:
        """Returns logits [N, h, w, num_classes] of the size of the first map."""
        projected = [self.projections[str(index)](x) for index, x in enumerate(maps)]
        resized = [resize_half_pixel(x, maps[0].shape[1:3]) for x in projected]
        # segmentation_models_pytorch concatenates from the coarsest map to the finest.
        return self.classifier(self.fuse(jnp.concatenate(resized[::-1], axis=-1), train=train))


class SegFormer(SegmentationModel):
    """SegFormer; the bottleneck is the map of the last stage.

    Args:
      widths, depths, num_heads, reductions, mlp_ratio, drop_path_rate: See `MixTransformerConfig`.
      width: Channels of the head.
      rngs: Random number generators for initialization.
      **options: Arguments of `SegmentationModel`.
    """

    align_corners = True

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        reductions: Sequence[int] = (8, 4, 2, 1),
        mlp_ratio: int = 4,
        drop_path_rate: float = 0.1,
        width: int = 256,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(**options)
        sizes = MixTransformerConfig(
            widths=tuple(widths),
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            reductions=tuple(reductions),
            mlp_ratio=mlp_ratio,
            drop_path_rate=drop_path_rate,
        )
        self.backbone = MixTransformer(cfg=self.cfg, sizes=sizes, rngs=rngs)
        self.bottleneck_width, self.min_size = sizes.widths[-1], sizes.min_size()
        self.head = SegFormerHead(
            cfg=self.cfg,
            channels=sizes.widths,
            width=width,
            num_classes=self.num_classes,
            rngs=rngs,
        )

    def forward(
        self, x: jax.Array, *, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, None]:
        """Returns logits of 1/4 of the image, the bottleneck, and None; see the base class."""
        maps = self.backbone(x, key=key)
        return self.head(maps, train=train), maps[-1], None

    def flops(self, shape: Sequence[int]) -> float:
        """Returns the forward operations for one image of this shape, (H, W, 3)."""
        sizes, total = self.backbone.sizes, super().flops(shape)
        for features, stride in zip(sizes.widths, sizes.strides(), strict=True):
            tokens = math.prod(math.ceil(side / stride) for side in shape[:2])
            total += 2.0 * tokens * features * self.head.projections["0"].out_features
        return total + self.backbone.dense_flops(shape[:2])


CONFIGS: dict[str, dict[str, Any]] = {"segformer_mit_b0": dict(image_size=512)}
