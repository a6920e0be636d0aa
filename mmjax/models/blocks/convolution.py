"""Building blocks of convolutional towers: units, options, rematerialization, pooling and FLOPs.

Sources: batch normalization, Ioffe & Szegedy 2015; settings as in VATT's published code.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Jaxpr, subjaxprs

from mmjax.errors import UserError
from mmjax.models.blocks import transformer
from mmjax.models.blocks.depthwise import Depthwise
from mmjax.models.blocks.inputs import InputError

Module = TypeVar("Module", bound=nnx.Module)
Output = TypeVar("Output")


def _keep_convolutions(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive is jax.lax.conv_general_dilated_p


# The names are those of the transformers, so that one value of `remat` applies to all towers of a
# model. 'dots' keeps the outputs of convolutions and recomputes normalization, ReLU and pooling.
REMAT_POLICIES: dict[str, Any] = {**transformer.REMAT_POLICIES, "dots": _keep_convolutions}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvolutionConfig:
    """Options of a convolutional tower.

    Attributes:
      width_multiplier: Factor of every channel count, including the output's; see `width`.
      dtype: Dtype of convolutions and of activations between units; BatchNorm runs in float32.
      param_dtype: Dtype of parameters; BatchNorm statistics are float32.
      remat: What the backward pass recomputes: 'none', 'full' (everything but the input of each
        stem unit and block), or 'dots' (everything but the outputs of convolutions).
    """

    width_multiplier: float = 1.0
    dtype: Any = "float32"
    param_dtype: Any = "float32"
    remat: transformer.Remat = "none"

    def __post_init__(self) -> None:
        if not self.width_multiplier > 0:
            raise UserError(f"width_multiplier must be positive; got {self.width_multiplier}.")
        transformer.check_literals(self)
        transformer.check_dtypes(self)

    def width(self, channels: int) -> int:
        """Returns `channels` times the multiplier, rounded, and at least 1."""
        return max(1, round(channels * self.width_multiplier))

    def run(
        self, call: Callable[[Module, jax.Array], Output], module: Module, x: jax.Array
    ) -> Output:
        """Returns `call(module, x)`, rematerialized in the backward pass as `remat` says.

        `jax.checkpoint` passes a copy of the module to the call. BatchNorm statistics are therefore
        returned from it and copied back into `module`.
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


class Unit(nnx.Module):
    """A convolution, BatchNorm, and optionally ReLU.

    BatchNorm uses biased variances of the global batch (arrays are global under `jit`), as Keras'
    SyncBatchNormalization. By default, the kernel is 0 until `draw_kernels` initializes all kernels
    of the tower.

    Args:
      cfg: Options of the tower.
      in_features: Channels of the input.
      out_features: Channels of the output.
      kernel_size: Kernel size along each axis.
      strides: Stride along each axis; None is 1.
      padding: 'SAME' (as in TensorFlow: odd padding has its larger half at the end), or pairs
        (before, after) for each axis.
      feature_groups: Number of channel groups that are convolved separately. A group per channel is
        a depthwise convolution.
      dilation: Distance of the kernel's elements along each axis.
      use_bias: Whether the convolution has a bias.
      relu: Whether to end with ReLU.
      kernel_init: Initializer of the kernel, and of the bias if there is one.
      scale_init: Initializer of BatchNorm's scale.
      momentum: Momentum of BatchNorm's running averages: the weight of their previous value.
      epsilon: Epsilon of BatchNorm.
      rngs: Random number generators for initialization.
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
        dilation: int = 1,
        use_bias: bool = False,
        relu: bool = True,
        kernel_init: Callable[..., jax.Array] = nnx.initializers.zeros,
        scale_init: Callable[..., jax.Array] = nnx.initializers.ones,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
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
            kernel_dilation=dilation,
            use_bias=use_bias,
            kernel_init=kernel_init,
            bias_init=kernel_init,
            dtype=cfg.dtype,
            param_dtype=cfg.param_dtype,
            rngs=rngs,
        )
        # In half precision, nnx.BatchNorm rounds its running averages before it uses them.
        self.norm = nnx.BatchNorm(
            out_features,
            momentum=momentum,
            epsilon=epsilon,
            use_fast_variance=False,
            scale_init=scale_init,
            dtype=jnp.float32,
            param_dtype=cfg.param_dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:  # [..., *sizes, channels]
        y = self.norm(self.conv(x), use_running_average=not train)
        return (jax.nn.relu(y) if self.relu else y).astype(self.dtype)


def square_unit(
    *,
    cfg: ConvolutionConfig,
    size: int,
    stride: int = 1,
    dilation: int = 1,
    rngs: nnx.Rngs,
    **options: Any,
) -> Unit:
    """Returns a unit over the last two axes with symmetric padding for any stride."""
    pad = dilation * (size // 2)
    return Unit(
        cfg=cfg,
        kernel_size=(size, size),
        strides=(stride, stride),
        padding=((pad, pad),) * 2,
        dilation=dilation,
        rngs=rngs,
        **options,
    )


def draw_kernels(
    module: nnx.Module, key: jax.Array, *, init: Literal["glorot", "kaiming"] = "glorot"
) -> None:
    """Initializes the kernels of all convolutions in `module`.

    All values are sampled at once and split into kernels, because sampling a hundred kernels
    separately would dominate the compile time of initialization.

    Args:
      module: The module; its kernels are overwritten.
      key: Random key.
      init: 'glorot' (uniform; Keras' default, as in VATT's I3D and ResNet), or 'kaiming' (normal
        with variance 2 / (kernel area · fan_out), as in torchvision's ResNets).
    """
    sample = {
        "glorot": lambda shape: jax.random.uniform(key, shape, minval=-1.0),
        "kaiming": lambda shape: jax.random.normal(key, shape),
    }[init]
    kernels = [m.kernel for _, m in nnx.iter_modules(module) if isinstance(m, nnx.Conv)]
    sizes = [math.prod(kernel.shape) for kernel in kernels]
    samples = sample((sum(sizes),))
    start = 0
    for kernel, size in zip(kernels, sizes, strict=True):
        *window, fan_in, fan_out = kernel.shape
        area = math.prod(window)
        scale = 6 / (area * (fan_in + fan_out)) if init == "glorot" else 2 / (area * fan_out)
        values = math.sqrt(scale) * samples[start : start + size].reshape(kernel.shape)
        kernel.set_value(
            values.astype(kernel.dtype)
        )  # `kernel[...] =` is slow; see `mmjax.state._Stream`
        start += size


class ConvolutionTower(nnx.Module):
    """A tower that averages its last feature map; a subclass defines `feature_map`.

    Attributes:
      cfg: Options.
      input_axes: Names of the axes of one input, without batch and channels.
      channels: Channels of the input, its last axis; 0 if the input has no such axis.
      out_features: Width of the pooled features.
    """

    cfg: ConvolutionConfig
    input_axes: tuple[str, ...]
    channels: int
    out_features: int

    @property
    def input_ndim(self) -> int:
        """Number of axes of one input, without batch."""
        return len(self.input_axes) + bool(self.channels)

    def feature_map(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns the last feature map, [N, …, out_features].

        Args:
          x: [N, …, channels] in the compute dtype.
          train: Whether BatchNorm uses the batch and updates its running averages.
        """
        raise NotImplementedError

    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes a batch.

        Args:
          x: float [N, *input_axes, channels], or [N, *input_axes] if `channels` is 0.
          key: A random key in training, None in evaluation. In training, BatchNorm uses the batch
            and updates its running averages. Nothing is sampled.

        Returns:
          The mean of the last feature map, float32 [N, out_features], and that map, [N, …,
          out_features] in the compute dtype.

        Raises:
          InputError: The input has other axes or channels.
        """
        tokens = self.feature_map(self.prepare(x), train=key is not None)
        return tokens.mean(range(1, tokens.ndim - 1), dtype=jnp.float32), tokens

    def prepare(self, x: jax.Array) -> jax.Array:
        """Returns the input of `feature_map` from that of `__call__`.

        Raises:
          InputError: The input has other axes or channels.
        """
        has_channels = not self.channels or x.shape[-1] == self.channels
        if x.ndim != self.input_ndim + 1 or not has_channels:
            axes = list(self.input_axes)
            axes += [f"{self.channels} channels"] if self.channels else []
            raise InputError(
                f"{type(self).__name__} expects inputs of shape ({', '.join(axes)}); got "
                f"{tuple(x.shape[1:])}."
            )
        x = x if self.channels else x[..., None]
        return x.astype(self.cfg.dtype)

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Returns the forward operations for one input; `train` has no effect."""
        del train
        x = jax.ShapeDtypeStruct((1, *shape), self.cfg.dtype)
        return convolution_flops(lambda tower, x: tower(x)[1], self, x)


def convolution_flops(function: Callable[..., Any], *args: Any) -> float:
    """Returns the floating-point operations of the convolutions in `function(*args)`.

    The function is traced, not executed. Counts 2 operations per multiply-add, including padding,
    as in published numbers; all other operations are ignored.
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
