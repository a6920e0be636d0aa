"""The interface of semantic segmentation models, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError, check_choice
from mmjax.models.blocks.convolution import ConvolutionConfig, convolution_flops
from mmjax.models.blocks.inputs import InputError
from mmjax.models.blocks.transformer import Remat
from mmjax.models.decoders.resize import resize_corners, resize_half_pixel
from mmjax.pixel_statistics import IMAGENET_MEAN, IMAGENET_STD, Channels

BatchNormMode = Literal["train", "frozen"]


class SegmentationOutput(NamedTuple):
    """The output of a segmentation model.

    Attributes:
      logits: float32 [B, H, W, num_classes], for each pixel of the images.
      bottleneck: Last feature map of the backbone, [B, h, w, bottleneck_width], in the compute
        dtype.
      aux: Logits of the auxiliary head, like `logits`; None without one.
    """

    logits: jax.Array
    bottleneck: jax.Array
    aux: jax.Array | None = None


class SegmentationModel(nnx.Module):
    """A model of images [B, H, W, 3] of any size; a subclass defines `forward`.

    A subclass has the submodules `backbone` and `head`, so that patterns of parameter paths can
    select them. `mmjax.models.segmentation.registry` may add `adapter`.

    Args:
      num_classes: Number of classes.
      image_size: Height and width of images that the model was designed for.
      dropout: Whether training uses dropout and stochastic depth.
      batch_norm: Whether BatchNorm uses and updates the statistics of batches in training
        ('train'), or its running averages ('frozen'). Its scales and biases are trained.
      dtype: Dtype of computation; BatchNorm and logits are float32.
      param_dtype: Dtype of parameters.
      remat: What the backward pass recomputes; see `ConvolutionConfig`.

    Attributes:
      mean, std: Statistics of pixels in [0, 1] with which images are normalized.
      bottleneck_width: Channels of the bottleneck.
      min_size: Smallest height and width of an image.
      align_corners: Whether the centers of the corner pixels of `forward`'s logits and of the
        image coincide.

    Raises:
      UserError: An invalid option.
    """

    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    min_size: int = 1
    align_corners: bool = False
    bottleneck_width: int

    def __init__(
        self,
        *,
        num_classes: int = 21,
        image_size: int = 520,
        dropout: bool = True,
        batch_norm: BatchNormMode = "train",
        dtype: Any = "float32",
        param_dtype: Any = "float32",
        remat: Remat = "none",
    ):
        for name, size in (("num_classes", num_classes), ("image_size", image_size)):
            if size < 1:
                raise UserError(f"{name} must be at least 1; got {size}.")
        check_choice("batch_norm", batch_norm, ("train", "frozen"))
        self.cfg = ConvolutionConfig(dtype=dtype, param_dtype=param_dtype, remat=remat)
        self.num_classes = num_classes
        self.image_size = image_size
        self.dropout = dropout
        self.batch_norm = batch_norm

    def forward(
        self, x: jax.Array, *, train: bool, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Returns logits [B, h, w, num_classes] of any size, the bottleneck, and auxiliary logits.

        Args:
          x: [B, H, W, 3] in the compute dtype.
          train: Whether BatchNorm uses the batch and updates its running averages.
          key: Random key of dropout; None disables it.
        """
        raise NotImplementedError

    def __call__(
        self, images: jax.Array, *, train: bool = False, key: jax.Array | None = None
    ) -> SegmentationOutput:
        """Returns the logits of all pixels, and the bottleneck.

        Args:
          images: float [B, H, W, 3], normalized with `mean` and `std`.
          train: Whether this is a training step; see the options `dropout` and `batch_norm`.
          key: Random key of dropout in training; None disables it.

        Raises:
          InputError: The images are too small or have other axes, or a batch has a single image
            and the model needs several to train.
        """
        self._check(images.shape)
        uses_batch = train and self.batch_norm == "train"
        logits, bottleneck, aux = self.forward(
            images.astype(self.cfg.dtype),
            train=uses_batch,
            key=key if train and self.dropout else None,
        )
        resize = resize_corners if self.align_corners else resize_half_pixel

        def to_image(x: jax.Array) -> jax.Array:
            return resize(x.astype(jnp.float32), images.shape[1:3])

        return SegmentationOutput(
            to_image(logits), bottleneck, None if aux is None else to_image(aux)
        )

    def _check(self, shape: Sequence[int]) -> None:
        if len(shape) != 4 or shape[3] != 3 or min(shape[1:3]) < self.min_size:
            raise InputError(
                f"{type(self).__name__} expects images of shape (B, H, W, 3) of at least "
                f"{self.min_size} × {self.min_size} pixels; got shape {tuple(shape)}."
            )

    def flops(self, shape: Sequence[int]) -> float:
        """Returns the forward operations of convolutions and dense layers for one image.

        Args:
          shape: (H, W, 3).
        """
        x = jax.ShapeDtypeStruct((1, *shape), self.cfg.dtype)
        return convolution_flops(lambda model, x: model(x), self, x)
