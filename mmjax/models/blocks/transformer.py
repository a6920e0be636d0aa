"""The transformer encoder of all transformer towers: attention, feed-forward, stacked blocks.

Sources: Vaswani et al. 2017. The default is VATT's (Akbari et al. 2021, published code): pre-norm,
exact GELU and its positions of dropout. Options give the variants of T5 (RMS norms, unscaled
attention, position bias) and CLIP (causal attention, quick GELU; Radford et al. 2021), and
stochastic depth (Huang et al. 2016).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.errors import UserError, check_choice, unknown
from mmjax.models.blocks.attention import AttentionImpl, attend
from mmjax.models.blocks.initializers import glorot_uniform
from mmjax.models.blocks.noise import check_rate, drop_path, dropout, split_key

Norm = Literal["layer", "rms"]
Remat = Literal["none", "full", "dots"]
# `jax.checkpoint` policies by the option `remat`; 'none' does not use `jax.checkpoint`.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def check_dtypes(options: Any) -> None:
    """Raises UserError unless `dtype` and `param_dtype` of a tower's options are dtypes."""
    for name in ("dtype", "param_dtype"):
        try:
            jnp.dtype(getattr(options, name))
        except TypeError:
            valid = ("float32", "bfloat16", "float16")
            raise unknown(name, getattr(options, name), valid) from None


def check_literals(options: Any) -> None:
    """Raises UserError unless all fields with a `Literal` annotation have one of its values."""
    for name, hint in get_type_hints(type(options)).items():
        if get_origin(hint) is Literal:
            check_choice(name, getattr(options, name), get_args(hint))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Options of an encoder.

    Attributes:
      num_layers: Number of blocks.
      width: Features of a token.
      num_heads: Number of attention heads.
      head_dim: Features of a head; num_heads · head_dim may differ from `width`.
      mlp_dim: Hidden units of the feed-forward layers.
      activation: 'relu', 'gelu' (exact), 'quick_gelu' (x · sigmoid(1.702 x), as in OpenAI's CLIP),
        'swish', or 'geglu' (gated GELU).
      use_bias: Whether attention and feed-forward layers have biases.
      pre_norm: Whether to normalize before each residual branch and once at the end. False
        normalizes after each residual sum.
      attention_norm: 'layer' (LayerNorm) or 'rms' (RMSNorm) of the attention branch.
      mlp_norm: The same for the feed-forward branch.
      final_norm: The same for the end, or 'none'.
      epsilon: Epsilon of the norms.
      scale_attention: Whether to divide attention scores by sqrt(head_dim); T5 does not.
      dropout_rate: Dropout rate of tokens and hidden units.
      attention_dropout_rate: Dropout rate of attention weights; None uses `dropout_rate`. cuDNN
        attention requires 0.
      drop_path_rate: Rate of stochastic depth in the last layer, 0 in the first, linear in between.
      kernel_init: Initializer of dense layers: 'glorot' (uniform), 'timm' (normal, std 0.02), or
        'clip' (normal; the std depends on width, and in residual branches also on depth).
      attention_impl: 'xla', 'cudnn', or 'auto'; see `attend`.
      dtype: Dtype of computation; norms and softmax always use float32.
      param_dtype: Dtype of parameters.
      remat: What the backward pass recomputes: 'none', 'full' (everything but the input of each
        layer), or 'dots' (everything but the results of matrix products with parameters).
      scan_unroll: Layers per iteration of the scan over depth. Larger values compile longer and run
        slightly faster; 0 unrolls all layers.
    """

    num_layers: int
    width: int
    num_heads: int
    head_dim: int = 64
    mlp_dim: int
    activation: Literal["relu", "gelu", "quick_gelu", "swish", "geglu"] = "gelu"
    use_bias: bool = True
    pre_norm: bool = True
    attention_norm: Norm = "layer"
    mlp_norm: Norm = "layer"
    final_norm: Literal[Norm, "none"] = "layer"
    epsilon: float = 1e-6
    scale_attention: bool = True
    dropout_rate: float = 0.1
    attention_dropout_rate: float | None = None
    drop_path_rate: float = 0.0
    kernel_init: Literal["glorot", "timm", "clip"] = "glorot"
    attention_impl: AttentionImpl = "auto"
    dtype: Any = "float32"
    param_dtype: Any = "float32"
    remat: Remat = "none"
    scan_unroll: int = 1

    def __post_init__(self):
        check_literals(self)
        check_dtypes(self)
        for name in ("num_layers", "width", "num_heads", "head_dim", "mlp_dim"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name} must be at least 1; got {value}.")
        for name in ("dropout_rate", "attention_dropout_rate", "drop_path_rate"):
            check_rate(name, getattr(self, name) or 0)

    def linear(
        self,
        fan_in: int,
        fan_out: int,
        *,
        use_bias: bool,
        clip_std: float | None = None,
        rngs: nnx.Rngs,
    ) -> nnx.Linear:
        """Returns a dense layer with this encoder's dtypes and initializer.

        Args:
          fan_in: Input features.
          fan_out: Output features.
          use_bias: Whether the layer has a bias.
          clip_std: Std of the kernel if `kernel_init` is 'clip'; None uses width^-1/2.
          rngs: Random number generators for initialization.
        """
        init = {
            "glorot": glorot_uniform,
            "timm": nnx.initializers.normal(0.02),
            "clip": nnx.initializers.normal(clip_std or self.width**-0.5),
        }[self.kernel_init]
        return nnx.Linear(
            fan_in,
            fan_out,
            use_bias=use_bias,
            kernel_init=init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def norm(self, name: str, *, rngs: nnx.Rngs) -> nnx.Module:
        """Returns a normalization of features, computed in float32.

        Args:
          name: 'layer' or 'rms'.
          rngs: Random number generators for initialization.
        """
        options = dict(epsilon=self.epsilon, dtype=self.dtype, param_dtype=self.param_dtype)
        if name == "rms":
            return nnx.RMSNorm(self.width, rngs=rngs, **options)
        return nnx.LayerNorm(self.width, use_fast_variance=False, rngs=rngs, **options)

    @property
    def residual_std(self) -> float:
        """The `clip_std` of layers whose output is added to the residual."""
        return (2 * self.width * self.num_layers) ** -0.5

    def flops(self, num_tokens: int) -> float:
        """Returns the floating-point operations of one forward pass over one sequence.

        Counts only matrix products, with 2 operations per multiply-add, as is customary.
        """
        inner = self.num_heads * self.head_dim
        parameters = 4 * self.width * inner
        parameters += (3 if self.activation == "geglu" else 2) * self.width * self.mlp_dim
        scores = 2 * num_tokens * inner
        return 2.0 * self.num_layers * num_tokens * (parameters + scores)


def gelu(x: jax.Array) -> jax.Array:
    """Returns the exact GELU, x Φ(x), with which VATT and T5 v1 were trained."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def quick_gelu(x: jax.Array) -> jax.Array:
    """Returns x σ(1.702 x), the approximation of GELU in OpenAI's CLIP models."""
    return x * jax.nn.sigmoid(1.702 * x)


class Attention(nnx.Module):
    """Multi-head self-attention with separate query, key and value projections."""

    def __init__(self, cfg: EncoderConfig, *, rngs: nnx.Rngs):
        inner = cfg.num_heads * cfg.head_dim
        self.cfg = cfg
        self.query = cfg.linear(cfg.width, inner, use_bias=cfg.use_bias, rngs=rngs)
        self.key = cfg.linear(cfg.width, inner, use_bias=cfg.use_bias, rngs=rngs)
        self.value = cfg.linear(cfg.width, inner, use_bias=cfg.use_bias, rngs=rngs)
        self.out = cfg.linear(
            inner, cfg.width, use_bias=cfg.use_bias, clip_std=cfg.residual_std, rngs=rngs
        )

    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        *,
        segments: Sequence[tuple[int, int]],
        masks: Sequence[jax.Array | None],
        causal: bool,
        bias: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns [B, T, D]; see `Encoder._run` for the arguments."""
        cfg = self.cfg
        rate = cfg.attention_dropout_rate
        heads = (*x.shape[:2], cfg.num_heads, cfg.head_dim)
        projected = [layer(x).reshape(heads) for layer in (self.query, self.key, self.value)]
        start, outputs = 0, []
        keys = [key] if len(segments) == 1 else split_key(key, len(segments))
        for (count, length), segment_key, mask in zip(segments, keys, masks, strict=True):
            end = start + count * length
            sequences = (len(x) * count, length, *heads[2:])
            y = attend(
                *(tokens[:, start:end].reshape(sequences) for tokens in projected),
                scale=cfg.head_dim**-0.5 if cfg.scale_attention else 1.0,
                bias=bias,
                mask=mask,
                causal=causal,
                dropout_rate=cfg.dropout_rate if rate is None else rate,
                dropout_key=segment_key,
                impl=cfg.attention_impl,
            )
            outputs.append(y.reshape(len(x), end - start, -1))
            start = end
        return self.out(jnp.concatenate(outputs, axis=1))


class FeedForward(nnx.Module):
    """Two dense layers with an activation in between; 'geglu' adds a gate layer."""

    def __init__(self, cfg: EncoderConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        options = dict(use_bias=cfg.use_bias, rngs=rngs)
        inner_std = (2 * cfg.width) ** -0.5
        self.up = cfg.linear(cfg.width, cfg.mlp_dim, clip_std=inner_std, **options)
        if cfg.activation == "geglu":
            self.gate = cfg.linear(cfg.width, cfg.mlp_dim, clip_std=inner_std, **options)
        self.down = cfg.linear(cfg.mlp_dim, cfg.width, clip_std=cfg.residual_std, **options)

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Returns [B, T, D]; `key` is the random key of dropout."""
        activation = {"relu": jax.nn.relu, "swish": jax.nn.silu, "quick_gelu": quick_gelu}.get(
            self.cfg.activation, gelu
        )
        hidden = activation(self.up(x))
        if self.cfg.activation == "geglu":
            hidden = hidden * self.gate(x)
        return self.down(dropout(hidden, self.cfg.dropout_rate, key))


class Block(nnx.Module):
    """Attention and feed-forward, each with its norm, dropout and residual sum."""

    NUM_KEYS = 6

    def __init__(self, cfg: EncoderConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attention_norm = cfg.norm(cfg.attention_norm, rngs=rngs)
        self.attention = Attention(cfg, rngs=rngs)
        self.mlp_norm = cfg.norm(cfg.mlp_norm, rngs=rngs)
        self.mlp = FeedForward(cfg, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,  # [B, T, D]
        *,
        segments: Sequence[tuple[int, int]],
        masks: Sequence[jax.Array | None],
        causal: bool,
        bias: jax.Array | None = None,
        skip_rate: jax.Array | None = None,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Returns [B, T, D].

        `skip_rate` is the rate of stochastic depth in this layer, and `keys` are NUM_KEYS random
        keys or None.
        """
        rate, pre_norm = self.cfg.dropout_rate, self.cfg.pre_norm
        keys = [None] * self.NUM_KEYS if keys is None else keys

        def regularize(y, key, skip_key):
            y = dropout(y, rate, key)
            return y if skip_rate is None else drop_path(y, skip_rate, skip_key, segments=segments)

        y = self.attention_norm(x) if pre_norm else x
        y = self.attention(y, segments=segments, bias=bias, masks=masks, causal=causal, key=keys[0])
        x = x + regularize(y, keys[1], keys[4])
        x = x if pre_norm else self.attention_norm(x)
        y = self.mlp_norm(x) if pre_norm else x
        x = x + regularize(self.mlp(y, key=keys[2]), keys[3], keys[5])
        return x if pre_norm else self.mlp_norm(x)


def _as_score_mask(mask: jax.Array | None) -> jax.Array | None:
    """Returns a mask of keys [B, S] as a mask of scores [B, 1, 1, S]."""
    return None if mask is None else mask[:, None, None, :]


class Encoder(nnx.Module):
    """Blocks with stacked parameters, run by one scan, then the final norm and dropout."""

    def __init__(self, cfg: EncoderConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.layers = jax.vmap(lambda key: Block(cfg, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs.params(), cfg.num_layers)
        )
        if cfg.pre_norm and cfg.final_norm != "none":
            self.final_norm = cfg.norm(cfg.final_norm, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        *,
        bias: jax.Array | None = None,
        key_mask: jax.Array | None = None,
        causal: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns encoded tokens, [B, T, width] in the compute dtype.

        Args:
          x: Tokens, [B, T, width].
          bias: Added to the attention scores of every layer; broadcasts to [B, heads, T, T].
          key_mask: bool [B, T], False for padding that no token may attend to.
          causal: Whether each token attends only to itself and earlier tokens.
          key: Random key of dropout and stochastic depth; None disables both (evaluation).
        """
        return self._run(
            x,
            [(1, x.shape[1])],
            bias=bias,
            masks=[_as_score_mask(key_mask)],
            causal=causal,
            key=key,
        )

    def together(
        self,
        sequences: Sequence[jax.Array],
        *,
        key_masks: Sequence[jax.Array | None],
        key: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Encodes batches of sequences of different lengths; tokens attend within their sequence.

        Each dense layer processes all tokens in one matrix product; only attention runs separately
        for each batch. To pack them into one array of B rows, the batch sizes need a large common
        divisor B, such as B for B videos and 5 B captions. Row b contains the b-th share of each
        batch.

        Args:
          sequences: One [N_m, T_m, width] per batch.
          key_masks: bool [N_m, T_m] or None per batch; see `key_mask` of `__call__`.
          key: Random key of dropout and stochastic depth; None disables both (evaluation).

        Returns:
          One [N_m, T_m, width] per batch, in the compute dtype.
        """
        rows = math.gcd(*(len(x) for x in sequences))
        segments = [(len(x) // rows, x.shape[1]) for x in sequences]
        packed = [x.reshape(rows, -1, x.shape[-1]).astype(self.cfg.dtype) for x in sequences]
        encoded = self._run(
            jnp.concatenate(packed, axis=1),
            segments,
            masks=[_as_score_mask(mask) for mask in key_masks],
            key=key,
        )
        ends = np.cumsum([count * length for count, length in segments])
        parts = jnp.split(encoded, ends[:-1], axis=1)
        return [part.reshape(x.shape) for part, x in zip(parts, sequences, strict=True)]

    def _run(
        self,
        x: jax.Array,  # [B, T, D]
        segments: Sequence[tuple[int, int]],
        *,
        masks: Sequence[jax.Array | None],
        bias: jax.Array | None = None,
        causal: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Applies the blocks and the final norm.

        `segments` are pairs (sequences per row, length of each) that partition the T tokens.
        """
        cfg = self.cfg
        if not (cfg.dropout_rate or cfg.attention_dropout_rate or cfg.drop_path_rate):
            key = None
        layer_key, final_key = split_key(key, 2)
        options = dict(segments=segments, bias=bias, masks=masks, causal=causal)
        keys = skip_rates = None
        if key is not None:
            keys = jax.random.split(layer_key, (cfg.num_layers, Block.NUM_KEYS))
            if cfg.drop_path_rate:
                skip_rates = jnp.linspace(0, cfg.drop_path_rate, cfg.num_layers)

        def body(x, layer):
            block, layer_keys, skip_rate = layer
            return block(x, skip_rate=skip_rate, keys=layer_keys, **options), None

        if cfg.remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[cfg.remat], prevent_cse=False)
        x, _ = jax.lax.scan(
            body,
            x.astype(cfg.dtype),
            (self.layers, keys, skip_rates),
            unroll=cfg.scan_unroll or cfg.num_layers,
        )
        if hasattr(self, "final_norm"):
            x = self.final_norm(x)
        return dropout(x, cfg.dropout_rate, final_key) if cfg.pre_norm else x
