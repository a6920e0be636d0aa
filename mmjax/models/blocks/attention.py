"""Softmax attention, by XLA or by the kernel that fits the devices: cuDNN or Pallas."""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mmjax.errors import UserError
from mmjax.models.blocks.fused_attention import MASKED, MAX_KEYS, fused_attention
from mmjax.models.blocks.noise import dropout
from mmjax.sharding import AXES, BATCH_AXES

AttentionImpl = Literal["auto", "xla", "cudnn", "pallas"]
# With fewer keys, scores are small and XLA computes several heads at once.
_MIN_FUSED_KEYS = 128


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
      impl: 'xla'; 'cudnn' (NVIDIA GPUs; no dropout); 'pallas' (TPUs; no bias); or 'auto': the
        kernel that can compute this, else XLA.

    Returns:
      [B, T, H, K] in the dtype of `value`.

    Raises:
      UserError: `impl` is a kernel that cannot compute this.
    """
    has_dropout = dropout_key is not None and dropout_rate > 0
    kernel = _choose_kernel(
        impl, query, num_keys=key.shape[1], bias=bias, mask=mask, has_dropout=has_dropout
    )
    if kernel == "cudnn":
        return _attend_cudnn(query, key, value, bias, mask, scale=scale, causal=causal)
    if kernel == "pallas":
        if mask is not None:
            mask = jnp.broadcast_to(mask[:, 0, 0], key.shape[:2])
        return fused_attention(
            query,
            key,
            value,
            scale=scale,
            key_mask=mask,
            causal=causal,
            dropout_rate=dropout_rate,
            dropout_key=dropout_key,
        )
    scores = jnp.einsum("bthk,bshk->bhts", query, key, preferred_element_type=jnp.float32)
    scores = scores * scale
    if bias is not None:
        scores = scores + bias
    if causal:
        visible = np.tri(query.shape[1], key.shape[1], dtype=bool)
        mask = visible if mask is None else mask & visible
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    weights = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("bhts,bshk->bthk", weights, value)


def _choose_kernel(
    impl: AttentionImpl,
    query: jax.Array,
    *,
    num_keys: int,
    bias: jax.Array | None,
    mask: jax.Array | None,
    has_dropout: bool,
) -> str:
    """Returns 'cudnn', 'pallas' or 'xla'; see `attend`."""
    # The mesh knows its devices also if the program is compiled on a machine without them.
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    obstacles = {
        "cudnn": _cudnn_obstacle(platform, query.dtype, query.shape[-1], has_dropout=has_dropout),
        "pallas": _pallas_obstacle(platform, num_keys=num_keys, bias=bias, mask=mask),
    }
    if impl == "auto":
        able = [kernel for kernel, obstacle in obstacles.items() if not obstacle]
        return able[0] if able and (able[0] != "pallas" or num_keys >= _MIN_FUSED_KEYS) else "xla"
    if obstacle := obstacles.get(impl):
        raise UserError(
            f"attention_impl={impl!r} {obstacle}, or set attention_impl='auto', which uses a "
            "kernel where possible."
        )
    return impl


def _cudnn_obstacle(platform: str, dtype: Any, head_dim: int, *, has_dropout: bool) -> str:
    """Returns why cuDNN attention cannot run; '' if it can."""
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


def _pallas_obstacle(
    platform: str, *, num_keys: int, bias: jax.Array | None, mask: jax.Array | None
) -> str:
    """Returns why the Pallas kernel cannot run; '' if it can."""
    if bias is not None:
        return "has no position bias of scores. Set attention_impl='xla' for this tower"
    if mask is not None and mask.shape[1:3] != (1, 1):
        return f"takes masks of keys, not one of shape {mask.shape}. Set attention_impl='xla'"
    if num_keys > MAX_KEYS:
        return f"takes up to {MAX_KEYS} tokens; got {num_keys}. Use shorter inputs"
    if platform != "tpu":
        return f"needs TPUs; the devices are {platform!r}. Use TPUs"
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
    query, key, value = (_keep_sequences_whole(x) for x in (query, key, value))
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


def _keep_sequences_whole(x: jax.Array) -> jax.Array:
    """Shards [B, T, H, K] only over examples and heads if parameters are sharded.

    XLA may then divide other axes, or an axis by a part of a mesh axis, for which JAX's partitioner
    of the kernel fails.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not {*AXES} <= {*mesh.auto_axes} or mesh.shape["fsdp"] * mesh.shape["tensor"] == 1:
        return x
    batch = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    spec = PartitionSpec(
        BATCH_AXES if x.shape[0] % batch == 0 else None,
        None,
        "tensor" if x.shape[2] % mesh.shape["tensor"] == 0 else None,
    )
    return jax.lax.with_sharding_constraint(x, spec)


def _pad_scores(x: jax.Array, num_queries: int, num_keys: int) -> jax.Array:
    """Broadcasts and pads the last axes of an array that broadcasts to [B, H, T, S].

    Added queries and keys repeat the last ones.
    """
    widths = (0, 0), (0, 0), (0, num_queries - x.shape[2]), (0, num_keys - x.shape[3])
    return jnp.pad(x, widths, mode="edge")
