"""Depthwise convolutions: one filter per channel.

On CPUs they are computed as sums of shifted products. XLA's convolutions with one group per channel
are 5 to 20 times slower there, and so are their gradients.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class _Geometry(NamedTuple):
    """Window, strides, padding and dilation of a convolution, one entry per spatial axis."""

    window: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def taps(self, sizes: Sequence[int]) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Yields each position in the window and the slices of a padded input that it multiplies.

        Args:
          sizes: Sizes of the output.
        """
        for tap in itertools.product(*map(range, self.window)):
            starts = [index * step for index, step in zip(tap, self.dilation, strict=True)]
            slices = tuple(
                slice(start, start + (size - 1) * stride + 1, stride)
                for start, size, stride in zip(starts, sizes, self.strides, strict=True)
            )
            yield tap, slices

    def padded(self, x: jax.Array) -> jax.Array:
        """Returns the input in float32 with its padding."""
        return jnp.pad(x, ((0, 0), *self.pads, (0, 0))).astype(jnp.float32)

    def output_sizes(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Returns the sizes of the output for those of the input."""
        return tuple(
            (size + sum(pad) - (length - 1) * step - 1) // stride + 1
            for size, pad, length, step, stride in zip(
                sizes, self.pads, self.window, self.dilation, self.strides, strict=True
            )
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
    """Returns the convolution of x [N, *sizes, C] as a sum of shifted products."""
    padded, total = geometry.padded(x), jnp.float32(0)
    for tap, slices in geometry.taps(geometry.output_sizes(x.shape[1:-1])):
        total += padded[(slice(None), *slices)] * kernel[(*tap, 0)]
    return total.astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array, geometry: _Geometry):
    return _shifted(x, kernel, geometry), (x, kernel)


def _backward(geometry: _Geometry, residual: tuple[jax.Array, jax.Array], gradient: jax.Array):
    x, kernel = residual
    of_kernel = _kernel_gradient(geometry.padded(x), gradient.astype(jnp.float32), geometry)
    return _input_gradient(x, kernel, gradient, geometry), of_kernel.astype(kernel.dtype)


_shifted.defvjp(_forward, _backward)


def _input_gradient(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, geometry: _Geometry
) -> jax.Array:
    """Returns the gradient of x: a convolution with the flipped kernel."""
    spans = [(n - 1) * step for n, step in zip(geometry.window, geometry.dilation, strict=True)]
    sizes = x.shape[1:-1]
    spread = [
        (size - 1) * stride + 1
        for size, stride in zip(gradient.shape[1:-1], geometry.strides, strict=True)
    ]
    # The gradient with stride - 1 zeros between its elements, padded to the size of x plus a span.
    padding = [
        (span - low, size + low - length, stride - 1)
        for span, (low, _), size, length, stride in zip(
            spans, geometry.pads, sizes, spread, geometry.strides, strict=True
        )
    ]
    unused = (0, 0, 0)
    spread_out = jax.lax.pad(
        gradient.astype(jnp.float32), jnp.float32(0), (unused, *padding, unused)
    )
    total = jnp.float32(0)
    for tap in itertools.product(*map(range, geometry.window)):
        starts = [
            span - index * step
            for span, index, step in zip(spans, tap, geometry.dilation, strict=True)
        ]
        slices = (slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
        total += spread_out[(slice(None), *slices)] * kernel[(*tap, 0)]
    return total.astype(x.dtype)


def _kernel_gradient(padded: jax.Array, gradient: jax.Array, geometry: _Geometry) -> jax.Array:
    """Returns the gradient of the kernel, [*window, 1, C].

    A loop over the first axis of the map adds up the products of all taps elementwise. XLA computes
    the direct sums over examples and pixels ten times slower.
    """
    num_rows, *sizes = gradient.shape[1:-1]
    inner = geometry._replace(window=geometry.window[1:], dilation=geometry.dilation[1:])
    inner = inner._replace(strides=geometry.strides[1:])

    def add_row(row: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        own = jax.lax.dynamic_index_in_dim(gradient, row, 1, keepdims=False)
        products = []
        for index in range(geometry.window[0]):
            source = row * geometry.strides[0] + index * geometry.dilation[0]
            other = jax.lax.dynamic_index_in_dim(padded, source, 1, keepdims=False)
            products += [other[(slice(None), *slices)] * own for _, slices in inner.taps(sizes)]
        return tuple(total + product for total, product in zip(sums, products, strict=True))

    zeros = (jnp.zeros_like(gradient[:, 0]),) * math.prod(geometry.window)
    sums = jax.lax.fori_loop(0, num_rows, add_row, zeros)
    totals = jnp.stack([total.sum(range(total.ndim - 1)) for total in sums])
    return totals.reshape(*geometry.window, 1, -1)


class Depthwise(nnx.Conv):
    """A depthwise convolution over the axes between the first and the last.

    The arguments `feature_group_count`, `in_features` and `out_features` of `nnx.Conv` must be
    equal.
    """

    def __call__(self, x: jax.Array) -> jax.Array:  # [N, *sizes, channels]
        x = x.astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)  # [*window, 1, channels]
        window = kernel.shape[:-2]
        strides, dilation = (
            tuple(option) if isinstance(option, Sequence) else (option or 1,) * len(window)
            for option in (self.strides, self.kernel_dilation)
        )
        pads = self.padding
        if isinstance(pads, str):
            spans = [(n - 1) * step + 1 for n, step in zip(window, dilation, strict=True)]
            pads = jax.lax.padtype_to_pads(x.shape[1:-1], spans, strides, pads)
        geometry = _Geometry(window, strides, tuple(map(tuple, pads)), dilation)

        def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
            axes = "XYZ"[: len(window)]
            return jax.lax.conv_general_dilated(
                *(x, kernel, strides, geometry.pads),
                rhs_dilation=dilation,
                dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
                feature_group_count=x.shape[-1],
            )

        def shift(x: jax.Array, kernel: jax.Array) -> jax.Array:
            return _shifted(x, kernel, geometry)

        y = jax.lax.platform_dependent(x, kernel, cpu=shift, default=convolve)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)
