"""Text towers: `t5_*` and `bert_*` encoders over token embeddings, and a linear one.

Sources: T5 (Raffel et al. 2020) for relative positions and RMS norms; VATT (Akbari et al. 2021,
published code) for the AGG token in front, the projection of embeddings and the mixture of norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.errors import check_choice
from mmjax.lookups import rows
from mmjax.models.blocks.initializers import token_init
from mmjax.models.blocks.noise import dropout, split_key
from mmjax.models.blocks.patches import SIZES, TokenTransformer
from mmjax.models.blocks.transformer import (
    REMAT_POLICIES,
    Encoder,
    EncoderConfig,
    Remat,
    gelu,
)


def _uniform(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Returns values uniform in (-0.05, 0.05), Keras' default for embeddings."""
    return jax.random.uniform(key, shape, dtype, -0.05, 0.05)


def relative_buckets(length: int, *, num_buckets: int = 32, max_distance: int = 64) -> np.ndarray:
    """Returns T5's bidirectional buckets, int32 [length (query), length (key)].

    Half of the buckets are for keys at or before the query, half for keys after it. In each half,
    small distances have their own bucket, larger ones share buckets on a logarithmic scale, and all
    distances from `max_distance` share the last bucket.
    """
    relative = np.arange(length)[None, :] - np.arange(length)[:, None]  # key - query
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(relative)
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / math.log(
        max_distance / exact
    )
    far = np.minimum(exact + (ratio * (half - exact)).astype(np.int32), half - 1)
    return (np.where(distance < exact, distance, far) + half * (relative > 0)).astype(np.int32)


class T5Text(nnx.Module):
    """Token embeddings → AGG token in front → projection with GELU → T5 encoder.

    The token embedding is a parameter, `word_embedding`. VATT freezes it at word2vec vectors: list
    `text/word_embedding` in `config.optimizer.frozen`.

    Args:
      encoder: Options of the encoder.
      vocab_size: Size of the token embedding; id 0 is padding.
      embedding_dim: Width of the token embedding.
      num_buckets: Number of relative position buckets.
      max_distance: Distance from which all positions share the last bucket.
      rngs: Random number generators for initialization.
    """

    input_ndim = 1

    def __init__(
        self,
        *,
        encoder: EncoderConfig,
        vocab_size: int = 65536,
        embedding_dim: int = 300,
        num_buckets: int = 32,
        max_distance: int = 64,
        rngs: nnx.Rngs,
    ):
        self.cfg = encoder
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.out_features = encoder.width
        dtype = encoder.param_dtype
        self.word_embedding = nnx.Param(_uniform(rngs.params(), (vocab_size, embedding_dim), dtype))
        self.agg_token = nnx.Param(
            token_init(embedding_dim)(rngs.params(), (embedding_dim,), dtype)
        )
        self.pre_projection = encoder.linear(
            embedding_dim, encoder.width, use_bias=False, rngs=rngs
        )
        self.relative_bias = nnx.Param(
            _uniform(rngs.params(), (num_buckets, encoder.num_heads), dtype)
        )
        self.encoder = Encoder(encoder, rngs=rngs)

    def __call__(
        self, ids: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes a batch.

        Args:
          ids: int [N, W]; 0 is padding.
          key: Random key of dropout; None disables it (evaluation).

        Returns:
          The AGG token, float32 [N, width], and all other tokens, [N, W, width].
        """
        cfg = self.cfg
        input_key, encoder_key = split_key(key, 2)
        embedded = rows(self.word_embedding, ids).astype(cfg.dtype)  # [N, W, E]
        agg = jnp.broadcast_to(
            self.agg_token[...].astype(cfg.dtype), (len(ids), 1, embedded.shape[-1])
        )
        key_mask = _with_agg(ids != 0)
        tokens = gelu(self.pre_projection(jnp.concatenate([agg, embedded], axis=1)))
        tokens = dropout(tokens, cfg.dropout_rate, input_key)
        buckets = relative_buckets(
            tokens.shape[1], num_buckets=self.num_buckets, max_distance=self.max_distance
        )
        bias = rows(self.relative_bias, buckets, dtype=jnp.float32)
        bias = bias.transpose(2, 0, 1)[None]  # [1, heads, W + 1, W + 1]
        tokens = self.encoder(tokens, bias=bias, key_mask=key_mask, key=encoder_key)
        return tokens[:, 0].astype(jnp.float32), tokens[:, 1:]

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Returns the forward operations for ids of this shape, (W,)."""
        del train  # tokens are never dropped
        num_tokens = shape[0] + 1
        projection = 2.0 * num_tokens * self.agg_token.shape[0] * self.cfg.width
        return projection + self.cfg.flops(num_tokens)


class BertText(TokenTransformer):
    """Token embeddings → projection with GELU + positions → AGG token in front → encoder.

    VATT freezes `word_embedding`, as in `T5Text`.

    Args:
      encoder: Options of the encoder.
      vocab_size: Size of the token embedding; id 0 is padding.
      embedding_dim: Width of the token embedding.
      buckets: Size of the position table, which is resampled for texts of another length.
      projection_bias: Whether the projection of the embeddings has a bias, as in VATT's unified
        model.
      outer_agg: Whether to put a second learned token in front of the embeddings, in addition to
        the one that is pooled. VATT's published bert_small inherits it from T5's options.
      rngs: Random number generators for initialization.
      **options: Arguments of `TokenTransformer`.
    """

    input_ndim = 1

    def __init__(
        self,
        *,
        encoder: EncoderConfig,
        vocab_size: int = 65536,
        embedding_dim: int = 300,
        buckets: int = 16,
        projection_bias: bool = False,
        outer_agg: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        dtype = encoder.param_dtype
        self.word_embedding = nnx.Param(_uniform(rngs.params(), (vocab_size, embedding_dim), dtype))
        if outer_agg:
            self.outer_agg_token = nnx.Param(
                token_init(embedding_dim)(rngs.params(), (embedding_dim,), dtype)
            )
        self.pre_projection = encoder.linear(
            embedding_dim, encoder.width, use_bias=projection_bias, rngs=rngs
        )
        super().__init__(encoder=encoder, axes={"temporal": buckets}, rngs=rngs, **options)

    def embed(self, x: jax.Array, *, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Returns tokens [N, 1 + W, width] and their mask.

        Args:
          x: Token ids, int [N, W]; 0 is padding.
          key: Random key of dropout; None disables it.
        """
        embedded = rows(self.word_embedding, x).astype(self.cfg.dtype)  # [N, W, E]
        mask = x != 0
        if hasattr(self, "outer_agg_token"):
            outer = self.outer_agg_token[...].astype(embedded.dtype)
            outer = jnp.broadcast_to(outer, (len(x), 1, embedded.shape[-1]))
            embedded = jnp.concatenate([outer, embedded], axis=1)
            mask = _with_agg(mask)
        tokens = gelu(self.pre_projection(embedded))
        tokens = self._add_positions(tokens, self.positions(tokens.shape[1:2]), key)
        return tokens, _with_agg(mask)

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Returns the forward operations for ids of this shape, (W,)."""
        del train  # tokens are never dropped
        num_tokens = shape[0] + hasattr(self, "outer_agg_token")
        embedding_dim = self.word_embedding.shape[1]
        projection = 2.0 * num_tokens * embedding_dim * self.cfg.width
        return projection + self._encoder_flops(num_tokens)


def _with_agg(mask: jax.Array) -> jax.Array:
    """Returns a mask of tokens [N, W] with True in front for the AGG token."""
    return jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)


class LinearText(nnx.Module):
    """Token embeddings → one dense layer with ReLU → maximum over tokens.

    Args:
      width: Width of the output.
      vocab_size: Size of the token embedding; id 0 is padding.
      embedding_dim: Width of the token embedding.
      pool_padding: Whether the maximum includes padding, as in VATT's published code.
      dtype: Dtype of computation.
      param_dtype: Dtype of parameters.
      remat: What the backward pass recomputes; see `EncoderConfig`.
      rngs: Random number generators for initialization.
    """

    input_ndim = 1

    def __init__(
        self,
        *,
        width: int = 2048,
        vocab_size: int = 65536,
        embedding_dim: int = 300,
        pool_padding: bool = False,
        dtype: Any = "float32",
        param_dtype: Any = "float32",
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ):
        check_choice("remat", remat, REMAT_POLICIES)
        self.pool_padding = pool_padding
        self.remat = remat
        self.out_features = width
        self.word_embedding = nnx.Param(
            _uniform(rngs.params(), (vocab_size, embedding_dim), param_dtype)
        )
        self.projection = nnx.Linear(
            embedding_dim,
            width,
            kernel_init=nnx.initializers.glorot_uniform(),
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def __call__(
        self, ids: jax.Array, *, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Encodes a batch.

        Args:
          ids: int [N, W]; 0 is padding.
          key: Ignored; nothing is random.

        Returns:
          Pooled features, float32 [N, width], and the tokens, [N, W, width].
        """
        del key

        def project(layer, x):
            return jax.nn.relu(layer(x))

        if self.remat != "none":
            project = jax.checkpoint(project, policy=REMAT_POLICIES[self.remat])
        tokens = project(self.projection, rows(self.word_embedding, ids))
        pooled = tokens if self.pool_padding else jnp.where((ids != 0)[..., None], tokens, 0)
        return pooled.max(axis=1).astype(jnp.float32), tokens

    def flops(self, shape: Sequence[int], *, train: bool = False) -> float:
        """Returns the forward operations for ids of this shape, (W,)."""
        del train
        return 2.0 * shape[0] * self.projection.in_features * self.out_features


_T5 = dict(
    use_bias=False,
    attention_norm="rms",
    mlp_norm="layer",
    final_norm="rms",
    scale_attention=False,
)
T5_CONFIGS: dict[str, dict[str, Any]] = {
    "t5_tiny": dict(_T5, **{**SIZES["tiny"], "num_layers": 2}, vocab_size=2048, embedding_dim=128),
    "t5_small": dict(_T5, width=512, mlp_dim=2048, num_layers=6, num_heads=8),
    "t5_base": dict(_T5, **SIZES["base"]),
}
# VATT's published bert_small has T5's options by mistake: outer_agg=True, pre_norm=False.
BERT_CONFIGS: dict[str, dict[str, Any]] = {
    "bert_tiny": dict(**SIZES["tiny"], vocab_size=2048, embedding_dim=128),
    "bert_small": dict(width=512, mlp_dim=2048, num_layers=6, num_heads=8),
    "bert_base": dict(**SIZES["base"]),
}
LINEAR_CONFIGS: dict[str, dict[str, Any]] = {"linear": {}}
