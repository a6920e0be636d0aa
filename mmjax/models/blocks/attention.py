"""Softmax attention, by XLA or cuDNN."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.errors import UserError
from mmjax.models.blocks.noise import dropout

ATTENTION_IMPLS = ("auto", "xla", "cudnn")


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
    impl: str = "auto",
) -> jax.Array:
    """Softmax attention; scores and softmax in float32.

    Args:
      query: [B, T, H, K].
      key: [B, S, H, K].
      value: [B, S, H, K].
      scale: factor of the scores.
      bias: added to the scaled scores; broadcasts to [B, H, T, S].
      mask: True where a key may be seen; broadcasts to [B, H, T, S].
      causal: a query sees no keys behind it, besides what `mask` says.
      dropout_rate: on attention weights, when `dropout_key` is given.
      dropout_key: randomness of that dropout.
      impl: 'xla', 'cudnn' or 'auto'.

    Returns:
      [B, T, H, K] in the dtype of `value`.
    """
    drops = dropout_key is not None and dropout_rate > 0
    if impl == "auto":
        half = query.dtype in (jnp.bfloat16, jnp.float16)
        fits = query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
        impl = "cudnn" if jax.default_backend() == "gpu" and half and fits and not drops else "xla"
    if impl == "cudnn":
        if drops:
            raise UserError(
                "attention_impl='cudnn' has no dropout on attention weights: "
                "set attention_dropout_rate=0."
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
        seen = np.tri(query.shape[1], key.shape[1], dtype=bool)
        mask = seen if mask is None else mask & seen
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("bhts,bshk->bthk", weights, value)
