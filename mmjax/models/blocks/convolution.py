"""What the convolutional towers share: units, options, recomputation, pooling and FLOPs.

Sources: batch normalization, Ioffe & Szegedy 2015; settings as in VATT's published code.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Jaxpr, subjaxprs

from mmjax.errors import UserError, choose
from mmjax.models.blocks import transformer

Module = TypeVar("Module", bound=nnx.Module)


def _keep_convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive is jax.lax.conv_general_dilated_p


# The names of the transformers' policies, so that one setting serves all towers of a model. What a
# convolution gives is here what a product with parameters is there: 'dots' keeps it, and computes
# normalization, ReLU and pooling again.
REMAT_POLICIES: dict[str, Any] = {**transformer.REMAT_POLICIES, "dots": _keep_convolutions}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvolutionConfig:
    """Options of a convolutional tower.

    Attributes:
      width_multiplier: factor of every channel count, the output's too; see `width`.
      dtype: of convolutions and of what passes between units; BatchNorm runs in float32.
      param_dtype: of parameters; statistics are float32.
      remat: what the backward pass keeps: 'none' (everything), 'full' (nothing but the input of
        each unit of the stem and of each block), 'dots' (besides, what convolutions give).
    """

    width_multiplier: float = 1.0
    dtype: Any = "float32"
    param_dtype: Any = "float32"
    remat: str = "none"

    def __post_init__(self):
        if not self.width_multiplier > 0:
            raise UserError(f"width_multiplier must be above 0, not {self.width_multiplier}.")
        choose("remat", self.remat, REMAT_POLICIES)
        transformer.check_dtypes(self)

    def width(self, channels: int) -> int:
        """That many channels times the multiplier, rounded, at least 1."""
        return max(1, round(channels * self.width_multiplier))

    def run(
        self, call: Callable[[Module, jax.Array], jax.Array], module: Module, x: jax.Array
    ) -> jax.Array:
        """`call(module, x)`, of which the backward pass keeps what `remat` says.

        Statistics that the call updates are updated in `module`: `jax.checkpoint` hands a copy of
        the module to the call, so they have to come back as a result.
        """
        if self.remat == "none":
            return call(module, x)

        def pure(module, x):
            y = call(module, x)
            statistics = nnx.split(module, nnx.BatchStat, ...)[1]
            return y, jax.lax.stop_gradient(statistics)

        y, statistics = jax.checkpoint(pure, policy=REMAT_POLICIES[self.remat])(module, x)
        nnx.update(module, statistics)
        return y


class Depthwise(nnx.Conv):
    """A convolution of each channel by itself, over the axes between the first and the last.

    On CPUs it is a sum of shifted products, in a fraction of the time of XLA's convolution there.
    """

    def __call__(self, x: jax.Array) -> jax.Array:  # [N, *sizes, channels]
        x = x.astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)  # [*window, 1, channels]
        window = kernel.shape[:-2]
        strides = self.strides if isinstance(self.strides, Sequence) else (1,) * len(window)
        pads = self.padding
        if isinstance(pads, str):
            pads = jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, pads)

        def convolve(x, kernel):
            axes = "XYZ"[: len(window)]
            return jax.lax.conv_general_dilated(
                *(x, kernel, strides, pads),
                dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
                feature_group_count=x.shape[-1],
            )

        def shift(x, kernel):
            padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
            total = jnp.float32(0)
            for at in itertools.product(*map(range, window)):
                part = tuple(
                    slice(first, size - span + 1 + first, stride)
                    for first, size, span, stride in zip(
                        at, padded.shape[1:-1], window, strides, strict=True
                    )
                )
                total += padded[(slice(None), *part)].astype(jnp.float32) * kernel[(*at, 0)]
            return total.astype(x.dtype)

        return jax.lax.platform_dependent(x, kernel, cpu=shift, default=convolve)


class Unit(nnx.Module):
    """A convolution without bias, BatchNorm and, unless it is left out, ReLU.

    Statistics are biased variances of the global batch (arrays are global under `jit`), as in
    Keras' SyncBatchNormalization; their running averages keep 0.9 of the old value. The kernel is 0
    until `draw_kernels` fills those of the whole tower.

    Args:
      cfg: options of the tower.
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: of each axis.
      strides: of each axis; None is 1.
      padding: 'SAME' (TensorFlow's: an odd padding has its larger half behind), or (before, after)
        of each axis.
      feature_groups: of channels, each of which sees its own part of the input's alone; as many as
        channels make a depthwise convolution.
      relu: end with ReLU.
      scale_init: initializer of BatchNorm's scale.
      rngs: for initialization.
    """

    def __init__(
        self,
        *,
        cfg: ConvolutionConfig,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: Sequence[int] | None = None,
        padding: str | Sequence[tuple[int, int]] = "SAME",
        feature_groups: int = 1,
        relu: bool = True,
        scale_init: Callable[..., jax.Array] = nnx.initializers.ones,
        rngs: nnx.Rngs,
    ):
        self.dtype = cfg.dtype
        self.relu = relu
        depthwise = feature_groups == in_features == out_features > 1
        self.conv = (Depthwise if depthwise else nnx.Conv)(
            in_features,
            out_features,
            tuple(kernel_size),
            strides=None if strides is None else tuple(strides),
            padding=padding if isinstance(padding, str) else tuple(padding),
            feature_group_count=feature_groups,
            use_bias=False,
            kernel_init=nnx.initializers.zeros,
            dtype=cfg.dtype,
            param_dtype=cfg.param_dtype,
            rngs=rngs,
        )
        # In half precision nnx.BatchNorm would round its running averages before it used them.
        self.norm = nnx.BatchNorm(
            out_features,
            momentum=0.9,
            epsilon=1e-5,
            use_fast_variance=False,
            scale_init=scale_init,
            dtype=jnp.float32,
            param_dtype=cfg.param_dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [..., *sizes, channels]
        y = self.norm(self.conv(x), use_running_average=not train)
        return (jax.nn.relu(y) if self.relu else y).astype(self.dtype)


def draw_kernels(module: nnx.Module, key: jax.Array, *, init: str = "glorot") -> None:
    """Draws the kernels of all convolutions in `module`.

    One draw is cut into kernels because a draw for each of a hundred would take most of the time to
    compile an initialization.

    Args:
      module: with kernels of any value.
      key: randomness.
      init: 'glorot', uniform, Keras' default, which VATT's I3D and ResNet leave as it is; or
        'kaiming', normal with a variance of 2 / (window · fan_out), as torchvision's ResNets.
    """
    draw = {
        "glorot": lambda shape: jax.random.uniform(key, shape, minval=-1.0),
        "kaiming": lambda shape: jax.random.normal(key, shape),
    }[init]
    kernels = [m.kernel for _, m in nnx.iter_modules(module) if isinstance(m, nnx.Conv)]
    sizes = [math.prod(kernel.shape) for kernel in kernels]
    draws = draw((sum(sizes),))
    start = 0
    for kernel, size in zip(kernels, sizes, strict=True):
        *window, fan_in, fan_out = kernel.shape
        area = math.prod(window)
        scale = 6 / (area * (fan_in + fan_out)) if init == "glorot" else 2 / (area * fan_out)
        values = math.sqrt(scale) * draws[start : start + size].reshape(kernel.shape)
        kernel.set_value(values.astype(kernel.dtype))  # `kernel[...] =` is slow, see `_Stream`
        start += size


class ConvolutionTower(nnx.Module):
    """Input → feature map → its mean; a subclass sets these and defines `feature_map`.

    Attributes:
      cfg: options.
      input_ndim: axes of one input, without batch.
      channels: of the input's last axis; 0 when the input has no such axis.
      out_features: width of the output.
    """

    cfg: ConvolutionConfig
    input_ndim: int
    channels: int
    out_features: int

    def feature_map(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, …, channels] in the compute dtype → [N, …, out_features]."""
        raise NotImplementedError

    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes a batch.

        Args:
          x: float [N, …], `input_ndim` axes after the batch.
          key: training, if given: BatchNorm uses the batch and updates its running averages, which
            None (evaluation) uses. Nothing is random.

        Returns:
          The mean of the last feature map, float32 [N, out_features], and that map, [N, …,
          out_features] in the compute dtype.

        Raises:
          UserError: an input with other axes or channels.
        """
        channels = self.channels or 1
        if x.ndim != self.input_ndim + 1 or (self.channels and x.shape[-1] != channels):
            axes = f"{self.input_ndim} axes"
            axes += f", the last of {self.channels} (channels)" if self.channels else ""
            raise UserError(
                f"{type(self).__name__} takes inputs of {axes}, not of shape {tuple(x.shape[1:])}; "
                "change what the data load (data.…) or the tower (model.…)."
            )
        x = x if self.channels else x[..., None]
        tokens = self.feature_map(x.astype(self.cfg.dtype), train=key is not None)
        return tokens.mean(range(1, tokens.ndim - 1), dtype=jnp.float32), tokens

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Forward operations for one input of this shape, the same in training."""
        del train
        x = jax.ShapeDtypeStruct((1, *shape), self.cfg.dtype)
        return convolution_flops(lambda tower, x: tower(x)[1], self, x)


def convolution_flops(function: Callable[..., Any], *args: Any) -> float:
    """Operations of the convolutions that `function(*args)` runs; nothing is computed.

    2 per multiply-add; products with padding count, as in published figures; all else is left out.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> float:
    total = sum(_count(inner) for inner in subjaxprs(jaxpr))
    for equation in jaxpr.eqns:
        if equation.primitive is jax.lax.conv_general_dilated_p:
            kernel = equation.invars[1].aval.shape
            out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            outputs = math.prod(equation.outvars[0].aval.shape)
            total += 2.0 * outputs * math.prod(kernel) / out_features
    return total
