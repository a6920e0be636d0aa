"""DeepLabv3 on MobileNetV3, as in torchvision, and on ResNets, as in segmentation_models_pytorch.

Source: Chen et al. 2017, Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv
1706.05587.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from mmjax.models.blocks.aspp import ASPP
from mmjax.models.blocks.convolution import ConvolutionConfig, square_unit
from mmjax.models.blocks.initializers import fan_in_uniform
from mmjax.models.blocks.inputs import InputError
from mmjax.models.blocks.noise import dropout
from mmjax.models.decoders.base import convolution
from mmjax.models.segmentation.base import SegmentationModel
from mmjax.models.segmentation.initialization import classifier, kaiming
from mmjax.models.segmentation.mobilenet_v3 import MobileNetV3
from mmjax.models.towers.image_resnet import ImageResNet

_DILATIONS = (12, 24, 36)  # of the ASPP on a map of 1/8 or 1/16 of the image
_DROP_RATE = 0.5
_AUX_DROP_RATE = 0.1


class DeepLabHead(nnx.Module):
    """ASPP → dropout → 3×3 unit `hidden` → 1×1 `classifier`, at the resolution of the bottleneck.

    Args:
      cfg: Dtypes.
      in_features: Channels of the bottleneck.
      width: Channels of the head.
      classifier: The last layer.
      kernel_init: Function from the fan-in to the initializer of a kernel.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        in_features: int,
        width: int,
        classifier: nnx.Conv,
        kernel_init: Callable[[int], Callable[..., jax.Array]] = fan_in_uniform,
        rngs: nnx.Rngs,
    ):
        self.aspp = ASPP(
            cfg=cfg,
            in_features=in_features,
            width=width,
            dilations=_DILATIONS,
            kernel_init=kernel_init,
            rngs=rngs,
        )
        self.hidden = square_unit(
            cfg=cfg,
            in_features=width,
            out_features=width,
            size=3,
            kernel_init=kernel_init(9 * width),
            rngs=rngs,
        )
        self.classifier = classifier

    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """Returns logits [N, h, w, classes] of a bottleneck [N, h, w, C].

        Raises:
          InputError: One image in training: its mean over the map has nothing to be normalized by.
        """
        if train and len(x) == 1:
            raise InputError(
                "DeepLabv3 cannot be trained on a batch of one image: BatchNorm of the image "
                "pooling would have one value per channel. Use at least two images per batch and "
                "microbatch, or set batch_norm='frozen'."
            )
        x = dropout(self.aspp(x, train=train), _DROP_RATE, key)
        return self.classifier(self.hidden(x, train=train))


class AuxiliaryHead(nnx.Module):
    """3×3 unit `hidden` with a quarter of the channels → dropout → 1×1 `classifier`.

    Args:
      cfg: Dtypes.
      in_features: Channels of the input.
      num_classes: Channels of the output.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self, *, cfg: ConvolutionConfig, in_features: int, num_classes: int, rngs: nnx.Rngs
    ):
        width = in_features // 4
        self.hidden = square_unit(
            cfg=cfg,
            in_features=in_features,
            out_features=width,
            size=3,
            kernel_init=fan_in_uniform(9 * in_features),
            rngs=rngs,
        )
        self.classifier = convolution(
            width, num_classes, 1, dtype=cfg.dtype, param_dtype=cfg.param_dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None) -> jax.Array:
        """Returns logits [N, h, w, num_classes]."""
        return self.classifier(dropout(self.hidden(x, train=train), _AUX_DROP_RATE, key))


class DeepLabMobileNet(SegmentationModel):
    """DeepLabv3 on a dilated MobileNetV3-Large; the bottleneck is the last map of the backbone.

    Args:
      aux_head: Whether to add an auxiliary head on the low-level map of the backbone.
      width: Channels of the head.
      rngs: Random number generators for initialization.
      **options: Arguments of `SegmentationModel`.
    """

    def __init__(self, *, aux_head: bool = True, width: int = 256, rngs: nnx.Rngs, **options: Any):
        super().__init__(**options)
        self.backbone = MobileNetV3(cfg=self.cfg, rngs=rngs)
        self.bottleneck_width = self.backbone.out_features
        dtypes = dict(dtype=self.cfg.dtype, param_dtype=self.cfg.param_dtype)
        self.head = DeepLabHead(
            cfg=self.cfg,
            in_features=self.bottleneck_width,
            width=width,
            classifier=convolution(width, self.num_classes, 1, rngs=rngs, **dtypes),
            rngs=rngs,
        )
        if aux_head:
            self.aux_head = AuxiliaryHead(
                cfg=self.cfg,
                in_features=self.backbone.low_features,
                num_classes=self.num_classes,
                rngs=rngs,
            )

    def forward(
        self, x: jax.Array, *, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Returns logits of 1/16 of the image, the bottleneck, and auxiliary logits or None."""
        low, high = self.backbone(x, train=train)
        key, aux_key = (None, None) if key is None else jax.random.split(key)
        aux = self.aux_head(low, train=train, key=aux_key) if hasattr(self, "aux_head") else None
        return self.head(high, train=train, key=key), high, aux


class DeepLabResNet(SegmentationModel):
    """DeepLabv3 on a ResNet with a stride of 8; the bottleneck is its last map.

    All 3×3 convolutions of the last two groups are dilated by 2 and 4, those of their first blocks
    too. torchvision's DeepLabv3 dilates the first block of a group less.

    Args:
      blocks: Number of blocks in each of the four groups of the backbone.
      bottleneck: Whether blocks have three convolutions (ResNet-50) instead of two.
      width: Channels of the head.
      width_multiplier: Factor of the channel counts of the backbone.
      rngs: Random number generators for initialization.
      **options: Arguments of `SegmentationModel`.
    """

    align_corners = True

    def __init__(
        self,
        *,
        blocks: Sequence[int] = (2, 2, 2, 2),
        bottleneck: bool = False,
        width: int = 256,
        width_multiplier: float = 1.0,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(**options)
        self.backbone = ImageResNet(
            blocks=blocks,
            bottleneck=bottleneck,
            zero_init_last=False,
            dilations=(1, 1, 2, 4),
            width_multiplier=width_multiplier,
            dtype=self.cfg.dtype,
            param_dtype=self.cfg.param_dtype,
            remat=self.cfg.remat,
            rngs=rngs,
        )
        self.bottleneck_width = self.backbone.out_features
        self.head = DeepLabHead(
            cfg=self.cfg,
            in_features=self.bottleneck_width,
            width=width,
            classifier=classifier(self.cfg, width, self.num_classes, rngs=rngs),
            kernel_init=kaiming,
            rngs=rngs,
        )

    def forward(
        self, x: jax.Array, *, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, None]:
        """Returns logits of 1/8 of the image, the bottleneck, and None; see the base class."""
        x = self.backbone.feature_map(x, train=train)
        return self.head(x, train=train, key=key), x, None


CONFIGS: dict[str, tuple[type[SegmentationModel], dict[str, Any]]] = {
    "deeplabv3_mobilenet_v3_large": (DeepLabMobileNet, {}),
    "deeplabv3_resnet18": (DeepLabResNet, dict(blocks=(2, 2, 2, 2))),
    "deeplabv3_resnet34": (DeepLabResNet, dict(blocks=(3, 4, 6, 3))),
    "deeplabv3_resnet50": (
        DeepLabResNet,
        dict(blocks=(3, 4, 6, 3), bottleneck=True, image_size=384),
    ),
}
