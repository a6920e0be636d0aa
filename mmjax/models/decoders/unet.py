"""Decoders with additive skip connections: `unet` and `siamese_unet`.

Source: pyVTAB (Kotar et al. 2021, arXiv 2103.14005); pixel shuffle: Shi et al. 2016.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.decoders.base import (
    MAPS,
    Head,
    convolution,
    join_images,
    only_image,
    single_image,
)
from mmjax.models.decoders.resize import fit, pixel_shuffle, resize_half_pixel

_NEGATIVE_SLOPE = 0.01


class UNet(Head):
    """Five steps of convolution and pixel shuffle, from the lowest resolution to the image's.

    A step doubles the resolution; the next larger feature map of the encoder is added to its
    output. The widths are therefore the encoder's.

    Args:
      num_outputs, embedding_dim, num_images, channels, rngs: See `Head`.
      dtype: Dtype of computation.

    Raises:
      UserError: An example has several images.
    """

    needs = MAPS

    def __init__(
        self,
        *,
        num_outputs: int,
        embedding_dim: int = 0,
        num_images: int = 1,
        channels: Mapping[str, int],
        dtype: Any = "float32",
        rngs: nnx.Rngs,
    ):
        del embedding_dim
        self._check(num_images)
        self.dtype = dtype
        widths = [channels[name] for name in reversed(MAPS)]
        for number, (width, out) in enumerate(
            zip(widths, [*widths[1:], num_outputs], strict=True), 1
        ):
            setattr(self, f"up{number}", convolution(width, 4 * out, 3, dtype=dtype, rngs=rngs))

    def _check(self, num_images: int) -> None:
        single_image("unet", num_images, instead="siamese_unet")

    def inputs(self, features: Mapping[str, jax.Array]) -> list[jax.Array]:
        """Returns the maps [B, h, w, C] to decode, from the lowest resolution to the highest."""
        return [only_image(features[name], self.dtype) for name in reversed(MAPS)]

    def __call__(
        self,
        features: Mapping[str, jax.Array],
        *,
        size: tuple[int, int] | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns maps, float32 [B, height, width, num_outputs]; see `Head`.

        Without `size`, they have twice the size of the map `conv`.
        """
        del train
        x, *skips = self.inputs(features)
        for number, skip in enumerate(skips, 1):
            x = pixel_shuffle(getattr(self, f"up{number}")(x))
            x = jax.nn.leaky_relu(x, _NEGATIVE_SLOPE)
            x = resize_half_pixel(x, skip.shape[1:3]) + skip
        x = pixel_shuffle(getattr(self, f"up{len(MAPS)}")(x))
        return fit(x.astype(jnp.float32), size)


class SiameseUNet(UNet):
    """A `UNet` for several images per example.

    At each resolution, a 1×1 convolution fuses the maps of all images into one of the same width.

    Args:
      num_outputs, embedding_dim, num_images, channels, rngs: See `Head`.
      dtype: Dtype of computation.
    """

    def __init__(
        self,
        *,
        num_outputs: int,
        embedding_dim: int = 0,
        num_images: int = 2,
        channels: Mapping[str, int],
        dtype: Any = "float32",
        rngs: nnx.Rngs,
    ):
        super().__init__(
            num_outputs=num_outputs,
            embedding_dim=embedding_dim,
            num_images=num_images,
            channels=channels,
            dtype=dtype,
            rngs=rngs,
        )
        for number, name in enumerate(reversed(MAPS), 1):
            width = channels[name]
            fusion = convolution(num_images * width, width, 1, dtype=dtype, rngs=rngs)
            setattr(self, f"fusion{number}", fusion)

    def _check(self, num_images: int) -> None:
        pass

    def inputs(self, features: Mapping[str, jax.Array]) -> list[jax.Array]:
        return [
            getattr(self, f"fusion{number}")(join_images(features[name].astype(self.dtype)))
            for number, name in enumerate(reversed(MAPS), 1)
        ]
