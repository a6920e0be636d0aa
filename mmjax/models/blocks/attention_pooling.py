"""Attention pooling of image tokens, conditioned on a text: the block of FLAIR.

Source: Xiao et al. 2024, FLAIR: VLM with Fine-grained Language-informed Image Representations,
arXiv 2412.03561, section 3; details as in its published code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mmjax.errors import UserError
from mmjax.models.blocks.initializers import fan_in_uniform

_EPSILON = 1e-5  # of LayerNorm


class TextConditionedPooling(nnx.Module):
    """Multi-head attention of queries, for example text embeddings, over image tokens.

    Queries, keys and values have separate LayerNorms. A key and a value of zeros follow the
    projected tokens, so that a query may attend to none of them. There is no residual connection
    and no norm at the end. All linear layers have biases.

    Args:
      width: Features of queries, tokens and outputs.
      num_heads: Number of attention heads, a divisor of `width`.
      dtype: Dtype of computation; norms and softmax use float32.
      param_dtype: Dtype of parameters.
      rngs: Random number generators for initialization, which is that of PyTorch's
        `MultiheadAttention`.

    Raises:
      UserError: `width` is not divisible by `num_heads`.
    """

    def __init__(
        self,
        *,
        width: int = 512,
        num_heads: int = 8,
        dtype: Any = "float32",
        param_dtype: Any = "float32",
        rngs: nnx.Rngs,
    ):
        if width < 1 or num_heads < 1 or width % num_heads:
            raise UserError(
                f"The width of an attention pooling must be a multiple of its heads (num_heads); "
                f"got width={width} and num_heads={num_heads}."
            )
        self.width, self.num_heads, self.dtype = width, num_heads, dtype

        def linear(init: Callable[..., jax.Array]) -> nnx.Linear:
            options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            return nnx.Linear(width, width, kernel_init=init, **options)

        # PyTorch samples the three input projections as one matrix [3 · width, width].
        packed = nnx.initializers.variance_scaling(0.5, "fan_in", "uniform")
        for name in ("query", "key", "value"):
            norm = nnx.LayerNorm(
                width,
                epsilon=_EPSILON,
                use_fast_variance=False,
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            setattr(self, f"{name}_norm", norm)
            setattr(self, name, linear(packed))
        self.out = linear(fan_in_uniform(width))

    def __call__(self, queries: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Pools the tokens once for each query.

        Axes before the last two broadcast: queries [T, D] and tokens [B, N, D] give [B, T, D].

        Args:
          queries: [..., Q, D].
          tokens: [..., N, D].

        Returns:
          Pooled tokens [..., Q, D] in the compute dtype, and attention weights, float32
          [..., heads, Q, N + 1]. The last column belongs to the key of zeros, so the others add up
          to less than 1.
        """
        return self.attend(queries, *self.keys_values(tokens))

    def keys_values(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the projected keys and values, both [..., N, D], of tokens [..., N, D].

        Use this with `attend` to project tokens once that several queries share.
        """
        return self.key(self.key_norm(tokens)), self.value(self.value_norm(tokens))

    def attend(
        self, queries: jax.Array, keys: jax.Array, values: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Pools tokens from their `keys_values`; otherwise like `__call__`."""
        query, key, value = map(
            self._split_heads, (self.query(self.query_norm(queries)), keys, values)
        )
        scores = jnp.einsum("...qhd,...nhd->...hqn", query, key, preferred_element_type=jnp.float32)
        scores = scores * (self.width // self.num_heads) ** -0.5
        scores = jnp.pad(scores, [(0, 0)] * (scores.ndim - 1) + [(0, 1)])  # the key of zeros
        weights = jax.nn.softmax(scores, axis=-1)
        attended = weights[..., :-1].astype(value.dtype)
        pooled = jnp.einsum("...hqn,...nhd->...qhd", attended, value)
        return self.out(pooled.reshape(*pooled.shape[:-2], self.width)), weights

    def _split_heads(self, x: jax.Array) -> jax.Array:  # [..., N, D] -> [..., N, heads, head_dim]
        return x.reshape(*x.shape[:-1], self.num_heads, -1)
