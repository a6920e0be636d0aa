"""CLIP's text towers, `clip_text_*`. Its image towers are in `mmjax.models.towers.vit`.

Sources: CLIP (Radford et al. 2021), sizes as in its published code and in OpenCLIP; `tiny` is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.lookups import rows
from mmjax.models.blocks.inputs import InputError
from mmjax.models.blocks.patches import SIZES
from mmjax.models.blocks.transformer import Encoder, EncoderConfig


class ClipText(nnx.Module):
    """Token ids + positions → causal encoder → token at the end of the text → projection.

    The end of the text is its last id that is not 0. Padding ids after it are 0; causal attention
    hides them from all earlier tokens. Texts of only zeros are pooled at their first id.

    Args:
      encoder: Options of the encoder.
      vocab_size: Size of the token embedding.
      context_length: Size of the position table: the maximum number of ids of a text.
      projection: Width of a dense layer on the pooled features; 0 for none.
      rngs: Random number generators for initialization.
    """

    input_ndim = 1

    def __init__(
        self,
        *,
        encoder: EncoderConfig,
        vocab_size: int = 49408,
        context_length: int = 77,
        projection: int = 512,
        rngs: nnx.Rngs,
    ):
        width, dtype = encoder.width, encoder.param_dtype
        self.cfg = encoder
        self.out_features = projection or width
        token_init, position_init = nnx.initializers.normal(0.02), nnx.initializers.normal(0.01)
        self.token_embedding = nnx.Param(token_init(rngs.params(), (vocab_size, width), dtype))
        self.positions = nnx.Param(position_init(rngs.params(), (context_length, width), dtype))
        self.encoder = Encoder(encoder, rngs=rngs)
        if projection:
            exact = dataclasses.replace(encoder, dtype="float32")
            self.projection = exact.linear(width, projection, use_bias=False, rngs=rngs)

    def __call__(
        self, ids: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes a batch.

        Args:
          ids: int [N, W]: start token, text, end token, then zeros.
          key: Random key of dropout; None disables it (evaluation).

        Returns:
          Pooled features, float32 [N, out_features], and the encoder's tokens, [N, W, width].

        Raises:
          InputError: More ids than positions.
        """
        self._check(ids.shape[1:])
        length = ids.shape[1]
        tokens = rows(self.token_embedding, ids).astype(self.cfg.dtype)
        tokens = tokens + self.positions[:length].astype(tokens.dtype)
        tokens = self.encoder(tokens, causal=True, key=key)
        end = jnp.max(jnp.where(ids != 0, jnp.arange(length), 0), axis=1)
        pooled = jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0].astype(jnp.float32)
        return self.projection(pooled) if hasattr(self, "projection") else pooled, tokens

    def _check(self, shape: Sequence[int]) -> None:
        if shape[0] > len(self.positions):
            raise InputError(
                f"The tower accepts texts of at most {len(self.positions)} ids (context_length); "
                f"got {shape[0]} (config.data.text.max_tokens)."
            )

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Returns the forward operations for ids of this shape, (W,), without causal savings."""
        del train  # tokens are never dropped
        self._check(shape)
        total = self.cfg.flops(shape[0])
        if hasattr(self, "projection"):
            total += 2.0 * self.cfg.width * self.out_features
        return total


_TEXT: dict[str, Any] = dict(epsilon=1e-5, kernel_init="clip", dropout_rate=0.0)
CONFIGS: dict[str, dict[str, Any]] = {
    "clip_text_l14": dict(_TEXT, **SIZES["base"], projection=768),
    "clip_text_b": dict(_TEXT, width=512, mlp_dim=2048, num_layers=12, num_heads=8, projection=512),
    "clip_text_tiny": dict(
        _TEXT, **SIZES["tiny"], vocab_size=2048, context_length=32, projection=128
    ),
}
