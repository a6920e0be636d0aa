"""Softmax attention on TPUs as one kernel, which never writes scores or weights to memory.

XLA computes attention as matrix products with a softmax in between, and keeps the weights,
[B, H, T, S], for the gradient. This kernel computes the scores of a block of queries and all keys
in the fast memory of the chip, and again for the gradient, as FlashAttention does (Dao et al. 2022,
arXiv 2205.14135). A block has whole rows of scores, so it keeps no statistics of them.

Heads stay side by side in the last axis, [B, T, heads · head_dim], and one program computes the
heads that fill the 128 lanes of a register. It selects a head by setting the lanes of the others to
0. Matrix units multiply 128 lanes at a time, so this costs no more than products of one head.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mmjax.sharding import per_device

MAX_KEYS = 2**12
_MAX_SCORES = 2**18  # elements of a block of scores; about six such float32 arrays exist at once
_LANES = 128
_SUBLANES = 16  # rows of a register in half precision
_VMEM_LIMIT = 64 * 2**20  # bytes
MASKED = -1e9  # the score of a masked key


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    scale: float,
    key_mask: jax.Array | None = None,
    causal: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Returns softmax attention; see `mmjax.models.blocks.attention.attend`.

    Each device computes its own examples and, with tensor parallelism, its own heads. Dropout masks
    depend on the mesh.

    Args:
      query: [B, T, H, K].
      key: [B, S, H, K] with S up to `MAX_KEYS`.
      value: [B, S, H, K].
      scale: Factor of the scores.
      key_mask: bool [B, S], False for keys that no query attends to.
      causal: Whether query t attends only to keys 0 to t.
      dropout_rate: Dropout rate of attention weights if `dropout_key` is not None.
      dropout_key: Random key of that dropout.
      interpret: Whether to run the kernel as ordinary operations, on any device.

    Returns:
      [B, T, H, K] in the dtype of `value`.
    """
    options = _Options(
        scale=scale,
        causal=causal,
        dropout_rate=0.0 if dropout_key is None else dropout_rate,
        interpret=interpret,
    )
    mask = None if key_mask is None else key_mask[:, None].astype(jnp.int32)
    seed = jax.random.key_data(dropout_key) if options.dropout_rate else None
    return _attention(options, query, key, value, mask, seed)


@dataclasses.dataclass(frozen=True)
class _Options:
    """Arguments of `fused_attention`."""

    scale: float
    causal: bool
    dropout_rate: float
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(options, query, key, value, mask, seed):
    (output,) = _on_devices(options, 1, seed, query, key, value, mask)
    return output


def _attention_forward(options, *inputs):
    return _attention(options, *inputs), inputs


def _attention_backward(options, residuals, gradient):
    query, key, value, mask, seed = residuals
    gradients = _on_devices(options, 3, seed, query, key, value, mask, gradient)
    return *gradients, None, None


_attention.defvjp(_attention_forward, _attention_backward)


def _on_devices(options, num_outputs, seed, query, *others):
    """Returns the results of `_call`, each device's for its own examples and heads."""
    ways = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    heads = (None, "tensor") if query.shape[2] % ways == 0 else ()

    def function(num_examples, seed, *inputs):
        del num_examples
        return _call(options, None if seed is None else seed.astype(jnp.int32), *inputs)

    inputs = (query, *others)
    return per_device(
        function,
        len(query),
        seed,
        inputs,
        in_axes=[heads if x is not None and x.ndim == 4 else () for x in inputs],
        out_axes=[heads] * num_outputs,
    )


@dataclasses.dataclass(frozen=True)
class _Program:
    """What one program of the grid computes: some heads of a block of queries with all keys.

    Attributes:
      options: Arguments of `fused_attention`.
      num_queries: T.
      num_keys: S.
      head_dim: K.
      heads: Number of heads.
      rows: Number of queries.
      columns: Number of keys, with padding.
    """

    options: _Options
    num_queries: int
    num_keys: int
    head_dim: int
    heads: int
    rows: int
    columns: int

    def load(self, ref: jax.Array, size: int, start: jax.Array | int = 0) -> jax.Array:
        """Returns a block of tokens [., lanes] with zeros for those outside the array."""
        x = ref[...]
        token = start + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return jnp.where(token < size, x, jnp.zeros((), x.dtype))

    def load_queries(self, ref: jax.Array) -> jax.Array:
        """Returns a block of queries, or of something else of the same shape."""
        return self.load(ref, self.num_queries, pl.program_id(2) * self.rows)

    def load_keys(self, ref: jax.Array) -> jax.Array:
        """Returns all keys or values."""
        return self.load(ref, self.num_keys)

    def only(self, head: int, x: jax.Array) -> jax.Array:
        """Returns x [., lanes] with zeros in the lanes of other heads."""
        if self.heads == 1:
            return x
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        mine = (lane >= head * self.head_dim) & (lane < (head + 1) * self.head_dim)
        return jnp.where(mine, x, jnp.zeros((), x.dtype))

    def visible(self, mask_ref: jax.Array | None) -> jax.Array | None:
        """Returns which scores [rows, columns] are not masked; None if all are."""
        visible = None if mask_ref is None else mask_ref[...] != 0  # [1, columns]
        if self.options.causal:
            row = jax.lax.broadcasted_iota(jnp.int32, (self.rows, self.columns), 0)
            column = jax.lax.broadcasted_iota(jnp.int32, (self.rows, self.columns), 1)
            past = column <= row + pl.program_id(2) * self.rows
            visible = past if visible is None else visible & past
        return visible

    def weights(self, query: jax.Array, key: jax.Array, visible: jax.Array | None) -> jax.Array:
        """Returns the softmax of the scores, float32 [rows, columns]."""
        scores = _product(query, key, (1, 1)) * self.options.scale
        if visible is not None:
            scores = jnp.where(visible, scores, MASKED)
        if self.columns != self.num_keys:
            column = jax.lax.broadcasted_iota(jnp.int32, (1, self.columns), 1)
            scores = jnp.where(column < self.num_keys, scores, -jnp.inf)
        exponentials = jnp.exp(scores - scores.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def drop(self, seed_ref: jax.Array | None, head: int) -> Callable[[jax.Array], jax.Array]:
        """Returns dropout of the weights of a head, with the same mask at each call."""
        rate = self.options.dropout_rate
        if seed_ref is None:
            return lambda x: x
        index = pl.program_id(0)
        for axis in (1, 2):
            index = index * pl.num_programs(axis) + pl.program_id(axis)
        seeds = seed_ref[0], seed_ref[1] + index * self.heads + head
        shape = (self.rows, self.columns)
        if self.options.interpret:  # has no generator of the hardware
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seeds[0]), seeds[1])
            bits = jax.lax.bitcast_convert_type(jax.random.bits(key, shape), jnp.int32)
        else:
            pltpu.prng_seed(*seeds)
            bits = pltpu.prng_random_bits(shape)
        keep = bits < round((1 - rate) * 2**32) - 2**31
        return lambda x: jnp.where(keep, x / (1 - rate), 0)


def _product(x: jax.Array, y: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Returns the float32 matrix product of x and y along an axis of each."""
    contracted = ((axes[0],), (axes[1],)), ((), ())
    return jax.lax.dot_general(x, y, contracted, preferred_element_type=jnp.float32)


def _forward_kernel(program, seed_ref, query_ref, key_ref, value_ref, mask_ref, output_ref):
    query = program.load_queries(query_ref)
    key, value = program.load_keys(key_ref), program.load_keys(value_ref)
    visible = program.visible(mask_ref)
    output = jnp.zeros(query.shape, jnp.float32)
    for head in range(program.heads):
        weights = program.weights(program.only(head, query), key, visible)
        weights = program.drop(seed_ref, head)(weights).astype(value.dtype)
        output += program.only(head, _product(weights, value, (1, 0)))
    output_ref[...] = output.astype(output_ref.dtype)


def _backward_kernel(
    program,
    seed_ref,
    query_ref,
    key_ref,
    value_ref,
    mask_ref,
    gradient_ref,
    query_grad_ref,
    key_grad_ref,
    value_grad_ref,
    key_sum_ref,
    value_sum_ref,
):
    @pl.when(pl.program_id(2) == 0)
    def _():
        key_sum_ref[...] = jnp.zeros_like(key_sum_ref)
        value_sum_ref[...] = jnp.zeros_like(value_sum_ref)

    query, gradient = program.load_queries(query_ref), program.load_queries(gradient_ref)
    key, value = program.load_keys(key_ref), program.load_keys(value_ref)
    visible = program.visible(mask_ref)
    query_grad = jnp.zeros(query.shape, jnp.float32)
    for head in range(program.heads):
        query_, gradient_ = program.only(head, query), program.only(head, gradient)
        weights = program.weights(query_, key, visible)
        drop = program.drop(seed_ref, head)
        value_sum_ref[...] += _product(drop(weights).astype(value.dtype), gradient_, (0, 0))
        weight_grads = drop(_product(gradient_, value, (1, 1)))
        mean = (weights * weight_grads).sum(axis=1, keepdims=True)
        score_grads = weights * (weight_grads - mean) * program.options.scale
        if visible is not None:
            score_grads = jnp.where(visible, score_grads, 0)
        score_grads = score_grads.astype(key.dtype)
        key_sum_ref[...] += _product(score_grads, query_, (0, 0))
        query_grad += program.only(head, _product(score_grads, key, (1, 0)))
    query_grad_ref[...] = query_grad.astype(query_grad_ref.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        key_grad_ref[...] = key_sum_ref[...].astype(key_grad_ref.dtype)
        value_grad_ref[...] = value_sum_ref[...].astype(value_grad_ref.dtype)


def _program(options: _Options, query: jax.Array, key: jax.Array) -> _Program:
    """Returns the program for queries [B, T, H, K] and keys [B, S, H, K]."""
    _, num_queries, num_heads, head_dim = query.shape
    fitting = (n for n in range(1, num_heads) if num_heads % n == 0 and n * head_dim % _LANES == 0)
    columns = _round_up(key.shape[1], _LANES)
    blocks = pl.cdiv(num_queries, max(_SUBLANES, _MAX_SCORES // columns))
    return _Program(
        options=options,
        num_queries=num_queries,
        num_keys=key.shape[1],
        head_dim=head_dim,
        heads=next(fitting, num_heads),
        rows=_round_up(pl.cdiv(num_queries, blocks), _SUBLANES),
        columns=columns,
    )


def _round_up(size: int, multiple: int) -> int:
    return pl.cdiv(size, multiple) * multiple


def _call(
    options: _Options,
    seed: jax.Array | None,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    gradient: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Returns the output, or with its gradient those of query, key and value."""
    program = _program(options, query, key)
    lanes = program.heads * program.head_dim
    num_heads = query.shape[2]
    queries = pl.BlockSpec((None, program.rows, lanes), lambda b, h, i: (b, i, h))
    keys = pl.BlockSpec((None, program.columns, lanes), lambda b, h, i: (b, 0, h))
    keys_mask = pl.BlockSpec((None, 1, program.columns), lambda b, h, i: (b, 0, 0))
    inputs = [
        (seed, pl.BlockSpec(memory_space=pltpu.SMEM)),
        *((query, queries), (key, keys), (value, keys), (mask, keys_mask)),
    ]
    outputs, scratch, kernel, products = [(query, queries)], [], _forward_kernel, 2
    if gradient is not None:
        inputs.append((gradient, queries))
        outputs += [(key, keys), (value, keys)]
        scratch = [pltpu.VMEM((program.columns, lanes), jnp.float32)] * 2
        kernel, products = _backward_kernel, 5
    given = [i for i, (x, _) in enumerate(inputs) if x is not None]

    def body(*refs):
        all_inputs = [None] * len(inputs)
        for i, ref in zip(given, refs, strict=False):
            all_inputs[i] = ref
        kernel(program, *all_inputs, *refs[len(given) :])

    scores = len(query) * num_heads * query.shape[1] * key.shape[1]
    flat = [x if x.ndim < 4 else x.reshape(*x.shape[:2], -1) for x in (inputs[i][0] for i in given)]
    shapes = [
        jax.ShapeDtypeStruct((*x.shape[:2], x.shape[2] * x.shape[3]), x.dtype) for x, _ in outputs
    ]
    results = pl.pallas_call(
        body,
        grid=(len(query), num_heads // program.heads, pl.cdiv(query.shape[1], program.rows)),
        in_specs=[inputs[i][1] for i in given],
        out_specs=[spec for _, spec in outputs],
        out_shape=shapes,
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=_VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * products * scores * program.head_dim,
            transcendentals=scores,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*flat, *shapes)),
        ),
        interpret=options.interpret,
        name=kernel.__name__.strip("_"),
    )(*flat)
    return tuple(x.reshape(like.shape) for x, (like, _) in zip(results, outputs, strict=True))
