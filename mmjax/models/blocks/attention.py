"""Softmax attention with an XLA and a cuDNN implementation."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.models.blocks.noise import dropout

AttentionImpl = Literal["auto", "xla", "cudnn"]


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    scale: float,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    impl: AttentionImpl = "auto",
) -> jax.Array:
    """Returns softmax attention; scores and softmax are computed in float32.

    Args:
      query: [B, T, H, K].
      key: [B, S, H, K].
      value: [B, S, H, K].
      scale: Factor of the scores.
      bias: Added to the scaled scores; broadcasts to [B, H, T, S].
      mask: True where a query may attend to a key; broadcasts to [B, H, T, S].
      causal: Whether query t attends only to keys 0 to t, in addition to `mask`.
      dropout_rate: Dropout rate of attention weights if `dropout_key` is not None.
      dropout_key: Random key of that dropout.
      impl: 'xla', 'cudnn', or 'auto': cuDNN on GPUs in half precision without dropout, else XLA.

    Returns:
      [B, T, H, K] in the dtype of `value`.

    Raises:
      UserError: `impl='cudnn'` with dropout.
    """
    has_dropout = dropout_key is not None and dropout_rate > 0
    if impl == "auto":
        half = query.dtype in (jnp.bfloat16, jnp.float16)
        fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
        impl = (
            "cudnn"
            if jax.default_backend() == "gpu" and half and fits and not has_dropout
            else "xla"
        )
    if impl == "cudnn":
        if has_dropout:
            raise UserError(
                "attention_impl='cudnn' does not support dropout of attention weights. Set "
                "attention_dropout_rate=0, or attention_impl='auto'."
            )
        if bias is not None:
            bias = bias.astype(query.dtype)
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            bias=bias,
            mask=mask,
            is_causal=causal,
            scale=scale,
            implementation="cudnn",
        )
    scores = jnp.einsum("bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32)
    scores = scores * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        visible = np.tri(query.shape[1], key.shape[1], dtype=bool)
        mask = visible if mask is None else mask & visible
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("bhts,bshk->bthk", weights, value)
