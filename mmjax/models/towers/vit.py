"""Towers over single images, `vit_*_patch16_224` of touch sensors and `clip_vit_*` of cameras.

Sources: ViT (Dosovitskiy et al. 2021) as in the library timm for touch (TVL: Fu et al. 2024, arXiv
2402.13232), as in CLIP (Radford et al. 2021) and OpenCLIP for images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError, choose
from mmjax.models.blocks.initializers import fan_in_uniform
from mmjax.models.blocks.noise import check_rate, dropout, split_key
from mmjax.models.blocks.patches import SIZES, PatchEmbedding, extract_patches
from mmjax.models.blocks.transformer import Encoder, EncoderConfig

POOLS = ("class", "mean")
_CHANNELS = 3


class ImageTransformer(nnx.Module):
    """Square images [N, image_size, image_size, 3] → patches, a class token, one encoder.

    The tower computes pooling and what follows it in float32.

    Args:
      encoder: options of the encoder. Its `kernel_init` also says how the rest starts.
      image_size: rows and columns of an image.
      patch_size: rows and columns of a patch; divides `image_size`.
      patch_bias: give the embedding of patches a bias.
      input_norm: normalize the tokens before the encoder (CLIP's ln_pre; parameters `pre_norm`).
      pool: 'class' (the class token) or 'mean' (of all others).
      pool_norm: normalize the pooled features (timm's fc_norm).
      projection: width of a dense layer on the pooled features; 0 for none.
      projection_bias: give it a bias.
      drop_rate: of dropout before it.
      rngs: for initialization.
    """

    input_ndim = 3

    def __init__(
        self,
        *,
        encoder: EncoderConfig,
        image_size: int = 224,
        patch_size: int = 16,
        patch_bias: bool = True,
        input_norm: bool = False,
        pool: str = "class",
        pool_norm: bool = False,
        projection: int = 0,
        projection_bias: bool = True,
        drop_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        choose("pool", pool, dict.fromkeys(POOLS))
        if patch_size < 1 or image_size < 1 or image_size % patch_size:
            raise UserError(f"image_size={image_size} is no multiple of patch_size={patch_size}.")
        check_rate("drop_rate", drop_rate)
        width, dtype = encoder.width, encoder.param_dtype
        self.cfg = encoder
        self.image_size = image_size
        self.patch_size = patch_size
        self.pool = pool
        self.drop_rate = drop_rate
        self.out_features = projection or width
        uniform = fan_in_uniform(patch_size * patch_size * _CHANNELS)
        self.patch = PatchEmbedding(
            encoder,
            patch_size=(patch_size, patch_size),
            channels=_CHANNELS,
            use_bias=patch_bias,
            kernel_init=uniform,
            bias_init=uniform,
            rngs=rngs,
        )
        clip = encoder.kernel_init == "clip"
        class_init = nnx.initializers.normal(width**-0.5 if clip else 1e-6)
        position_init = nnx.initializers.normal(width**-0.5 if clip else 0.02)
        self.class_token = nnx.Param(class_init(rngs.params(), (width,), dtype))
        self.positions = nnx.Param(
            position_init(rngs.params(), (1 + self.num_patches, width), dtype)
        )
        if input_norm:
            self.pre_norm = encoder.norm("layer", rngs=rngs)
        self.encoder = Encoder(encoder, rngs=rngs)
        exact = dataclasses.replace(encoder, dtype="float32")
        if pool_norm:
            self.pool_norm = exact.norm("layer", rngs=rngs)
        if projection:
            self.projection = exact.linear(width, projection, use_bias=projection_bias, rngs=rngs)

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes a batch.

        Args:
          x: float [N, image_size, image_size, 3], normalized as the weights want it.
          key: randomness of dropout and stochastic depth; None turns both off (evaluation).

        Returns:
          Pooled features, float32 [N, out_features], and the tokens of the patches as they leave
          the encoder, [N, num_patches, width], rows of the image outermost.

        Raises:
          UserError: images of another size.
        """
        self._check(x.shape[1:])
        encoder_key, head_key = split_key(key, 2)
        patches = extract_patches(x, (self.patch_size, self.patch_size))
        tokens = self.patch(patches.reshape(len(x), self.num_patches, -1))  # [N, T, D]
        first = jnp.broadcast_to(
            self.class_token[...].astype(tokens.dtype), (len(x), 1, self.cfg.width)
        )
        tokens = jnp.concatenate([first, tokens], axis=1)
        tokens = tokens + self.positions[...].astype(tokens.dtype)
        if hasattr(self, "pre_norm"):
            tokens = self.pre_norm(tokens)
        tokens = self.encoder(tokens, key=encoder_key)
        rest = tokens[:, 1:]
        pooled = tokens[:, 0] if self.pool == "class" else rest.mean(axis=1, dtype=jnp.float32)
        pooled = pooled.astype(jnp.float32)
        if hasattr(self, "pool_norm"):
            pooled = self.pool_norm(pooled)
        if hasattr(self, "projection"):
            pooled = self.projection(dropout(pooled, self.drop_rate, head_key))
        return pooled, rest

    def _check(self, shape: Sequence[int]) -> None:
        expected = (self.image_size, self.image_size, _CHANNELS)
        if tuple(shape) != expected:
            raise UserError(
                f"An image of shape {tuple(shape)} came to a tower for {expected}; change the "
                "size of the images (data.….size) or image_size (model.…)."
            )

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Forward operations for one image of this shape."""
        del train  # no token is dropped
        self._check(shape)
        patch = self.patch_size * self.patch_size * _CHANNELS
        total = 2.0 * self.num_patches * patch * self.cfg.width
        total += self.cfg.flops(1 + self.num_patches)
        if hasattr(self, "projection"):
            total += 2.0 * self.cfg.width * self.out_features
        return total


_TOUCH: dict[str, Any] = dict(
    pool="mean",
    pool_norm=True,
    final_norm="none",
    projection=768,
    kernel_init="timm",
    dropout_rate=0.0,
)


def _timm(num_heads: int) -> dict[str, Any]:
    """Options of timm's ViT of this many heads of 64 features, as TVL's touch encoder."""
    width = 64 * num_heads
    return dict(_TOUCH, width=width, num_heads=num_heads, mlp_dim=4 * width, num_layers=12)


TOUCH_CONFIGS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": _timm(3),
    "vit_small_patch16_224": _timm(6),
    "vit_base_patch16_224": _timm(12),
    "touch_tiny": dict(_TOUCH, **SIZES["tiny"], image_size=32, patch_size=8, projection=128),
}
_CLIP: dict[str, Any] = dict(
    patch_bias=False,
    input_norm=True,
    projection_bias=False,
    epsilon=1e-5,
    kernel_init="clip",
    dropout_rate=0.0,
)
CLIP_CONFIGS: dict[str, dict[str, Any]] = {
    "clip_vit_l14": dict(_CLIP, **SIZES["large"], patch_size=14, projection=768),
    "clip_vit_b16": dict(_CLIP, **SIZES["base"], patch_size=16, projection=512),
    "clip_vit_b32": dict(_CLIP, **SIZES["base"], patch_size=32, projection=512),
    "clip_vit_tiny": dict(_CLIP, **SIZES["tiny"], image_size=32, patch_size=8, projection=128),
}
