"""Heads that predict one class per example from embeddings: `linear` and `mlp`.

Source: pyVTAB (Kotar et al. 2021, arXiv 2103.14005), sections 3.3 and A of the paper.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.decoders.base import EMBEDDING, Head, dense, join_images


class LinearHead(Head):
    """A dense layer on the embedding, or on the concatenated embeddings of several images.

    Args:
      num_outputs, embedding_dim, num_images, channels, rngs: See `Head`.
    """

    def __init__(
        self,
        *,
        num_outputs: int,
        embedding_dim: int,
        num_images: int = 1,
        channels: Mapping[str, int] | None = None,
        rngs: nnx.Rngs,
    ):
        del channels
        self.linear = dense(num_images * embedding_dim, num_outputs, rngs=rngs)

    def __call__(
        self,
        features: Mapping[str, jax.Array],
        *,
        size: tuple[int, int] | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns logits, float32 [B, num_outputs]; see `Head`."""
        del size, train
        return self.linear(join_images(features[EMBEDDING].astype(jnp.float32)))


class MultiEmbeddingHead(Head):
    """The concatenated embeddings of all images → dense → ReLU → dense.

    Args:
      num_outputs, embedding_dim, num_images, channels, rngs: See `Head`.
      hidden: Width of the hidden layer.

    Raises:
      UserError: `hidden` is less than 1.
    """

    def __init__(
        self,
        *,
        num_outputs: int,
        embedding_dim: int,
        num_images: int = 2,
        channels: Mapping[str, int] | None = None,
        hidden: int = 512,
        rngs: nnx.Rngs,
    ):
        del channels
        if hidden < 1:
            raise UserError(f"hidden must be at least 1; got {hidden}.")
        self.hidden = dense(num_images * embedding_dim, hidden, rngs=rngs)
        self.output = dense(hidden, num_outputs, rngs=rngs)

    def __call__(
        self,
        features: Mapping[str, jax.Array],
        *,
        size: tuple[int, int] | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Returns logits, float32 [B, num_outputs]; see `Head`."""
        del size, train
        x = join_images(features[EMBEDDING].astype(jnp.float32))
        return self.output(jax.nn.relu(self.hidden(x)))
