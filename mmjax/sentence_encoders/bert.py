"""BERT as a sentence encoder: MiniLM and its like, for embeddings of captions.

Sources: Devlin et al. 2019 (BERT), Reimers and Gurevych 2019 (Sentence-BERT: the pooling).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import unknown
from mmjax.models.blocks.transformer import Encoder, EncoderConfig

POOLINGS = ("mean", "cls")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceConfig:
    """Options of a sentence encoder.

    Attributes:
      encoder: of the transformer; BERT's normalizes after each part (`pre_norm=False`).
      vocab_size: rows of the table of pieces.
      max_positions: rows of the table of positions: the longest text.
      num_types: rows of the table of token types; all tokens are of the first.
      pooling: 'mean' of the tokens that are there, or 'cls': the first one.
      normalize: divide embeddings by their length.
    """

    encoder: EncoderConfig
    vocab_size: int
    max_positions: int
    num_types: int = 2
    pooling: str = "mean"
    normalize: bool = True

    def __post_init__(self):
        if self.pooling not in POOLINGS:
            raise unknown("pooling", self.pooling, POOLINGS)


class SentenceEncoder(nnx.Module):
    """Pieces + positions + type → norm → post-norm encoder → one embedding.

    Args:
      cfg: the options.
      rngs: for initialization.
    """

    def __init__(self, cfg: SentenceConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        width, dtype = cfg.encoder.width, cfg.encoder.param_dtype
        table = nnx.initializers.normal(0.02)
        self.word_embedding = nnx.Param(table(rngs.params(), (cfg.vocab_size, width), dtype))
        self.positions = nnx.Param(table(rngs.params(), (cfg.max_positions, width), dtype))
        self.types = nnx.Param(table(rngs.params(), (cfg.num_types, width), dtype))
        self.embedding_norm = cfg.encoder.norm("layer", rngs=rngs)
        self.encoder = Encoder(cfg.encoder, rngs=rngs)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Embeds texts.

        Args:
          ids: int [N, L], numbers of pieces, [CLS] and [SEP] among them.
          mask: bool [N, L], False for padding; each text has at least one token.

        Returns:
          float32 [N, width].
        """
        words = jnp.take(self.word_embedding[...], ids, axis=0)  # [N, L, width]
        places = self.positions[...][: ids.shape[1]] + self.types[...][0]
        tokens = self.embedding_norm(words + places)
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
