"""Transformers over tokens with positions; over patches of video, waveforms and spectrograms.

Source: VATT (Akbari et al. 2021), sections 3.1–3.3, and its published code.
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
from mmjax.models.blocks.noise import dropout, split_key
from mmjax.models.blocks.positions import Positions, drop_tokens, kept_tokens
from mmjax.models.blocks.transformer import Encoder, EncoderConfig, gelu


def extract_patches(x: jax.Array, patch_size: Sequence[int]) -> jax.Array:
    """[N, *sizes, C] cut into [N, *grid, prod(patch_size) · C]; incomplete patches are dropped."""
    grid = grid_of(x.shape[1:-1], patch_size)
    axes = range(1, len(grid) + 1)
    x = x[(slice(None), *(slice(g * p) for g, p in zip(grid, patch_size, strict=True)))]
    split = [size for g, p in zip(grid, patch_size, strict=True) for size in (g, p)]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    x = x.transpose(0, *(2 * i - 1 for i in axes), *(2 * i for i in axes), x.ndim - 1)
    return x.reshape(x.shape[0], *grid, -1)


def grid_of(sizes: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """Patches along each axis.

    Raises:
      UserError: the input has other axes than the patch, or is smaller than one patch.
    """
    if len(sizes) != len(patch_size) or any(s < p for s, p in zip(sizes, patch_size, strict=True)):
        raise UserError(
            f"An input of size {tuple(sizes)} has no whole patch of size {tuple(patch_size)}; "
            "change the input's size (data.…) or patch_size (model.…)."
        )
    return tuple(s // p for s, p in zip(sizes, patch_size, strict=True))


class PatchEmbedding(nnx.Module):
    """A linear map of each patch: a convolution whose stride is its kernel, as one matrix product.

    The kernel has the shape of that convolution's, [*patch_size, channels, width].

    Args:
      cfg: width and dtypes.
      patch_size: along each axis of the input.
      channels: of the input.
      use_bias: add one.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      rngs: for initialization.
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
    """Tokens + positions → AGG token in front → encoder; `embed` of a subclass makes the tokens.

    Args:
      encoder: options of the encoder.
      axes: {name: rows} of the tables of positions.
      post_projection: width of a dense layer with GELU after the encoder; 0 for none.
      swap_axes: see `Positions`.
      own_encoder: False for a tower whose tokens go through an encoder that it shares with others:
        the caller runs `embed`, that encoder, and `finish`.
      rngs: for initialization.
    """

    # Options that a kind of tower decides, unless its own constructor takes them.
    FIXED = ("axes", "swap_axes", "own_encoder")

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
          x: what `embed` takes.
          key: randomness of dropout and DropToken; None turns both off (evaluation).

        Returns:
          The AGG token, float32 [N, out_features], and all others [N, tokens, out_features] (in
          training those that DropToken kept, in its order).
        """
        embed_key, encoder_key = split_key(key, 2)
        tokens, key_mask = self.embed(x, key=embed_key)
        return self.finish(self.encoder(tokens, key_mask=key_mask, key=encoder_key))

    def embed(
        self, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Tokens [N, 1 + tokens, width] for the encoder, and a mask [N, 1 + tokens] of them."""
        raise NotImplementedError

    def finish(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What a call returns, from the encoder's tokens."""
        if hasattr(self, "post_projection"):
            tokens = gelu(self.post_projection(tokens))
        return tokens[:, 0].astype(jnp.float32), tokens[:, 1:]

    def _place(
        self, tokens: jax.Array, positions: jax.Array, key: jax.Array | None
    ) -> jax.Array:  # [N, T, D], [T, D] or [N, T, D] → [N, 1 + T, D]
        """Adds positions to tokens, and the AGG token, which has none, in front."""
        tokens = dropout(tokens + positions.astype(tokens.dtype), self.cfg.dropout_rate, key)
        agg = self.agg_token[...].astype(tokens.dtype)
        agg = jnp.broadcast_to(agg, (len(tokens), 1, self.cfg.width))
        return jnp.concatenate([agg, tokens], axis=1)

    def _encoder_flops(self, num_tokens: int) -> float:
        """Operations from the encoder on, the AGG token included."""
        total = self.cfg.flops(num_tokens + 1)
        if hasattr(self, "post_projection"):
            total += 2.0 * (num_tokens + 1) * self.cfg.width * self.out_features
        return total


class PatchTransformer(TokenTransformer):
    """Patches → embeddings + positions → DropToken (training) → AGG token in front → encoder.

    Args:
      encoder: options of the encoder.
      patch_size: along each axis of the input.
      channels: of the input's last axis; 0 when the input has no such axis.
      axes: names of the input's axes, outermost first; their tables of positions have these names.
      buckets: rows of each table. Inputs with another number of patches are fine: tables are
        resampled (`positions.spline_matrix`).
      keep_tokens: DropToken keeps this fraction of the tokens in training; 1 turns it off.
      drop_per_example: DropToken chooses for each example; False chooses once for the batch, as
        VATT does.
      pre_projection: a dense layer with GELU between patches and positions (VATT's
        modality-agnostic checkpoints).
      rngs: for initialization.
      **options: of `TokenTransformer`.
    """

    FIXED = (*TokenTransformer.FIXED, "channels")

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
        for name, numbers in (("patch_size", patch_size), ("buckets", buckets)):
            if not isinstance(numbers, Sequence) or len(numbers) != len(axes):
                raise UserError(f"{name}={numbers} must have a number for each of {tuple(axes)}.")
        if not 0 < keep_tokens <= 1:
            raise UserError(f"keep_tokens must be in (0, 1], not {keep_tokens}.")
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
        """Tokens [N, 1 + tokens, width] of x, float [N, *sizes, channels], or [N, *sizes] when
        `channels` is 0; no mask."""
        if not self.channels:
            x = x[..., None]
        if x.shape[-1] != max(self.channels, 1):
            raise UserError(
                f"An input of shape {x.shape[1:]} has {x.shape[-1]} channels, not {self.channels}."
            )
        drop_key, position_key = split_key(key, 2)
        patches = extract_patches(x, self.patch_size)
        positions = self.positions(patches.shape[1:-1])  # [P, D]
        patches = patches.reshape(x.shape[0], -1, patches.shape[-1])  # [N, P, patch]
        if key is not None and self.keep_tokens < 1:
            # Each patch is embedded on its own, so dropping first is the same with less work.
            batch = len(x) if self.drop_per_example else None
            keep = drop_tokens(drop_key, patches.shape[1], self.keep_tokens, batch=batch)
            positions = positions[keep]
            index = keep[..., None] if self.drop_per_example else keep[None, :, None]
            patches = jnp.take_along_axis(patches, index, axis=1)
        tokens = self.patch(patches)  # [N, P, D]
        if hasattr(self, "pre_projection"):
            tokens = gelu(self.pre_projection(tokens))
        return self._place(tokens, positions, position_key), None

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Forward operations for one input of this shape; `train` counts DropToken."""
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
        """Axes of one input, without batch."""
        return len(self.patch_size) + bool(self.channels)


# Sizes shared by the towers: name → encoder options.
SIZES: dict[str, dict[str, Any]] = {
    # Shallow: unrolled it compiles as fast as a scan, and runs a third faster on CPUs.
    "tiny": dict(width=128, head_dim=32, mlp_dim=512, num_layers=4, num_heads=4, scan_unroll=0),
    "small": dict(width=384, mlp_dim=1536, num_layers=12, num_heads=6),
    "base": dict(width=768, mlp_dim=3072, num_layers=12, num_heads=12),
    "medium": dict(width=1024, mlp_dim=4096, num_layers=12, num_heads=16),
    "large": dict(width=1024, mlp_dim=4096, num_layers=24, num_heads=16),
    "xlarge": dict(width=1536, mlp_dim=4096, num_layers=24, num_heads=24),
}
