"""One train step: loss → gradients (accumulated) → clip → update → average → metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from mmjax import tree
from mmjax.errors import UserError
from mmjax.sharding import BATCH_AXES


def split_params(params: dict, frozen: Mapping[str, bool]) -> tuple[dict, dict]:
    """`(trainable, frozen)`: two trees of the same form, with None where a leaf is in the other."""
    trainable = tree.map_named(lambda path, leaf: None if frozen[path] else leaf, params)
    rest = tree.map_named(lambda path, leaf: leaf if frozen[path] else None, params)
    return trainable, rest


def join_params(trainable: dict, frozen: dict) -> dict:
    """The inverse of `split_params`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None
    )


def evaluation_params(state: Mapping[str, Any]) -> dict:
    """The parameters to judge: the moving average where there is one, the parameters elsewhere."""
    return join_params(state["ema"], state["params"]) if "ema" in state else state["params"]


def init_state(
    task: Any,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    frozen: Mapping[str, bool],
    ema: bool,
) -> dict:
    """A fresh train state; traceable, so that it is born sharded."""
    params, extra = task.init(key)
    trainable, _ = split_params(params, frozen)
    state = {"step": jnp.int32(0), "params": params, "opt": tx.init(trainable), "extra": extra}
    if ema:
        state["ema"] = jax.tree.map(jnp.copy, trainable)
    return state


def _microbatches(batch: Any, count: int) -> Any:
    """[B, …] → [count, B / count, …]; rows are dealt in turn: every device has some of each."""

    def split(x):
        x = x.reshape((x.shape[0] // count, count) + x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, BATCH_AXES))

    return jax.tree.map(split, batch)


def _whole_batch(micro: Any) -> Any:
    """The inverse of `_microbatches`."""

    def join(x):
        x = x.swapaxes(0, 1).reshape((x.shape[0] * x.shape[1],) + x.shape[2:])
        return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))

    return jax.tree.map(join, micro)


def loss_and_grads(
    task: Any,
    trainable: dict,
    frozen: dict,
    extra: dict,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    accumulate_steps: int = 1,
) -> tuple[jax.Array, dict, dict, dict]:
    """`(loss, gradients, extra, metrics)` of one batch.

    With `accumulate_steps` > 1 the encoder runs on microbatches: once to get all features, then,
    after the objective has been differentiated on the whole batch, once more for each microbatch's
    share of the gradient (Gao et al. 2021, arXiv 2101.06983). Losses over pairs of examples are
    therefore the same as without. What is not the same: statistics that an encoder itself takes
    over its batch, and the draws of dropout.
    """

    def encode(params, extra, batch, key):
        return task.encode(join_params(params, frozen), extra, batch, key)

    def objective(params, features, extra):
        return task.objective(join_params(params, frozen), extra, features, batch, key)

    if accumulate_steps == 1:

        def loss(params):
            features, new_extra = encode(params, extra, batch, key)
            return objective(params, features, new_extra)

        (value, (extra, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
        return value, grads, extra, metrics

    micro = _microbatches(batch, accumulate_steps)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(accumulate_steps))

    def forward(extra, xs):
        features, extra = encode(trainable, extra, *xs)
        return extra, features

    new_extra, features = jax.lax.scan(forward, extra, (micro, keys))
    whole = _whole_batch(features)
    (value, (new_extra, metrics)), (grads, feature_grads) = jax.value_and_grad(
        objective, argnums=(0, 1), has_aux=True
    )(trainable, whole, new_extra)

    def backward(grads, xs):
        batch, key, cotangent = xs
        _, vjp = jax.vjp(lambda params: encode(params, extra, batch, key)[0], trainable)
        return jax.tree.map(jnp.add, grads, vjp(cotangent)[0]), None

    feature_grads = _microbatches(feature_grads, accumulate_steps)
    grads, _ = jax.lax.scan(backward, grads, (micro, keys, feature_grads))
    return value, grads, new_extra, metrics


def clipped_loss_and_grads(
    task: Any,
    trainable: dict,
    frozen: dict,
    extra: dict,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    clip_shards: int,
    clip: Callable[[dict], dict],
) -> tuple[jax.Array, dict, dict, dict]:
    """`(loss, gradients, extra, metrics)` of a batch in groups, each as if alone on a replica.

    A group is B / clip_shards consecutive rows. The gradient of its own loss / clip_shards is
    clipped, then these are summed, so the sum's norm may reach clip_shards times the limit: what
    fine-tuning in VATT's published code does on so many replicas. Statistics in `extra` start the
    same in every group and are averaged.
    """
    # As many groups at a time as there are devices: each works on groups whose rows it holds.
    ways = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in BATCH_AXES)
    width = math.gcd(clip_shards, ways)

    def split(x):
        x = x.reshape((width, clip_shards // width, x.shape[0] // clip_shards) + x.shape[1:])
        x = x.swapaxes(0, 1)
        if width < ways:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, BATCH_AXES))

    def group(batch, key):
        value, grads, new_extra, metrics = loss_and_grads(
            task, trainable, frozen, extra, batch, key
        )
        share = jax.tree.map(lambda g: g / clip_shards, grads)
        return clip(share), (value, new_extra, metrics)

    def some(total, xs):
        shares, outputs = jax.vmap(group)(*xs)
        return jax.tree.map(lambda t, s: t + s.sum(axis=0), total, shares), outputs

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(clip_shards))
    grads, (values, extras, metrics) = jax.lax.scan(
        some,
        jax.tree.map(jnp.zeros_like, trainable),
        (jax.tree.map(split, batch), keys.reshape(width, -1).swapaxes(0, 1)),
    )
    extra = jax.tree.map(
        lambda x: x.mean(axis=(0, 1)) if jnp.issubdtype(x.dtype, jnp.floating) else x[0, 0], extras
    )
    return values.mean(), grads, extra, jax.tree.map(jnp.sum, metrics)


def make_step(
    task: Any,
    tx: optax.GradientTransformation,
    schedule: Callable[[jax.Array], jax.Array],
    *,
    seed: int,
    frozen: Mapping[str, bool],
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    clip_shards: int = 0,
    clip: Callable[[dict], dict] | None = None,
) -> Callable[[dict, Mapping[str, jax.Array]], tuple[dict, dict]]:
    """The function `(state, batch) -> (state, metrics)` that the trainer compiles.

    A step whose loss or gradient is not finite changes nothing but the step number, and reports
    `nonfinite = 1`; what follows from it is the trainer's decision.

    Args:
      clip_shards: clip the gradients of so many groups of rows, each on its own
        (`clipped_loss_and_grads`), instead of the batch's; 0 leaves clipping to `tx`.
      clip: with `clip_shards`: gradients -> clipped gradients (`mmjax.optim.make_clipping`). `tx`
        must not clip again.

    Metrics: `loss`, `grad_norm`, `learning_rate`, `nonfinite` and the task's own, all scalars.

    Raises:
      UserError: `clip_shards` for a loss that compares examples, with accumulation, or without
        `clip`; and, when it is traced, for a batch that it does not divide.
    """
    if clip_shards:
        if not getattr(task, "separable", False):
            raise UserError(
                f"config.clip_shards={clip_shards}: this task's loss compares the examples of a "
                "batch, so that a part has no loss of its own. Set config.clip_shards=0."
            )
        if accumulate_steps > 1:
            raise UserError(
                f"config.clip_shards={clip_shards} already works on parts of the batch: set "
                f"config.accumulate_steps=1, not {accumulate_steps}."
            )
        if clip is None:
            raise UserError(
                f"config.clip_shards={clip_shards} has no norm to clip to: give one in "
                "config.optimizer, or set config.clip_shards=0."
            )

    def gradients(trainable, rest, extra, batch, key):
        if not clip_shards:
            return loss_and_grads(
                task, trainable, rest, extra, batch, key, accumulate_steps=accumulate_steps
            )
        batch_size = jax.tree.leaves(batch)[0].shape[0]
        if batch_size % clip_shards:
            raise UserError(
                f"config.batch_size={batch_size} is not divisible by "
                f"config.clip_shards={clip_shards}."
            )
        return clipped_loss_and_grads(
            task, trainable, rest, extra, batch, key, clip_shards=clip_shards, clip=clip
        )

    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        trainable, rest = split_params(state["params"], frozen)
        loss, grads, extra, task_metrics = gradients(trainable, rest, state["extra"], batch, key)
        grad_norm = optax.global_norm(grads)
        updates, opt = tx.update(grads, state["opt"], trainable)
        new = {"opt": opt, "extra": extra, "params": optax.apply_updates(trainable, updates)}
        old = {"opt": state["opt"], "extra": state["extra"], "params": trainable}
        if ema_decay:
            # The average starts as a plain mean, so that the first parameters do not linger in it.
            decay = jnp.minimum(ema_decay, (1.0 + state["step"]) / (10.0 + state["step"]))
            old["ema"] = state["ema"]
            new["ema"] = jax.tree.map(
                lambda average, value: decay * average + (1.0 - decay) * value,
                state["ema"],
                new["params"],
            )
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        new["params"] = join_params(new["params"], rest)
        new["step"] = state["step"] + 1
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state["step"]),
            "nonfinite": 1.0 - finite,
            **{
                name: total / jnp.maximum(count, 1) for name, (total, count) in task_metrics.items()
            },
        }
        return new, metrics

    return step
