"""Atrous spatial pyramid pooling (Chen et al. 2017, arXiv 1706.05587)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.models.blocks.convolution import ConvolutionConfig, Unit, square_unit
from mmjax.models.blocks.initializers import fan_in_uniform


class ASPP(nnx.Module):
    """Atrous spatial pyramid pooling: [N, h, w, C] → [N, h, w, width].

    Branches: a 1×1 convolution, a dilated 3×3 convolution per dilation, and the mean over the map.
    Units have no biases.

    Args:
      cfg: Dtypes.
      in_features: Channels of the input.
      width: Channels of each branch and of the output.
      dilations: Dilations of the 3×3 convolutions.
      kernel_init: Function from the fan-in to the initializer of a kernel.
      rngs: Random number generators for initialization.
      **options: Arguments of `Unit`, for example of BatchNorm.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        in_features: int,
        width: int = 256,
        dilations: Sequence[int],
        kernel_init: Callable[[int], Callable[..., jax.Array]] = fan_in_uniform,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        def unit(in_features: int, size: int = 1, dilation: int = 1) -> Unit:
            return square_unit(
                cfg=cfg,
                in_features=in_features,
                out_features=width,
                size=size,
                dilation=dilation,
                kernel_init=kernel_init(size * size * in_features),
                rngs=rngs,
                **options,
            )

        self.num_branches = 2 + len(dilations)
        self.branch1 = unit(in_features)
        for number, dilation in enumerate(dilations, 2):
            setattr(self, f"branch{number}", unit(in_features, 3, dilation))
        setattr(self, f"branch{self.num_branches}", unit(in_features))
        self.fuse = unit(self.num_branches * width)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        inputs = [x] * (self.num_branches - 1) + [x.mean((1, 2), keepdims=True)]
        *branches, mean = (
            getattr(self, f"branch{number}")(y, train=train) for number, y in enumerate(inputs, 1)
        )
        branches.append(jnp.broadcast_to(mean, branches[0].shape))
        return self.fuse(jnp.concatenate(branches, axis=-1), train=train)
