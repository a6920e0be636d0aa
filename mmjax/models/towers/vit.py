"""Towers for single images: `vit_*_patch16_224` for touch sensors, `image_vit_*` and `clip_vit_*`.

Sources: ViT (Dosovitskiy et al. 2021), as in timm and torchvision; for touch as in TVL (Fu et al.
2024, arXiv 2402.13232); `clip_*` as in CLIP (Radford et al. 2021) and OpenCLIP.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError, check_choice
from mmjax.models.blocks.initializers import fan_in_uniform
from mmjax.models.blocks.inputs import InputError
from mmjax.models.blocks.noise import check_rate, dropout, split_key
from mmjax.models.blocks.patches import SIZES, PatchEmbedding, extract_patches
from mmjax.models.blocks.positions import resize_grid
from mmjax.models.blocks.transformer import Encoder, EncoderConfig

Pool = Literal["class", "mean"]
_CHANNELS = 3


class ImageTransformer(nnx.Module):
    """Square images [N, image_size, image_size, 3] → patches and a class token → encoder → pooling.

    Pooling and the layers after it run in float32.

    Args:
      encoder: Options of the encoder. Its `kernel_init` also selects the other initializers.
      image_size: Height and width of an image.
      patch_size: Height and width of a patch; divides `image_size`.
      patch_bias: Whether the patch embedding has a bias.
      input_norm: Whether to normalize the tokens before the encoder (CLIP's ln_pre; parameters
        `pre_norm`).
      pool: 'class' (the class token) or 'mean' (of all other tokens).
      pool_norm: Whether to normalize the pooled features (timm's fc_norm).
      projection: Width of a dense layer on the pooled features; 0 for none.
      projection_bias: Whether this layer has a bias.
      drop_rate: Rate of dropout before it.
      rngs: Random number generators for initialization.

    Raises:
      UserError: Invalid options.
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
        pool: Pool = "class",
        pool_norm: bool = False,
        projection: int = 0,
        projection_bias: bool = True,
        drop_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        check_choice("pool", pool, get_args(Pool))
        if patch_size < 1 or image_size < 1 or image_size % patch_size:
            raise UserError(
                f"image_size must be a multiple of patch_size; got {image_size} and {patch_size}."
            )
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
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    def __call__(
        self, x: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes a batch.

        Args:
          x: float [N, image_size, image_size, 3], normalized as the weights require.
          key: Random key of dropout and stochastic depth; None disables both (evaluation).

        Returns:
          Pooled features, float32 [N, out_features], and the encoder's patch tokens,
          [N, num_patches, width], in row-major order.

        Raises:
          InputError: Images of another size.
        """
        self._check(x.shape[1:])
        encoder_key, head_key = split_key(key, 2)
        tokens = self._encode(x, key=encoder_key)
        patch_tokens = tokens[:, 1:]
        pooled = (
            tokens[:, 0] if self.pool == "class" else patch_tokens.mean(axis=1, dtype=jnp.float32)
        )
        pooled = pooled.astype(jnp.float32)
        if hasattr(self, "pool_norm"):
            pooled = self.pool_norm(pooled)
        if hasattr(self, "projection"):
            pooled = self.projection(dropout(pooled, self.drop_rate, head_key))
        return pooled, patch_tokens

    def feature_maps(self, x: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns {'grid': the encoder's patch tokens, [N, H/patch_size, W/patch_size, width]}.

        The position embeddings are resized to the grid of the images, as in timm.

        Args:
          x: float [N, H, W, 3], normalized as the weights require.
          train: Has no effect: dropout and stochastic depth are disabled.

        Raises:
          InputError: A side of the images is not a multiple of the patch size.
        """
        del train
        shape, patch = tuple(x.shape[1:]), self.patch_size
        if len(shape) != 3 or shape[2] != _CHANNELS or shape[0] % patch or shape[1] % patch:
            raise InputError(
                f"The tower expects RGB images with sides that are multiples of {patch} "
                f"(patch_size); got shape {shape}."
            )
        tokens = self._encode(x, key=None)[:, 1:]
        return {"grid": tokens.reshape(len(x), shape[0] // patch, shape[1] // patch, -1)}

    def _encode(self, x: jax.Array, *, key: jax.Array | None) -> jax.Array:
        """Returns the encoder's tokens of the class and the patches, [N, 1 + T, width]."""
        patches = extract_patches(x, (self.patch_size, self.patch_size))
        sizes = patches.shape[1:3]
        tokens = self.patch(patches.reshape(len(x), math.prod(sizes), -1))  # [N, T, D]
        class_token = jnp.broadcast_to(
            self.class_token[...].astype(tokens.dtype), (len(x), 1, self.cfg.width)
        )
        tokens = jnp.concatenate([class_token, tokens], axis=1)
        tokens = tokens + resize_grid(self.positions[...], sizes).astype(tokens.dtype)
        if hasattr(self, "pre_norm"):
            tokens = self.pre_norm(tokens)
        return self.encoder(tokens, key=key)

    def _check(self, shape: Sequence[int]) -> None:
        expected = (self.image_size, self.image_size, _CHANNELS)
        if tuple(shape) != expected:
            raise InputError(
                f"The tower expects images of shape {expected} (image_size); got {tuple(shape)}."
            )

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Returns the forward operations for one image of this shape."""
        del train  # tokens are never dropped
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
    """Returns the options of timm's ViT with this many heads of 64 features, as in TVL."""
    width = 64 * num_heads
    return dict(_TOUCH, width=width, num_heads=num_heads, mlp_dim=4 * width, num_layers=12)


# ViTs of timm and torchvision that were trained for classification, without the classifier.
IMAGE_CONFIGS: dict[str, dict[str, Any]] = {
    name: dict(
        kernel_init="timm",
        dropout_rate=0.0,
        width=64 * num_heads,
        num_heads=num_heads,
        mlp_dim=256 * num_heads,
        num_layers=num_layers,
        patch_size=16,
    )
    for name, num_heads, num_layers in (
        ("image_vit_s16", 6, 12),
        ("image_vit_b16", 12, 12),
        ("image_vit_l16", 16, 24),
    )
}
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
