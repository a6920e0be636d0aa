"""The interface of heads for end tasks, and layers that several of them use.

Source of the heads: Kotar et al. 2021, Contrasting Contrastive Self-Supervised Representation
Learning Pipelines, arXiv 2103.14005 (pyVTAB).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.convolution import convolution_flops
from mmjax.models.blocks.initializers import fan_in_uniform

EMBEDDING = "embedding"
# Feature maps of an encoder, from the highest to the lowest resolution: 1/2 to 1/32 of the image.
MAPS = ("conv", "block1", "block2", "block3", "block4")
# Feature map of a vision transformer, from which a pyramid makes the maps above.
GRID = "grid"


class Head(nnx.Module):
    """A head: features of an encoder → predictions.

    The constructor takes these arguments by keyword, and its own options:

    * `num_outputs`: Number of classes, or of maps.
    * `embedding_dim`: Width of the embedding.
    * `num_images`: Number of images per example.
    * `channels`: {key: channels} of the feature maps that the encoder offers.
    * `rngs`: Random number generators for initialization.

    Attributes:
      needs: Keys of the features that it reads.
    """

    needs: tuple[str, ...] = (EMBEDDING,)

    def __call__(
        self,
        features: Mapping[str, jax.Array],
        *,
        size: tuple[int, int] | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns predictions.

        Args:
          features: {key: array}: `embedding` [B, T, D], and feature maps [B, T, h, w, C] of T
            images per example.
          size: Height and width of the maps that it predicts; None for those that it computes
            before a final resizing.
          train: Whether BatchNorm uses the batch and updates its running averages.

        Returns:
          float32 [B, num_outputs], or maps, float32 [B, height, width, num_outputs].
        """
        raise NotImplementedError

    def flops(
        self, shapes: Mapping[str, Sequence[int]], *, size: tuple[int, int] | None = None
    ) -> float:
        """Returns the operations of convolutions and dense layers for one example.

        Args:
          shapes: {key: shape of its features, without batch}.
          size: See `__call__`.
        """
        features = {
            key: jax.ShapeDtypeStruct((1, *shape), "float32")
            for key, shape in shapes.items()
            if key in self.needs
        }
        total = convolution_flops(lambda head, x: head(x, size=size), self, features)
        dense = [layer for _, layer in nnx.iter_modules(self) if isinstance(layer, nnx.Linear)]
        return total + sum(2.0 * layer.in_features * layer.out_features for layer in dense)


def dense(in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns a dense layer that is initialized as in PyTorch."""
    uniform = fan_in_uniform(in_features)
    return nnx.Linear(in_features, out_features, kernel_init=uniform, bias_init=uniform, rngs=rngs)


def convolution(
    in_features: int,
    out_features: int,
    size: int,
    *,
    dtype: Any = "float32",
    param_dtype: Any = "float32",
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Returns a convolution with bias that keeps the size, initialized as in PyTorch."""
    uniform = fan_in_uniform(size * size * in_features)
    return nnx.Conv(
        in_features,
        out_features,
        (size, size),
        padding=((size // 2, size // 2),) * 2,
        kernel_init=uniform,
        bias_init=uniform,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def single_image(head: str, num_images: int, instead: str = "") -> None:
    """Raises UserError unless examples have one image.

    Args:
      head: Name of the head.
      num_images: Number of images per example.
      instead: Name of a head for several images.
    """
    if num_images != 1:
        hint = f" Use the head {instead!r}." if instead else ""
        raise UserError(
            f"The head {head!r} takes one image per example, but this end task has {num_images}."
            f"{hint}"
        )


def only_image(x: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Returns the features [B, …] of the only image from [B, 1, …]."""
    return x[:, 0].astype(dtype)


def join_images(x: jax.Array) -> jax.Array:
    """Returns [B, …, T·C] from [B, T, …, C]: the channels of the first image come first."""
    x = jnp.moveaxis(x, 1, -2)
    return x.reshape(*x.shape[:-2], math.prod(x.shape[-2:]))
