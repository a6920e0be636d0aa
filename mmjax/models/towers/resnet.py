"""ResNets: audio towers `resnet2d_*` for spectrograms and video towers `tsm_*` for frames.

Sources: He et al. 2016; VATT's published code (which uses SimCLR's ResNet) for the details.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.convolution import (
    ConvolutionConfig,
    ConvolutionTower,
    draw_kernels,
    square_unit,
)
from mmjax.models.blocks.transformer import Remat

# The temporal shift moves 1/8 of the channels in each direction (Lin et al. 2019).
_SHIFT_DIVISOR = 8


def temporal_shift(x: jax.Array) -> jax.Array:
    """Shifts channels of x, [N, T, …, C], in time, with zero padding at the ends.

    The first 1/8 of the channels come from the previous frame, the second 1/8 from the next one,
    the others from the same frame.

    Source: Lin et al. 2019, "TSM: Temporal Shift Module", section 3.
    """
    share = x.shape[-1] // _SHIFT_DIVISOR
    rest = [(0, 0)] * (x.ndim - 2)
    before = jnp.pad(x[:, :-1, ..., :share], [(0, 0), (1, 0), *rest])
    after = jnp.pad(x[:, 1:, ..., share : 2 * share], [(0, 0), (0, 1), *rest])
    return jnp.concatenate([before, after, x[..., 2 * share :]], axis=-1)


class ResidualBlock(nnx.Module):
    """Consecutive units plus the input, then ReLU.

    Args:
      cfg: Options of the tower.
      in_features: Channels of the input.
      units: {name: (kernel size, output channels, stride)}; all but the last end with ReLU.
      project: Whether to add a strided 1×1 unit of the input, `shortcut`, instead of the input.
      zero_init_last: Whether the scale of the last BatchNorm is initialized to 0, so that a block
        without `project` starts as a ReLU.
      dilation: Distance of the elements of kernels that are larger than 1.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        in_features: int,
        units: Mapping[str, tuple[int, int, int]],
        project: bool,
        zero_init_last: bool = True,
        dilation: int = 1,
        rngs: nnx.Rngs,
    ):
        self.units = tuple(units)
        channels = in_features
        for name, (size, out_features, stride) in units.items():
            last = name == self.units[-1]
            zero = last and zero_init_last
            unit = square_unit(
                cfg=cfg,
                in_features=channels,
                out_features=out_features,
                size=size,
                stride=stride,
                dilation=dilation if size > 1 else 1,
                relu=not last,
                scale_init=nnx.initializers.zeros if zero else nnx.initializers.ones,
                rngs=rngs,
            )
            setattr(self, name, unit)
            channels = out_features
        if project:
            self.shortcut = square_unit(
                cfg=cfg,
                in_features=in_features,
                out_features=channels,
                size=1,
                stride=math.prod(stride for *_, stride in units.values()),
                relu=False,
                rngs=rngs,
            )

    def branch_input(self, x: jax.Array) -> jax.Array:
        """Returns the input of the first unit."""
        return x

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [N, …, H, W, C]
        y = self.branch_input(x)
        for name in self.units:
            y = getattr(self, name)(y, train=train)
        shortcut = self.shortcut(x, train=train) if hasattr(self, "shortcut") else x
        return jax.nn.relu(y + shortcut)


class Bottleneck(ResidualBlock):
    """1×1 → 3×3 (strided) → 1×1 of four times the width, plus the input, then ReLU.

    Args:
      features: Inner channels; the output has 4 times as many.
      stride: Stride of the 3×3 convolution.
      shift: Whether to apply `temporal_shift` before the first convolution, for inputs [N, T, …].
      **options: Arguments of `ResidualBlock`.
    """

    def __init__(self, *, features: int, stride: int, shift: bool, **options: Any):
        self.shift = shift
        units = {
            "reduce": (1, features, 1),
            "spatial": (3, features, stride),
            "expand": (1, 4 * features, 1),
        }
        super().__init__(units=units, **options)

    def branch_input(self, x: jax.Array) -> jax.Array:
        return temporal_shift(x) if self.shift else x


class ResNet(ConvolutionTower):
    """Residual blocks over the two spatial axes before the channels; other axes are batch axes.

    Attributes:
      expansion: Output channels of a block over its inner channels.
      pool_padding: Padding of the max pooling after the stem, as in `nnx.max_pool`.
      kernel_init: Initializer of convolutions; see `draw_kernels`.

    Args:
      channels: Channels of the input; 0 if it has no such axis.
      shift: Whether blocks apply temporal shifts, for inputs [N, T, H, W, channels].
      blocks: Number of blocks in each group; channels double from group to group.
      dilations: Dilation of the 3×3 convolutions of each group, by default 1. The stride of a
        dilated group is 1.
      width_multiplier: Factor of all channel counts (each rounded, at least 1); at least 1/8 with
        `shift`.
      dtype: Dtype of computation; BatchNorm runs in float32.
      param_dtype: Dtype of parameters.
      remat: What the backward pass recomputes; see `ConvolutionConfig`.
      rngs: Random number generators for initialization.

    Raises:
      UserError: Invalid options.
    """

    # Options that a subclass sets itself, unless its own constructor has them.
    FIXED_OPTIONS = ("channels", "shift", "dilations")

    expansion = 4
    pool_padding: str | Sequence[tuple[int, int]] = "SAME"
    kernel_init: Literal["glorot", "kaiming"] = "glorot"

    def __init__(
        self,
        *,
        channels: int,
        shift: bool,
        blocks: Sequence[int] = (3, 4, 6, 3),
        dilations: Sequence[int] = (),
        width_multiplier: float = 1.0,
        dtype: Any = "float32",
        param_dtype: Any = "float32",
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        cfg = ConvolutionConfig(
            width_multiplier=width_multiplier, dtype=dtype, param_dtype=param_dtype, remat=remat
        )
        if shift and cfg.width(64) < _SHIFT_DIVISOR:
            raise UserError(
                f"width_multiplier must be at least 0.125, so that the first block has "
                f"{_SHIFT_DIVISOR} channels to shift; got {width_multiplier}."
            )
        if not blocks or min(blocks) < 1:
            raise UserError(f"blocks must be integers of at least 1; got {blocks}.")
        self.cfg = cfg
        self.channels = channels
        self.shift = shift
        self.blocks = tuple(blocks)
        features = cfg.width(64)
        self.stem = square_unit(
            cfg=cfg, in_features=channels or 1, out_features=features, size=7, stride=2, rngs=rngs
        )
        self.groups = nnx.Dict()
        for g, count in enumerate(self.blocks):
            self.groups[str(g)] = nnx.Dict()
            width = cfg.width(64 * 2**g)
            dilation = dilations[g] if g < len(dilations) else 1
            for j in range(count):
                stride = 2 if g > 0 and j == 0 and dilation == 1 else 1
                self.groups[str(g)][str(j)] = self.make_block(
                    cfg=cfg,
                    in_features=features,
                    features=width,
                    stride=stride,
                    project=stride > 1 or features != self.expansion * width,
                    dilation=dilation,
                    rngs=rngs,
                )
                features = self.expansion * width
        self.out_features = features
        draw_kernels(self, rngs.params(), init=self.kernel_init)

    def make_block(self, **options: Any) -> nnx.Module:
        """Returns a block with the options of `Bottleneck`, without `shift`."""
        return Bottleneck(shift=self.shift, **options)

    def feature_map(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns [N, …, H/32, W/32, out_features] for four groups, sizes rounded up."""
        return self._stages(x, train=train)[-1]

    def feature_maps(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns the maps of all resolutions in the compute dtype.

        Args:
          x: As in `__call__`.
          train: Whether BatchNorm uses the batch and updates its running averages.

        Returns:
          {'conv': the output of the stem before the max pooling, [N, …, H/2, W/2, C], 'block1': the
          output of the first group, [N, …, H/4, W/4, C], and so on}, sizes rounded up.

        Raises:
          InputError: The input has other axes or channels.
        """
        maps = self._stages(self.prepare(x), train=train)
        names = ("conv", *(f"block{group + 1}" for group in range(len(self.blocks))))
        return dict(zip(names, maps, strict=True))

    def _stages(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """Returns the outputs of the stem and of all groups."""

        def stem(unit, x):
            y = unit(x, train=train)
            return y, nnx.max_pool(y, (3, 3), (2, 2), self.pool_padding)

        y, x = self.cfg.run(stem, self.stem, x)
        maps = [y]
        for g, count in enumerate(self.blocks):
            for j in range(count):
                block = self.groups[str(g)][str(j)]
                x = self.cfg.run(lambda block, x: block(x, train=train), block, x)
            maps.append(x)
        return maps


class ResNet2D(ResNet):
    """A tower for spectrograms [N, frames, bins]; 2048 · width_multiplier features.

    As published, strided convolutions have symmetric padding and the max pooling has TensorFlow's
    SAME padding. Inputs may have any size.

    Args:
      rngs: Random number generators for initialization.
      **options: Arguments of `ResNet`.
    """

    input_axes = ("frames", "bins")

    def __init__(self, *, rngs: nnx.Rngs, **options: Any):
        super().__init__(channels=0, shift=False, rngs=rngs, **options)


class TemporalShiftResNet(ResNet):
    """A tower for frames [N, T, H, W, channels] in [-1, 1]; 2048 · width_multiplier features.

    A ResNet over frames. The residual branch of each block starts by shifting 1/4 of its channels
    by one frame (`temporal_shift`). The output is the mean over time and space. MMV (Alayrac et al.
    2020) and VATT compare with such a backbone. This implementation follows the papers and uses the
    blocks of `ResNet2D`. MMV's code normalizes before each convolution, so that its published
    weights do not fit; VATT published neither code nor weights for it.

    Args:
      channels: Channels of a frame.
      rngs: Random number generators for initialization.
      **options: Arguments of `ResNet`.
    """

    input_axes = ("T", "H", "W")

    def __init__(self, *, channels: int = 3, rngs: nnx.Rngs, **options: Any):
        super().__init__(channels=channels, shift=True, rngs=rngs, **options)


_TINY = dict(blocks=(2, 1, 1, 1), width_multiplier=0.125)
RESNET_CONFIGS: dict[str, dict[str, Any]] = {
    "resnet2d_50": {},
    "resnet2d_101": dict(blocks=(3, 4, 23, 3)),
    "resnet2d_tiny": _TINY,
}
TSM_CONFIGS: dict[str, dict[str, Any]] = {
    "tsm_50": {},
    "tsm_50x2": dict(width_multiplier=2),
    "tsm_tiny": _TINY,
}
