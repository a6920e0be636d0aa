"""A semantic feature pyramid on ResNets, as in segmentation_models_pytorch.

Source: Kirillov et al. 2019, Panoptic Feature Pyramid Networks, arXiv 1901.02446.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.convolution import ConvolutionConfig
from mmjax.models.blocks.noise import dropout
from mmjax.models.decoders.resize import resize_corners
from mmjax.models.segmentation.base import SegmentationModel
from mmjax.models.segmentation.initialization import classifier, kaiming
from mmjax.models.towers.image_resnet import ImageResNet

_GROUPS = 32  # of GroupNorm
_DROP_RATE = 0.2  # of whole channels
# Levels by log2 of their stride, from the coarsest, and the maps of the backbone that they read.
_MAPS = {5: "block4", 4: "block3", 3: "block2", 2: "block1"}


def _convolution(
    cfg: ConvolutionConfig, in_features: int, out_features: int, size: int, *, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(
        in_features,
        out_features,
        (size, size),
        padding=((size // 2, size // 2),) * 2,
        use_bias=size == 1,
        kernel_init=kaiming(size * size * in_features),
        dtype=cfg.dtype,
        param_dtype=cfg.param_dtype,
        rngs=rngs,
    )


class GroupNormUnit(nnx.Module):
    """3×3 convolution → GroupNorm → ReLU.

    Args:
      cfg: Dtypes; GroupNorm runs in float32.
      in_features: Channels of the input.
      out_features: Channels of the output.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self, *, cfg: ConvolutionConfig, in_features: int, out_features: int, rngs: nnx.Rngs
    ):
        self.dtype = cfg.dtype
        self.conv = _convolution(cfg, in_features, out_features, 3, rngs=rngs)
        self.norm = nnx.GroupNorm(
            out_features,
            num_groups=_GROUPS,
            epsilon=1e-5,
            use_fast_variance=False,
            dtype=jnp.float32,
            param_dtype=cfg.param_dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:  # [N, h, w, C]
        return jax.nn.relu(self.norm(self.conv(x))).astype(self.dtype)


def _add_upsampled(x: jax.Array, finer: jax.Array) -> jax.Array:
    """Returns `finer` plus x, whose pixels are repeated in 2×2 squares."""
    height, width = finer.shape[1:3]
    return finer + x.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]


class FPNHead(nnx.Module):
    """A pyramid of 1×1 convolutions; the sum of its levels at the finest resolution is classified.

    At each level, units and bilinear upsampling alternate until the finest resolution is reached.

    Args:
      cfg: Dtypes.
      channels: {name of a map of the backbone: its channels}.
      pyramid_width: Channels of the pyramid.
      width: Channels of the units.
      num_classes: Channels of the output.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        channels: Mapping[str, int],
        pyramid_width: int,
        width: int,
        num_classes: int,
        rngs: nnx.Rngs,
    ):
        self.lateral, self.levels = nnx.Dict(), nnx.Dict()  # by level
        for level, name in _MAPS.items():
            self.lateral[str(level)] = _convolution(
                cfg, channels[name], pyramid_width, 1, rngs=rngs
            )
            units = nnx.Dict()
            for index in range(max(1, level - min(_MAPS))):
                units[str(index)] = GroupNormUnit(
                    cfg=cfg,
                    in_features=width if index else pyramid_width,
                    out_features=width,
                    rngs=rngs,
                )
            self.levels[str(level)] = units
        self.classifier = classifier(cfg, width, num_classes, rngs=rngs)

    def __call__(self, maps: Mapping[str, jax.Array], *, key: jax.Array | None) -> jax.Array:
        """Returns logits [N, h, w, num_classes] of 1/4 of the image.

        Args:
          maps: {name: map of the backbone}.
          key: Random key of dropout; None disables it.
        """
        total, pyramid = jnp.float32(0), None
        sizes = {level: maps[name].shape[1:3] for level, name in _MAPS.items()}
        for level, name in _MAPS.items():
            own = self.lateral[str(level)](maps[name])
            pyramid = x = own if pyramid is None else _add_upsampled(pyramid, own)
            units = self.levels[str(level)]
            for index in range(len(units)):
                x = units[str(index)](x)
                if level > min(_MAPS):
                    x = resize_corners(x, sizes[level - index - 1])
            total = total + x
        keep = dropout(jnp.ones((len(total), 1, 1, total.shape[-1])), _DROP_RATE, key)
        return self.classifier(total * keep)


class FPN(SegmentationModel):
    """A feature pyramid on a ResNet; the bottleneck is the last map of the backbone.

    Args:
      blocks: Number of blocks in each of the four groups of the backbone.
      bottleneck: Whether blocks have three convolutions (ResNet-50) instead of two.
      pyramid_width: Channels of the pyramid.
      width: Channels of the units of the head, a multiple of 32.
      width_multiplier: Factor of the channel counts of the backbone.
      rngs: Random number generators for initialization.
      **options: Arguments of `SegmentationModel`.

    Raises:
      UserError: An invalid option.
    """

    align_corners = True

    def __init__(
        self,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        pyramid_width: int = 256,
        width: int = 128,
        width_multiplier: float = 1.0,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(**options)
        if width < 1 or width % _GROUPS:
            raise UserError(f"width must be a multiple of {_GROUPS}, for GroupNorm; got {width}.")
        self.backbone = ImageResNet(
            blocks=blocks,
            bottleneck=bottleneck,
            zero_init_last=False,
            width_multiplier=width_multiplier,
            dtype=self.cfg.dtype,
            param_dtype=self.cfg.param_dtype,
            remat=self.cfg.remat,
            rngs=rngs,
        )
        self.bottleneck_width = last = self.backbone.out_features
        self.head = FPNHead(
            cfg=self.cfg,
            channels={name: last // 2 ** (5 - level) for level, name in _MAPS.items()},
            pyramid_width=pyramid_width,
            width=width,
            num_classes=self.num_classes,
            rngs=rngs,
        )

    def forward(
        self, x: jax.Array, *, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, None]:
        """Returns logits of 1/4 of the image, the bottleneck, and None; see the base class."""
        maps = self.backbone.feature_maps(x, train=train)
        return self.head(maps, key=key), maps[_MAPS[5]], None


CONFIGS: dict[str, dict[str, Any]] = {
    "fpn_resnet18": dict(blocks=(2, 2, 2, 2), image_size=512),
    "fpn_resnet34": dict(blocks=(3, 4, 6, 3), image_size=512),
}
