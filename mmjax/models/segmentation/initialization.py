"""Initial values of decoders as in segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from mmjax.models.blocks.convolution import ConvolutionConfig
from mmjax.models.blocks.initializers import glorot_uniform


def kaiming(fan_in: int) -> Callable[..., jax.Array]:
    """Returns the initializer of a kernel that ReLU follows: uniform with variance 2 / fan-in."""
    del fan_in  # the initializer computes it from the shape
    return nnx.initializers.variance_scaling(2.0, "fan_in", "uniform")


def classifier(
    cfg: ConvolutionConfig, in_features: int, num_classes: int, *, rngs: nnx.Rngs
) -> nnx.Conv:
    """Returns the last 1×1 convolution of a model."""
    return nnx.Conv(
        in_features,
        num_classes,
        (1, 1),
        kernel_init=glorot_uniform,
        dtype=cfg.dtype,
        param_dtype=cfg.param_dtype,
        rngs=rngs,
    )
