"""Decoders of DeepLabv3+: `deeplab`, `deeplab_plain` and `deeplab_classifier`.

Sources: Chen et al. 2018, arXiv 1802.02611; details as in pyVTAB (Kotar et al. 2021, arXiv
2103.14005).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax import tree
from mmjax.errors import UserError
from mmjax.models.blocks.aspp import ASPP
from mmjax.models.blocks.convolution import ConvolutionConfig, Unit, draw_kernels, square_unit
from mmjax.models.blocks.initializers import fan_in_uniform
from mmjax.models.decoders.base import Head, convolution, dense, only_image, single_image
from mmjax.models.decoders.resize import resize_corners
from mmjax.models.towers.image_resnet import Block

_ASPP_WIDTH, _REDUCED = 256, 48  # channels
_ASPP_DILATIONS = (6, 12, 18)
_BLOCK_DILATIONS = (2, 4, 2)
_MOMENTUM = 0.9997  # 1 - PyTorch's 3e-4
# The value that pyVTAB sets as momentum of the pyramid's BatchNorm arrives as its epsilon.
_PAPER_ASPP = dict(momentum=0.9, epsilon=3e-4)
_CFG = ConvolutionConfig()


def _unit(in_features: int, out_features: int, size: int = 1, **options: Any) -> Unit:
    uniform = fan_in_uniform(size * size * in_features)
    options = dict(momentum=_MOMENTUM) | options
    return square_unit(
        in_features=in_features,
        out_features=out_features,
        size=size,
        kernel_init=uniform,
        **options,
    )


def _aspp(
    *, cfg: ConvolutionConfig, in_features: int, paper_batch_norm: bool, rngs: nnx.Rngs
) -> ASPP:
    """Returns the pyramid; `paper_batch_norm` is described in `DeepLab`."""
    options = _PAPER_ASPP if paper_batch_norm else dict(momentum=_MOMENTUM)
    return ASPP(
        cfg=cfg,
        in_features=in_features,
        width=_ASPP_WIDTH,
        dilations=_ASPP_DILATIONS,
        rngs=rngs,
        **options,
    )


class Decoder(nnx.Module):
    """Two 3×3 units and a 3×3 convolution, all with biases.

    Args:
      cfg: Dtypes.
      num_outputs: Channels of the output.
      rngs: Random number generators for initialization.
    """

    def __init__(self, *, cfg: ConvolutionConfig, num_outputs: int, rngs: nnx.Rngs):
        options = dict(cfg=cfg, use_bias=True, rngs=rngs)
        self.first = _unit(_REDUCED + _ASPP_WIDTH, _ASPP_WIDTH, 3, **options)
        self.second = _unit(_ASPP_WIDTH, _ASPP_WIDTH, 3, **options)
        self.output = convolution(_ASPP_WIDTH, num_outputs, 3, dtype=cfg.dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.output(self.second(self.first(x, train=train), train=train))


class DeepLab(Head):
    """DeepLabv3+ whose dilated block starts from the last group of a ResNet's weights.

    `block3` → three dilated bottlenecks → ASPP → resized to `block1` → concatenated with the
    reduced `block1` → decoder. The BatchNorm of the bottlenecks always uses its running statistics;
    its scale and bias are trained. Call `init_from_encoder` after initialization.

    Args:
      num_outputs, embedding_dim, num_images, channels, rngs: See `Head`.
      paper_batch_norm: Whether to reproduce pyVTAB's BatchNorm: an epsilon of 3e-4 and a momentum
        of 0.9 in the ASPP instead of 1e-5 and 0.9997, and batch statistics in the unit that reduces
        `block1`, in evaluation too, so that predictions depend on the batch.
      dtype: Dtype of computation; BatchNorm runs in float32.

    Raises:
      UserError: An example has several images, or `block4` has a width that bottlenecks cannot
        have.
    """

    needs = ("block1", "block3")
    name = "deeplab"
    # Whether the dilated block gets the encoder's weights; its BatchNorm is frozen then.
    pretrained_block = True

    def __init__(
        self,
        *,
        num_outputs: int,
        embedding_dim: int = 0,
        num_images: int = 1,
        channels: Mapping[str, int],
        paper_batch_norm: bool = False,
        dtype: Any = "float32",
        rngs: nnx.Rngs,
    ):
        del embedding_dim
        single_image(self.name, num_images)
        cfg = ConvolutionConfig(dtype=dtype)
        self.dtype = dtype
        self.reducer_uses_batch = paper_batch_norm
        width = self.block_width(channels)
        self.block4 = nnx.Dict()
        features = channels["block3"]
        for index, dilation in enumerate(_BLOCK_DILATIONS):
            self.block4[str(index)] = Block(
                cfg=cfg,
                in_features=features,
                features=width // 4,
                stride=1,
                bottleneck=True,
                project=index == 0,
                zero_init_last=False,
                dilation=dilation,
                rngs=rngs,
            )
            features = width
        draw_kernels(self.block4, rngs.params(), init="kaiming")
        self.aspp = _aspp(cfg=cfg, in_features=width, paper_batch_norm=paper_batch_norm, rngs=rngs)
        self.reducer = _unit(channels["block1"], _REDUCED, cfg=cfg, use_bias=True, rngs=rngs)
        self.decoder = Decoder(cfg=cfg, num_outputs=num_outputs, rngs=rngs)

    def block_width(self, channels: Mapping[str, int]) -> int:
        """Returns the output channels of the dilated block."""
        width = channels.get("block4", 0)
        if width < 4 or width % 4:
            raise UserError(
                f"The head 'deeplab' copies the last group of a ResNet with bottlenecks, but the "
                f"encoder's feature map block4 has {width} channels. Use the head 'deeplab_plain'."
            )
        return width

    def dilated(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns the output of the dilated block, [B, h, w, C], from `block3` of this shape."""
        for index in range(len(_BLOCK_DILATIONS)):
            x = self.block4[str(index)](x, train=train and not self.pretrained_block)
        return x

    def __call__(
        self,
        features: Mapping[str, jax.Array],
        *,
        size: tuple[int, int] | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns maps, float32 [B, height, width, num_outputs]; see `Head`.

        Without `size`, they have the size of the map `block1`.
        """
        low = only_image(features["block1"], self.dtype)
        x = self.dilated(only_image(features["block3"], self.dtype), train=train)
        x = resize_corners(self.aspp(x, train=train), low.shape[1:3])
        low = self.reducer(low, train=train or self.reducer_uses_batch)
        x = self.decoder(jnp.concatenate([low, x], axis=-1), train=train).astype(jnp.float32)
        return x if size is None else resize_corners(x, size)

    @staticmethod
    def fits(encoder_params: Mapping[str, Any]) -> bool:
        """Returns whether the last group of a tower is three bottlenecks."""
        blocks = encoder_params.get("groups", {}).get("3", {})
        return sorted(blocks) == ["0", "1", "2"] and all("third" in b for b in blocks.values())

    def init_from_encoder(
        self, params: dict, extra: dict, encoder_params: dict, encoder_extra: dict
    ) -> tuple[dict, dict]:
        """Returns `(params, extra)` of this head with the dilated block of an encoder.

        Args:
          params: Parameters of the head. They may have further axes in front, for example of seeds.
          extra: Statistics of the head, with the same axes in front.
          encoder_params: Parameters of a ResNet tower.
          encoder_extra: Its statistics.

        Raises:
          UserError: The last group of the encoder has other blocks.
        """
        parts = []
        for own, encoder in ((params, encoder_params), (extra, encoder_extra)):
            target = tree.flatten(own["block4"])
            source = tree.flatten(encoder.get("groups", {}).get("3", {}))
            shapes = {
                path: target[path].shape[-x.ndim :] for path, x in source.items() if path in target
            }
            fits = source.keys() == target.keys()
            if not fits or any(source[path].shape != shape for path, shape in shapes.items()):
                raise UserError(
                    "The head 'deeplab' starts from the last three bottlenecks of a ResNet-50, 101 "
                    "or 152, but the tower of this encoder has others or none (groups/3). Use the "
                    "head 'deeplab_plain'."
                )
            values = {
                path: jnp.broadcast_to(source[path], leaf.shape).astype(leaf.dtype)
                for path, leaf in target.items()
            }
            parts.append(dict(own, block4=tree.unflatten(values)))
        return parts[0], parts[1]


class PlainDeepLab(DeepLab):
    """DeepLabv3+ on the feature maps of any encoder: its dilated block is initialized randomly.

    The BatchNorm of this block is trained like the others.

    Args:
      num_outputs, embedding_dim, num_images, channels, rngs: See `Head`.
      paper_batch_norm: See `DeepLab`.
      dtype: Dtype of computation; BatchNorm runs in float32.

    Raises:
      UserError: An example has several images.
    """

    name = "deeplab_plain"
    pretrained_block = False
    init_from_encoder = None

    def block_width(self, channels: Mapping[str, int]) -> int:
        return 4 * math.ceil(channels["block3"] / 2)


class DeepLabClassifier(Head):
    """ASPP on `block4` → all pixels and channels → dense: the head of pyVTAB's first release.

    pyVTAB creates a reducer and a decoder too, and never uses them. They are created here as well,
    so that its weight files fit.

    Args:
      num_outputs, embedding_dim, num_images, channels, rngs: See `Head`.
      map_size: Height and width of `block4`.
      paper_batch_norm: Whether BatchNorm has pyVTAB's epsilon and momentum; see `DeepLab`.

    Raises:
      UserError: An example has several images, or a size is less than 1.
    """

    needs = ("block4",)

    def __init__(
        self,
        *,
        num_outputs: int,
        embedding_dim: int = 0,
        num_images: int = 1,
        channels: Mapping[str, int],
        map_size: tuple[int, int] = (7, 7),
        paper_batch_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        del embedding_dim
        single_image("deeplab_classifier", num_images)
        if min(map_size) < 1:
            raise UserError(f"map_size must be two sizes of at least 1; got {map_size}.")
        self.map_size = tuple(map_size)
        self.aspp = _aspp(
            cfg=_CFG,
            in_features=channels["block4"],
            paper_batch_norm=paper_batch_norm,
            rngs=rngs,
        )
        self.linear = dense(math.prod(map_size) * _ASPP_WIDTH, num_outputs, rngs=rngs)
        self.reducer = _unit(
            channels.get("block1", _ASPP_WIDTH), _REDUCED, cfg=_CFG, use_bias=True, rngs=rngs
        )
        self.decoder = Decoder(cfg=_CFG, num_outputs=num_outputs, rngs=rngs)

    def __call__(
        self,
        features: Mapping[str, jax.Array],
        *,
        size: tuple[int, int] | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns logits, float32 [B, num_outputs]; see `Head`.

        Raises:
          UserError: `block4` has another size than `map_size`.
        """
        del size
        x = only_image(features["block4"])
        if x.shape[1:3] != self.map_size:
            raise UserError(
                f"The head 'deeplab_classifier' expects block4 of {self.map_size} pixels "
                f"(map_size); got {x.shape[1:3]}. Images of 224 × 224 pixels have (7, 7)."
            )
        x = self.aspp(x, train=train).transpose(0, 3, 1, 2)  # PyTorch flattens C, H, W
        return self.linear(x.reshape(len(x), -1))
