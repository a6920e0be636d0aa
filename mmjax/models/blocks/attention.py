"""Softmax attention with an XLA and a cuDNN implementation."""

from __future__ import annotations

from typing import Any, Literal

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
      impl: 'xla', 'cudnn', or 'auto': cuDNN on GPUs in half precision without dropout, for heads
        that its kernel supports; else XLA.

    Returns:
      [B, T, H, K] in the dtype of `value`.

    Raises:
      UserError: `impl='cudnn'` where cuDNN cannot run.
    """
    has_dropout = dropout_key is not None and dropout_rate > 0
    if impl != "xla":
        obstacle = _cudnn_obstacle(query.dtype, query.shape[-1], has_dropout=has_dropout)
        if not obstacle:
            return _attend_cudnn(query, key, value, bias, mask, scale=scale, causal=causal)
        if impl == "cudnn":
            raise UserError(
                f"attention_impl='cudnn' {obstacle}, or set attention_impl='auto', which uses "
                "cuDNN where possible."
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


def _cudnn_obstacle(dtype: Any, head_dim: int, *, has_dropout: bool) -> str:
    """Returns why cuDNN attention cannot run on the devices of the mesh; '' if it can."""
    # The mesh knows its devices also if the program is compiled on a machine without them.
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    if has_dropout:
        return "has no dropout of attention weights. Set attention_dropout_rate=0"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return (
            f"computes in half precision; got dtype={jnp.dtype(dtype).name}. Set dtype='bfloat16'"
        )
    if head_dim % 8 or head_dim > 128:
        return f"needs a multiple of 8 up to 128 as head_dim; got {head_dim}. Change head_dim"
    if platform not in ("gpu", "cuda"):
        return f"needs NVIDIA GPUs; the devices are {platform!r}. Use GPUs"
    return ""


def _attend_cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    *,
    scale: float,
    causal: bool,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> jax.Array:
    """Returns the result of `attend` by `jax.nn.dot_product_attention`.

    The gradient of cuDNN's kernel needs even sequence lengths. Odd ones are padded with a token
    that no query attends to.
    """
    (batch_size, num_queries), num_keys = query.shape[:2], key.shape[1]
    odd = (num_queries % 2, num_keys % 2)
    lengths = None
    if any(odd):
        query = jnp.pad(query, ((0, 0), (0, odd[0]), (0, 0), (0, 0)))
        key, value = (jnp.pad(x, ((0, 0), (0, odd[1]), (0, 0), (0, 0))) for x in (key, value))
        lengths = jnp.full(batch_size, num_keys, jnp.int32)
    if bias is not None:
        bias = _pad_scores(bias, query.shape[1], key.shape[1]).astype(query.dtype)
    if mask is not None:
        mask = _pad_scores(mask, query.shape[1], key.shape[1])
    output = jax.nn.dot_product_attention(
        query,
        key,
        value,
        bias=bias,
        mask=mask,
        key_value_seq_lengths=lengths,
        is_causal=causal,
        scale=scale,
        implementation=implementation,
    )
    return output[:, :num_queries]


def _pad_scores(x: jax.Array, num_queries: int, num_keys: int) -> jax.Array:
    """Broadcasts and pads the last axes of an array that broadcasts to [B, H, T, S].

    Added queries and keys repeat the last ones.
    """
    widths = (0, 0), (0, 0), (0, num_queries - x.shape[2]), (0, num_keys - x.shape[3])
    return jnp.pad(x, widths, mode="edge")
