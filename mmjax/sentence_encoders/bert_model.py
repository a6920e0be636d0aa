"""BERT as a sentence encoder, for example MiniLM.

Sources: Devlin et al. 2019 (BERT), Reimers and Gurevych 2019 (Sentence-BERT: pooling).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import check_choice
from mmjax.models.blocks.transformer import Encoder, EncoderConfig

POOLINGS = ("mean", "cls")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """Options of a sentence encoder.

    Attributes:
      encoder: Options of the transformer. BERT normalizes after each block (`pre_norm=False`).
      vocab_size: Size of the token embedding.
      max_positions: Maximum number of tokens of a text.
      num_types: Number of token types; all tokens have the first.
      pooling: 'mean' of all tokens, or 'cls', the first token.
      normalize: Whether embeddings are divided by their length.
    """

    encoder: EncoderConfig
    vocab_size: int
    max_positions: int
    num_types: int = 2
    pooling: str = "mean"
    normalize: bool = True

    def __post_init__(self):
        check_choice("pooling", self.pooling, POOLINGS)


class BertModel(nnx.Module):
    """Sum of token, position and type embeddings → norm → post-norm encoder → pooling.

    Args:
      cfg: The options.
      rngs: Random number generators for initialization.
    """

    def __init__(self, cfg: BertConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        width, dtype = cfg.encoder.width, cfg.encoder.param_dtype
        init = nnx.initializers.normal(0.02)
        self.word_embedding = nnx.Param(init(rngs.params(), (cfg.vocab_size, width), dtype))
        self.positions = nnx.Param(init(rngs.params(), (cfg.max_positions, width), dtype))
        self.types = nnx.Param(init(rngs.params(), (cfg.num_types, width), dtype))
        self.embedding_norm = cfg.encoder.norm("layer", rngs=rngs)
        self.encoder = Encoder(cfg.encoder, rngs=rngs)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns the embeddings of texts.

        Args:
          ids: int [N, L], token ids with [CLS] and [SEP].
          mask: bool [N, L], False for padding. Each text has at least one token.

        Returns:
          float32 [N, width].
        """
        tokens = jnp.take(self.word_embedding[...], ids, axis=0)  # [N, L, width]
        offsets = self.positions[...][: ids.shape[1]] + self.types[...][0]
        tokens = self.embedding_norm(tokens + offsets)
        tokens = self.encoder(tokens, key_mask=mask).astype(jnp.float32)
        if self.cfg.pooling == "cls":
            pooled = tokens[:, 0]
        else:
            weight = mask[..., None].astype(jnp.float32)
            pooled = (tokens * weight).sum(axis=1) / weight.sum(axis=1)
        if self.cfg.normalize:
            length = jnp.linalg.norm(pooled, axis=-1, keepdims=True)
            pooled = pooled / jnp.maximum(length, 1e-12)
        return pooled
