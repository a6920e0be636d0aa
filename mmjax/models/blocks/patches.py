"""Transformers over patches of videos, waveforms and spectrograms, and over other tokens.

Source: VATT (Akbari et al. 2021), sections 3.1 to 3.3, and its published code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.initializers import glorot_uniform, token_init
from mmjax.models.blocks.inputs import InputError
from mmjax.models.blocks.noise import dropout, split_key
from mmjax.models.blocks.positions import Positions, drop_tokens, kept_tokens
from mmjax.models.blocks.transformer import Encoder, EncoderConfig, gelu


def extract_patches(x: jax.Array, patch_size: Sequence[int]) -> jax.Array:
    """Returns the patches [N, *grid, prod(patch_size) · C] of x, [N, *sizes, C].

    Incomplete patches at the end of an axis are dropped.
    """
    grid = grid_of(x.shape[1:-1], patch_size)
    axes = range(1, len(grid) + 1)
    x = x[(slice(None), *(slice(g * p) for g, p in zip(grid, patch_size, strict=True)))]
    split = [size for g, p in zip(grid, patch_size, strict=True) for size in (g, p)]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    x = x.transpose(0, *(2 * i - 1 for i in axes), *(2 * i for i in axes), x.ndim - 1)
    return x.reshape(x.shape[0], *grid, -1)


def grid_of(sizes: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """Returns the number of patches along each axis.

    Raises:
      InputError: The input and the patch have different numbers of axes, or the input is smaller
        than one patch.
    """
    if len(sizes) != len(patch_size) or any(s < p for s, p in zip(sizes, patch_size, strict=True)):
        raise InputError(
            f"Inputs of size {tuple(sizes)} do not contain a patch of patch_size="
            f"{tuple(patch_size)}."
        )
    return tuple(s // p for s, p in zip(sizes, patch_size, strict=True))


class PatchEmbedding(nnx.Module):
    """A linear map of each patch: a convolution with stride = kernel size, as one matrix product.

    The kernel has the shape of the convolution's, [*patch_size, channels, width].

    Args:
      cfg: Encoder options with the width and dtypes.
      patch_size: Patch size along each axis of the input.
      channels: Channels of the input.
      use_bias: Whether to add a bias.
      kernel_init: Initializer of the kernel.
      bias_init: Initializer of the bias.
      rngs: Random number generators for initialization.
    """

    def __init__(
        self,
        cfg: EncoderConfig,
        *,
        patch_size: Sequence[int],
        channels: int,
        use_bias: bool = True,
        kernel_init: Callable[..., jax.Array] = glorot_uniform,
        bias_init: Callable[..., jax.Array] = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        self.dtype = cfg.dtype
        shape = (*patch_size, channels, cfg.width)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, cfg.param_dtype))
        if use_bias:
            self.bias = nnx.Param(bias_init(rngs.params(), (cfg.width,), cfg.param_dtype))

    def __call__(self, patches: jax.Array) -> jax.Array:  # [..., patch]
        kernel = self.kernel[...]
        kernel = kernel.reshape(-1, kernel.shape[-1]).astype(self.dtype)
        embedded = patches.astype(self.dtype) @ kernel
        return embedded + self.bias[...].astype(self.dtype) if hasattr(self, "bias") else embedded


class TokenTransformer(nnx.Module):
    """Tokens + positions → AGG token in front → encoder. A subclass defines `embed`.

    Args:
      encoder: Options of the encoder.
      axes: {name: size} of the position tables.
      post_projection: Width of a dense layer with GELU after the encoder; 0 for none.
      swap_axes: See `Positions`.
      own_encoder: False if the tower shares its encoder with others. The caller then runs `embed`,
        the encoder and `finish`.
      rngs: Random number generators for initialization.
    """

    # Options that a subclass sets itself, unless its own constructor has them.
    FIXED_OPTIONS = ("axes", "swap_axes", "own_encoder")

    def __init__(
        self,
        *,
        encoder: EncoderConfig,
        axes: Mapping[str, int],
        post_projection: int = 0,
        swap_axes: bool = False,
        own_encoder: bool = True,
        rngs: nnx.Rngs,
    ):
        width = encoder.width
        self.cfg = encoder
        self.out_features = post_projection or width
        self.positions = Positions(
            width=width,
            axes=axes,
            epsilon=encoder.epsilon,
            param_dtype=encoder.param_dtype,
            swap_axes=swap_axes,
            rngs=rngs,
        )
        self.agg_token = nnx.Param(token_init(width)(rngs.params(), (width,), encoder.param_dtype))
        if own_encoder:
            self.encoder = Encoder(encoder, rngs=rngs)
        if post_projection:
            self.post_projection = encoder.linear(width, post_projection, use_bias=True, rngs=rngs)

    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes a batch.

        Args:
          x: The input of `embed`.
          key: Random key of dropout and DropToken; None disables both (evaluation).

        Returns:
          The AGG token, float32 [N, out_features], and all other tokens, [N, tokens, out_features].
          In training, these are the tokens that DropToken kept, in its order.
        """
        embed_key, encoder_key = split_key(key, 2)
        tokens, key_mask = self.embed(x, key=embed_key)
        return self.finish(self.encoder(tokens, key_mask=key_mask, key=encoder_key))

    def embed(
        self, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns tokens [N, 1 + tokens, width] and their mask or None."""
        raise NotImplementedError

    def finish(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the result of `__call__` from the tokens of the encoder."""
        if hasattr(self, "post_projection"):
            tokens = gelu(self.post_projection(tokens))
        return tokens[:, 0].astype(jnp.float32), tokens[:, 1:]

    def _add_positions(
        self, tokens: jax.Array, positions: jax.Array, key: jax.Array | None
    ) -> jax.Array:  # [N, T, D], [T, D] or [N, T, D] → [N, 1 + T, D]
        """Adds positions to tokens and puts the AGG token, without position, in front."""
        tokens = dropout(tokens + positions.astype(tokens.dtype), self.cfg.dropout_rate, key)
        agg = self.agg_token[...].astype(tokens.dtype)
        agg = jnp.broadcast_to(agg, (len(tokens), 1, self.cfg.width))
        return jnp.concatenate([agg, tokens], axis=1)

    def _encoder_flops(self, num_tokens: int) -> float:
        """Returns the operations of the encoder and the layer after it, with the AGG token."""
        total = self.cfg.flops(num_tokens + 1)
        if hasattr(self, "post_projection"):
            total += 2.0 * (num_tokens + 1) * self.cfg.width * self.out_features
        return total


class PatchTransformer(TokenTransformer):
    """Patches → embeddings + positions → DropToken (training) → AGG token in front → encoder.

    Args:
      encoder: Options of the encoder.
      patch_size: Patch size along each axis of the input.
      channels: Channels of the input, its last axis; 0 if the input has no such axis.
      axes: Names of the input's axes, outermost first, and of their position tables.
      buckets: Size of each position table. Tables are resampled for inputs with another number of
        patches (`positions.spline_matrix`).
      keep_tokens: Fraction of the tokens that DropToken keeps in training; 1 disables it.
      drop_per_example: Whether DropToken chooses for each example. False chooses once for the
        batch, as VATT does.
      pre_projection: Whether to add a dense layer with GELU between patches and positions, as
        VATT's modality-agnostic checkpoints have.
      rngs: Random number generators for initialization.
      **options: Arguments of `TokenTransformer`.

    Raises:
      UserError: Invalid options.
    """

    FIXED_OPTIONS = (*TokenTransformer.FIXED_OPTIONS, "channels")

    def __init__(
        self,
        *,
        encoder: EncoderConfig,
        patch_size: Sequence[int],
        channels: int,
        axes: Sequence[str],
        buckets: Sequence[int],
        keep_tokens: float = 1.0,
        drop_per_example: bool = False,
        pre_projection: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        for name, sizes in (("patch_size", patch_size), ("buckets", buckets)):
            if not isinstance(sizes, Sequence) or len(sizes) != len(axes) or min(sizes) < 1:
                raise UserError(
                    f"{name} must have an integer of at least 1 for each axis "
                    f"({', '.join(axes)}); got {sizes}."
                )
        if not 0 < keep_tokens <= 1:
            raise UserError(f"keep_tokens must be in (0, 1]; got {keep_tokens}.")
        self.patch_size = tuple(patch_size)
        self.channels = channels
        self.keep_tokens = keep_tokens
        self.drop_per_example = drop_per_example
        self.patch = PatchEmbedding(
            encoder, patch_size=patch_size, channels=max(channels, 1), rngs=rngs
        )
        if pre_projection:
            self.pre_projection = encoder.linear(
                encoder.width, encoder.width, use_bias=True, rngs=rngs
            )
        super().__init__(
            encoder=encoder, axes=dict(zip(axes, buckets, strict=True)), rngs=rngs, **options
        )

    def embed(self, x: jax.Array, *, key: jax.Array | None = None) -> tuple[jax.Array, None]:
        """Returns tokens [N, 1 + tokens, width] and no mask.

        Args:
          x: float [N, *sizes, channels], or [N, *sizes] if `channels` is 0.
          key: Random key of dropout and DropToken; None disables both.

        Raises:
          InputError: The input has other axes or channels, or is smaller than one patch.
        """
        if not self.channels:
            x = x[..., None]
        if x.shape[-1] != max(self.channels, 1):
            raise InputError(
                f"{type(self).__name__} expects inputs with {self.channels} channels (option "
                f"`channels`); got shape {x.shape[1:]}."
            )
        drop_key, position_key = split_key(key, 2)
        patches = extract_patches(x, self.patch_size)
        positions = self.positions(patches.shape[1:-1])  # [P, D]
        patches = patches.reshape(x.shape[0], -1, patches.shape[-1])  # [N, P, patch]
        if key is not None and self.keep_tokens < 1:
            # Patches are embedded independently, so dropping them first saves work.
            batch = len(x) if self.drop_per_example else None
            keep = drop_tokens(drop_key, patches.shape[1], self.keep_tokens, batch=batch)
            positions = positions[keep]
            index = keep[..., None] if self.drop_per_example else keep[None, :, None]
            patches = jnp.take_along_axis(patches, index, axis=1)
        tokens = self.patch(patches)  # [N, P, D]
        if hasattr(self, "pre_projection"):
            tokens = gelu(self.pre_projection(tokens))
        return self._add_positions(tokens, positions, position_key), None

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Returns the forward operations for one input; `train` includes DropToken."""
        sizes = shape[:-1] if self.channels else shape
        num_tokens = math.prod(grid_of(sizes, self.patch_size))
        if train:
            num_tokens = kept_tokens(num_tokens, self.keep_tokens)
        patch = math.prod(self.patch_size) * max(self.channels, 1)
        if hasattr(self, "pre_projection"):
            patch += self.cfg.width
        return 2.0 * num_tokens * patch * self.cfg.width + self._encoder_flops(num_tokens)

    @property
    def input_ndim(self) -> int:
        """Number of axes of one input, without batch."""
        return len(self.patch_size) + bool(self.channels)


# Encoder options by size, shared by the towers.
SIZES: dict[str, dict[str, Any]] = {
    # Unrolled, a shallow encoder compiles as fast as a scan and runs a third faster on CPUs.
    "tiny": dict(width=128, head_dim=32, mlp_dim=512, num_layers=4, num_heads=4, scan_unroll=0),
    "small": dict(width=384, mlp_dim=1536, num_layers=12, num_heads=6),
    "base": dict(width=768, mlp_dim=3072, num_layers=12, num_heads=12),
    "medium": dict(width=1024, mlp_dim=4096, num_layers=12, num_heads=16),
    "large": dict(width=1024, mlp_dim=4096, num_layers=24, num_heads=16),
    "xlarge": dict(width=1536, mlp_dim=4096, num_layers=24, num_heads=24),
}
