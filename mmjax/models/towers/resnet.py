"""ResNets: audio towers `resnet2d_*` over spectrograms, video towers `tsm_*` over frames.

Sources: He et al. 2016; VATT's published code (which takes SimCLR's ResNet) for the details.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.convolution import ConvolutionConfig, ConvolutionTower, Unit, draw_kernels

# The temporal shift takes 1/8 of the channels from either neighbor (Lin et al. 2019).
_SHIFT_SHARE = 8


def square_unit(
    *, cfg: ConvolutionConfig, size: int, stride: int = 1, rngs: nnx.Rngs, **options: Any
) -> Unit:
    """A unit over the last two axes, padded alike on both sides whatever the stride."""
    return Unit(
        cfg=cfg,
        kernel_size=(size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        rngs=rngs,
        **options,
    )


def temporal_shift(x: jax.Array) -> jax.Array:
    """[N, T, …, C]: 1/8 of the channels from the frame before, the next 1/8 from the one after.

    Zeros stand for the frames before the first and after the last.
    Source: Lin et al. 2019, "TSM: Temporal Shift Module", section 3.
    """
    share = x.shape[-1] // _SHIFT_SHARE
    rest = [(0, 0)] * (x.ndim - 2)
    before = jnp.pad(x[:, :-1, ..., :share], [(0, 0), (1, 0), *rest])
    after = jnp.pad(x[:, 1:, ..., share : 2 * share], [(0, 0), (0, 1), *rest])
    return jnp.concatenate([before, after, x[..., 2 * share :]], axis=-1)


class ResidualBlock(nnx.Module):
    """Units in a row plus the input, then ReLU.

    Args:
      cfg: options of the tower.
      in_features: channels of the input.
      units: {name: (size of the kernel, channels out, stride)}; all but the last end with ReLU.
      project: add a strided 1×1 unit of the input, `shortcut`, not the input itself.
      zero_init_last: the last BatchNorm's scale starts at 0, so that a new block without `project`
        is a ReLU.
      rngs: for initialization.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        in_features: int,
        units: Mapping[str, tuple[int, int, int]],
        project: bool,
        zero_init_last: bool = True,
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
        """What the first unit takes of the input."""
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
      cfg: options of the tower.
      in_features: channels of the input.
      features: inner channels; there are 4 times as many out.
      stride: of the 3×3 convolution.
      shift: shift channels in time before the first convolution; the input is then [N, T, …].
      **options: of `ResidualBlock`.
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
    """Bottleneck blocks over the last two axes of size; more axes before them are batch to it.

    Attributes:
      expansion: channels that leave a block over its inner ones.
      pool_padding: of the max pooling behind the stem, as `nnx.max_pool` takes it.
      kernel_init: how convolutions start, see `draw_kernels`.

    Args:
      channels: of the input; 0 when it has no such axis.
      shift: temporal shifts in all blocks; the input is then [N, T, H, W, channels].
      blocks: how many blocks in each group; the channels double from a group to the
        next.
      width_multiplier: factor of all channel counts (each rounded, at least 1); with `shift` at
        least 1/8.
      dtype: of computation; BatchNorm runs in float32.
      param_dtype: of parameters.
      remat: what the backward pass keeps, see `ConvolutionConfig`.
      rngs: for initialization.
    """

    # Options that a kind of tower decides, unless its own constructor takes them.
    FIXED = ("channels", "shift")

    expansion = 4
    pool_padding: str | Sequence[tuple[int, int]] = "SAME"
    kernel_init = "glorot"

    def __init__(
        self,
        *,
        channels: int,
        shift: bool,
        blocks: Sequence[int] = (3, 4, 6, 3),
        width_multiplier: float = 1.0,
        dtype: Any = "float32",
        param_dtype: Any = "float32",
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        cfg = ConvolutionConfig(
            width_multiplier=width_multiplier, dtype=dtype, param_dtype=param_dtype, remat=remat
        )
        if shift and cfg.width(64) < _SHIFT_SHARE:
            raise UserError(
                f"width_multiplier={width_multiplier} leaves the first block fewer than "
                f"{_SHIFT_SHARE} channels, too few to shift; give at least 0.125."
            )
        if not blocks or min(blocks) < 1:
            raise UserError(f"blocks must be numbers of at least 1, not {blocks}.")
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
            for j in range(count):
                stride = 2 if g > 0 and j == 0 else 1
                self.groups[str(g)][str(j)] = self.make_block(
                    cfg=cfg,
                    in_features=features,
                    features=width,
                    stride=stride,
                    project=stride > 1 or features != self.expansion * width,
                    rngs=rngs,
                )
                features = self.expansion * width
        self.out_features = features
        draw_kernels(self, rngs.params(), init=self.kernel_init)

    def make_block(self, **options: Any) -> nnx.Module:
        """A block with the options of `Bottleneck`, but `shift`."""
        return Bottleneck(shift=self.shift, **options)

    def feature_map(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, …, H, W, channels] → [N, …, H/32, W/32, out_features] (four groups), rounded up."""

        def stem(unit, x):
            return nnx.max_pool(unit(x, train=train), (3, 3), (2, 2), self.pool_padding)

        x = self.cfg.run(stem, self.stem, x)
        for g, count in enumerate(self.blocks):
            for j in range(count):
                block = self.groups[str(g)][str(j)]
                x = self.cfg.run(lambda block, x: block(x, train=train), block, x)
        return x


class ResNet2D(ResNet):
    """Spectrograms [N, frames, bins] → features of width 2048 · width_multiplier.

    As published, convolutions with a stride are padded alike on both sides, the max pooling as
    TensorFlow's SAME. Any size will do.

    Args:
      rngs: for initialization.
      **options: of `ResNet`.
    """

    input_ndim = 2

    def __init__(self, *, rngs: nnx.Rngs, **options: Any):
        super().__init__(channels=0, shift=False, rngs=rngs, **options)


class TemporalShiftResNet(ResNet):
    """Frames [N, T, H, W, channels] in [-1, 1] → features of width 2048 · width_multiplier.

    A ResNet over frames in which the residual branch of each block first shifts 1/4 of its channels
    by a frame (`temporal_shift`); the output is the mean over time and space. MMV (Alayrac et al.
    2020) and VATT compare with such a backbone. This one is our reading of the papers, on the
    blocks of `ResNet2D`: MMV's own code normalizes before each convolution, so the weights it came
    with do not fit, and VATT published neither code nor weights of it.

    Args:
      channels: of a frame.
      rngs: for initialization.
      **options: of `ResNet`.
    """

    input_ndim = 4

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
