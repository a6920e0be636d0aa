"""Feature maps of five resolutions from the patch grid of a vision transformer.

Source: the simple feature pyramid of ViTDet (Li et al. 2022, arXiv 2203.16527), section 3, with one
more level of twice the resolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from mmjax.models.blocks.convolution import convolution_flops
from mmjax.models.decoders.base import GRID, MAPS, Head, convolution
from mmjax.models.decoders.resize import halve, pixel_shuffle

WIDTH = 256  # default channels of a map
# {map: number of times that the resolution of the grid is doubled}.
_DOUBLINGS = {"conv": 3, "block1": 2, "block2": 1, "block3": 0, "block4": -1}
assert tuple(_DOUBLINGS) == MAPS


def level_channels(width: int) -> dict[str, int]:
    """Returns {map: channels}: `width`, and a quarter of it for `conv`, as in a ResNet."""
    return dict.fromkeys(MAPS, width) | {"conv": max(1, width // 4)}


class Level(nnx.Module):
    """A map of one resolution from a grid of patches.

    Transposed 2×2 convolutions (each halves the width) or a max pooling, then a 1×1 and a 3×3
    convolution, each with LayerNorm.

    Args:
      in_features: Channels of the grid.
      out_features: Channels of the map.
      doublings: Number of times that the resolution is doubled; -1 halves it.
      dtype: Dtype of computation.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self, *, in_features: int, out_features: int, doublings: int, dtype: Any, rngs: nnx.Rngs
    ):
        def norm(width):
            return nnx.LayerNorm(
                width, epsilon=1e-6, use_fast_variance=False, dtype=dtype, rngs=rngs
            )

        self.doublings, width = doublings, in_features
        for number in range(1, doublings + 1):
            half = max(1, width // 2)
            # A transposed convolution whose windows do not overlap.
            setattr(self, f"up{number}", convolution(width, 4 * half, 1, dtype=dtype, rngs=rngs))
            if number < doublings:
                setattr(self, f"up{number}_norm", norm(half))
            width = half
        self.project = convolution(width, out_features, 1, dtype=dtype, rngs=rngs)
        self.project_norm = norm(out_features)
        self.smooth = convolution(out_features, out_features, 3, dtype=dtype, rngs=rngs)
        self.smooth_norm = norm(out_features)

    def __call__(self, x: jax.Array) -> jax.Array:  # [N, h, w, in_features]
        for number in range(1, self.doublings + 1):
            x = pixel_shuffle(getattr(self, f"up{number}")(x))
            if number < self.doublings:
                x = jax.nn.gelu(getattr(self, f"up{number}_norm")(x), approximate=False)
        x = halve(x) if self.doublings < 0 else x
        return self.smooth_norm(self.smooth(self.project_norm(self.project(x))))


class PyramidHead(Head):
    """A head on feature maps that a trainable pyramid makes from the grid of a transformer.

    Only the levels that the head reads are computed.

    Args:
      head: The head; its maps have the channels of `level_channels`.
      in_features: Channels of the grid.
      width: See `level_channels`.
      dtype: Dtype of computation of the pyramid.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self,
        *,
        head: Head,
        in_features: int,
        width: int = WIDTH,
        dtype: Any = "float32",
        rngs: nnx.Rngs,
    ):
        channels = level_channels(width)
        self.levels = tuple(name for name in MAPS if name in head.needs)
        self.needs = (GRID, *(name for name in head.needs if name not in MAPS))
        self.pyramid = nnx.Dict()
        for name in self.levels:
            self.pyramid[name] = Level(
                in_features=in_features,
                out_features=channels[name],
                doublings=_DOUBLINGS[name],
                dtype=dtype,
                rngs=rngs,
            )
        self.head = head

    def __call__(
        self,
        features: Mapping[str, jax.Array],
        *,
        size: tuple[int, int] | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns the predictions of the head; see `Head`."""
        return self.head({**features, **self._maps(features[GRID])}, size=size, train=train)

    def _maps(self, grid: jax.Array) -> dict[str, jax.Array]:
        """Returns {map: [B, T, h, w, C]} from a grid [B, T, h, w, D]."""
        flat = grid.reshape(-1, *grid.shape[2:])
        maps = {name: self.pyramid[name](flat) for name in self.levels}
        return {name: x.reshape(*grid.shape[:2], *x.shape[1:]) for name, x in maps.items()}

    def flops(
        self, shapes: Mapping[str, Sequence[int]], *, size: tuple[int, int] | None = None
    ) -> float:
        """Returns the operations of the pyramid and the head for one example; see `Head`."""
        grid = jax.ShapeDtypeStruct((1, *shapes[GRID]), "float32")
        maps = jax.eval_shape(lambda module, x: module._maps(x), self, grid)
        shapes = {**shapes, **{name: leaf.shape[1:] for name, leaf in maps.items()}}
        own = convolution_flops(lambda module, x: module._maps(x), self, grid)
        return own + self.head.flops(shapes, size=size)
