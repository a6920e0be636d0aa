"""The transformer encoder that every tower runs: attention, feed-forward, stacked blocks.

Sources: Vaswani et al. 2017; the pre-norm form, erf GELU and places of dropout of VATT (Akbari et
al. 2021, published code); T5's variants (RMS norms, unscaled attention, position bias), CLIP's
(causal attention, quick GELU; Radford et al. 2021) and stochastic depth (Huang et al. 2016) by
options.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.errors import UserError, choose, unknown
from mmjax.models.blocks.attention import ATTENTION_IMPLS, attend
from mmjax.models.blocks.initializers import glorot_uniform
from mmjax.models.blocks.noise import check_rate, drop_path, dropout, split_key

ACTIVATIONS = ("relu", "gelu", "quick_gelu", "swish", "geglu")
NORMS = ("layer", "rms")
KERNEL_INITS = ("glorot", "timm", "clip")
# What the backward pass keeps of a layer: everything, nothing but its input, or the results of its
# matrix products with parameters (attention scores and activations are computed again).
REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def check_dtypes(options: Any) -> None:
    """Raises UserError unless `dtype` and `param_dtype` of a tower's options are types."""
    for kind in ("dtype", "param_dtype"):
        try:
            jnp.dtype(getattr(options, kind))
        except TypeError:
            valid = ("float32", "bfloat16", "float16")
            raise unknown(kind, getattr(options, kind), valid) from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Options of an encoder.

    Attributes:
      num_layers: blocks.
      width: features of a token.
      num_heads: attention heads.
      head_dim: features of a head; num_heads · head_dim need not equal `width`.
      mlp_dim: hidden units of the feed-forward part.
      activation: 'relu', 'gelu' (erf form), 'quick_gelu' (x · sigmoid(1.702 x), OpenAI's CLIP),
        'swish', or 'geglu' (gated GELU).
      use_bias: biases in attention and feed-forward.
      pre_norm: normalize before each part and once at the end; False: after each residual sum.
      attention_norm, mlp_norm, final_norm: 'layer' (mean, variance, scale, bias) or 'rms' (scale);
        `final_norm` may be 'none'.
      epsilon: of the norms.
      scale_attention: divide scores by sqrt(head_dim); T5 does not.
      dropout_rate: on tokens and hidden units.
      attention_dropout_rate: on attention weights; None is `dropout_rate`. Only 0 lets cuDNN
        attend.
      drop_path_rate: stochastic depth: an example skips the parts of the last layer with this
        probability, those of the first never, of others in proportion to their depth.
      kernel_init: of dense layers: 'glorot' (uniform), 'timm' (normal of std 0.02), 'clip' (normal;
        its std depends on the width, in what is added to the residual also on the depth).
      attention_impl: 'xla', 'cudnn', or 'auto' (cuDNN where it can: GPU, half precision, no
        dropout).
      dtype: of computation; norms and softmax run in float32 whatever it is.
      param_dtype: of parameters.
      remat: key of `REMAT_POLICIES`.
      scan_unroll: layers in one iteration of the scan over depth; more compile longer, run a little
        faster. 0 unrolls all.
    """

    num_layers: int
    width: int
    num_heads: int
    head_dim: int = 64
    mlp_dim: int
    activation: str = "gelu"
    use_bias: bool = True
    pre_norm: bool = True
    attention_norm: str = "layer"
    mlp_norm: str = "layer"
    final_norm: str = "layer"
    epsilon: float = 1e-6
    scale_attention: bool = True
    dropout_rate: float = 0.1
    attention_dropout_rate: float | None = None
    drop_path_rate: float = 0.0
    kernel_init: str = "glorot"
    attention_impl: str = "auto"
    dtype: Any = "float32"
    param_dtype: Any = "float32"
    remat: str = "none"
    scan_unroll: int = 1

    def __post_init__(self):
        for kind, valid in (
            ("activation", ACTIVATIONS),
            ("attention_norm", NORMS),
            ("mlp_norm", NORMS),
            ("final_norm", (*NORMS, "none")),
            ("kernel_init", KERNEL_INITS),
            ("attention_impl", ATTENTION_IMPLS),
            ("remat", tuple(REMAT_POLICIES)),
        ):
            if getattr(self, kind) not in valid:
                raise unknown(kind, getattr(self, kind), valid)
        check_dtypes(self)
        for kind in ("num_layers", "width", "num_heads", "head_dim", "mlp_dim"):
            if getattr(self, kind) < 1:
                raise UserError(f"{kind} must be at least 1, not {getattr(self, kind)}.")
        for kind in ("dropout_rate", "attention_dropout_rate", "drop_path_rate"):
            check_rate(kind, getattr(self, kind) or 0)

    def linear(
        self,
        fan_in: int,
        fan_out: int,
        *,
        use_bias: bool,
        clip_std: float | None = None,
        rngs: nnx.Rngs,
    ) -> nnx.Linear:
        """A dense layer with this encoder's dtypes and kind of kernel.

        `clip_std` is the std with `kernel_init='clip'`; None is width^-1/2.
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

    def norm(self, kind: str, *, rngs: nnx.Rngs) -> nnx.Module:
        """A norm over features, computed in float32."""
        options = dict(epsilon=self.epsilon, dtype=self.dtype, param_dtype=self.param_dtype)
        if kind == "rms":
            return nnx.RMSNorm(self.width, rngs=rngs, **options)
        return nnx.LayerNorm(self.width, use_fast_variance=False, rngs=rngs, **options)

    @property
    def residual_std(self) -> float:
        """`clip_std` of the layers whose results are added to the residual."""
        return (2 * self.width * self.num_layers) ** -0.5

    def flops(self, num_tokens: int) -> float:
        """Floating-point operations of one forward pass over one sequence (2 per multiply-add).

        Counts matrix products alone; norms, softmax and activations are left out, as is customary.
        """
        inner = self.num_heads * self.head_dim
        parameters = 4 * self.width * inner
        parameters += (3 if self.activation == "geglu" else 2) * self.width * self.mlp_dim
        scores = 2 * num_tokens * inner
        return 2.0 * self.num_layers * num_tokens * (parameters + scores)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, x Φ(x), by erf (the form VATT and T5 v1 weights were trained with)."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def quick_gelu(x: jax.Array) -> jax.Array:
    """x σ(1.702 x), what OpenAI trained its CLIP models with for GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


class Attention(nnx.Module):
    """Multi-head self-attention with separate projections, heads in the order of the columns."""

    def __init__(self, cfg: EncoderConfig, *, rngs: nnx.Rngs):
        inner = cfg.num_heads * cfg.head_dim
        self.cfg = cfg
        self.query = cfg.linear(cfg.width, inner, use_bias=cfg.use_bias, rngs=rngs)
        self.key = cfg.linear(cfg.width, inner, use_bias=cfg.use_bias, rngs=rngs)
        self.value = cfg.linear(cfg.width, inner, use_bias=cfg.use_bias, rngs=rngs)
        self.out = cfg.linear(
            inner, cfg.width, use_bias=cfg.use_bias, clip_std=cfg.residual_std, rngs=rngs
        )

    def __call__(self, x, *, segments, masks, causal, bias=None, key=None):  # [B, T, D]
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
    """Two dense layers around an activation; 'geglu' multiplies by a third one's output."""

    def __init__(self, cfg: EncoderConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        options = dict(use_bias=cfg.use_bias, rngs=rngs)
        inner_std = (2 * cfg.width) ** -0.5
        self.up = cfg.linear(cfg.width, cfg.mlp_dim, clip_std=inner_std, **options)
        if cfg.activation == "geglu":
            self.gate = cfg.linear(cfg.width, cfg.mlp_dim, clip_std=inner_std, **options)
        self.down = cfg.linear(cfg.mlp_dim, cfg.width, clip_std=cfg.residual_std, **options)

    def __call__(self, x, *, key=None):
        activation = {"relu": jax.nn.relu, "swish": jax.nn.silu, "quick_gelu": quick_gelu}.get(
            self.cfg.activation, gelu
        )
        hidden = activation(self.up(x))
        if self.cfg.activation == "geglu":
            hidden = hidden * self.gate(x)
        return self.down(dropout(hidden, self.cfg.dropout_rate, key))


class Block(nnx.Module):
    """Attention and feed-forward, each with its norm, dropout and residual sum."""

    def __init__(self, cfg: EncoderConfig, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.attention_norm = cfg.norm(cfg.attention_norm, rngs=rngs)
        self.attention = Attention(cfg, rngs=rngs)
        self.mlp_norm = cfg.norm(cfg.mlp_norm, rngs=rngs)
        self.mlp = FeedForward(cfg, rngs=rngs)

    def __call__(
        self, x, *, segments, masks, causal, bias=None, skip_rate=None, key=None
    ):  # [B, T, D]
        rate, pre_norm = self.cfg.dropout_rate, self.cfg.pre_norm
        keys = split_key(key, 4 if skip_rate is None else 6)

        def part(y, key, skip_key):
            y = dropout(y, rate, key)
            return y if skip_rate is None else drop_path(y, skip_rate, skip_key, segments=segments)

        y = self.attention_norm(x) if pre_norm else x
        y = self.attention(y, segments=segments, bias=bias, masks=masks, causal=causal, key=keys[0])
        x = x + part(y, keys[1], keys[-2])
        x = x if pre_norm else self.attention_norm(x)
        y = self.mlp_norm(x) if pre_norm else x
        x = x + part(self.mlp(y, key=keys[2]), keys[3], keys[-1])
        return x if pre_norm else self.mlp_norm(x)


def _of_keys(mask: jax.Array | None) -> jax.Array | None:
    """A mask of keys [B, S] as one of scores [B, 1, 1, S]."""
    return None if mask is None else mask[:, None, None, :]


class Encoder(nnx.Module):
    """Blocks with stacked parameters, run by one scan; then the final norm and dropout."""

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
        """Encodes tokens.

        Args:
          x: [B, T, width].
          bias: added to the scores of every layer; broadcasts to [B, heads, T, T].
          key_mask: bool [B, T], False for padding that no token may attend to.
          causal: no token attends to those behind it.
          key: randomness of dropout and stochastic depth; None for none (evaluation).

        Returns:
          [B, T, width] in the compute dtype.
        """
        return self._run(
            x, [(1, x.shape[1])], bias=bias, masks=[_of_keys(key_mask)], causal=causal, key=key
        )

    def together(
        self,
        sequences: Sequence[jax.Array],
        *,
        key_masks: Sequence[jax.Array | None],
        key: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Encodes batches of sequences of several lengths, each token within its own sequence.

        All tokens go through each dense layer in one matrix product, and only attention is
        computed for each batch on its own: rows of the product are tokens, whosever they are. Their
        numbers of sequences must have a large common divisor, as B video clips and 5 B captions
        have: row b of the product's batch holds the b-th share of each.

        Args:
          sequences: [N_m, T_m, width].
          key_masks: bool [N_m, T_m] or None, as `key_mask` of `__call__`.
          key: randomness of dropout and stochastic depth; None for none (evaluation).

        Returns:
          As many [N_m, T_m, width] in the compute dtype.
        """
        rows = math.gcd(*(len(x) for x in sequences))
        segments = [(len(x) // rows, x.shape[1]) for x in sequences]
        packed = [x.reshape(rows, -1, x.shape[-1]).astype(self.cfg.dtype) for x in sequences]
        encoded = self._run(
            jnp.concatenate(packed, axis=1),
            segments,
            masks=[_of_keys(mask) for mask in key_masks],
            key=key,
        )
        ends = np.cumsum([count * length for count, length in segments])
        parts = jnp.split(encoded, ends[:-1], axis=1)
        return [part.reshape(x.shape) for part, x in zip(parts, sequences, strict=True)]

    def _run(self, x, segments, *, masks, bias=None, causal=False, key=None):  # [B, T, D]
        """Blocks and final norm; `segments` are (sequences in a row, their length), in order."""
        cfg = self.cfg
        if not (cfg.dropout_rate or cfg.attention_dropout_rate or cfg.drop_path_rate):
            key = None
        layer_key, final_key = split_key(key, 2)
        keys = None if key is None else jax.random.split(layer_key, cfg.num_layers)

        skip_rates = None
        if key is not None and cfg.drop_path_rate:
            skip_rates = jnp.linspace(0, cfg.drop_path_rate, cfg.num_layers)
        options = dict(segments=segments, bias=bias, masks=masks, causal=causal)

        def body(x, layer):
            block, block_key, skip_rate = layer
            return block(x, skip_rate=skip_rate, key=block_key, **options), None

        if cfg.remat != "none":
            policy = choose("remat", cfg.remat, REMAT_POLICIES)
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        x, _ = jax.lax.scan(
            body,
            x.astype(cfg.dtype),
            (self.layers, keys, skip_rates),
            unroll=cfg.scan_unroll or cfg.num_layers,
        )
        if hasattr(self, "final_norm"):
            x = self.final_norm(x)
        return dropout(x, cfg.dropout_rate, final_key) if cfg.pre_norm else x
