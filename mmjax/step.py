"""One training step: loss, gradients (accumulated), clipping, optimizer, moving average, metrics.

A step is one update, or with `updates_per_step` several updates in one compiled program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from mmjax import lookups, tree
from mmjax.errors import UserError
from mmjax.sharding import BATCH_AXES


def split_params(params: dict, frozen: Mapping[str, bool]) -> tuple[dict, dict]:
    """Returns `(trainable, frozen)`: trees like `params` with None for the leaves of the other."""
    trainable = tree.map_named(lambda path, leaf: None if frozen[path] else leaf, params)
    rest = tree.map_named(lambda path, leaf: leaf if frozen[path] else None, params)
    return trainable, rest


def join_params(trainable: dict, frozen: dict) -> dict:
    """Returns the parameters from the trees of `split_params`."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None
    )


def evaluation_params(state: Mapping[str, Any]) -> dict:
    """Returns the parameters to evaluate: moving averages where they exist, else the parameters."""
    return join_params(state["ema"], state["params"]) if "ema" in state else state["params"]


def init_state(
    task: Any,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    frozen: Mapping[str, bool],
    ema: bool,
) -> dict:
    """Returns a randomly initialized train state. Can be jitted with output shardings.

    Args:
      task: The task.
      tx: Optimizer of the trainable parameters.
      key: Random key of the initialization.
      frozen: {path of a parameter: whether it is frozen}.
      ema: Whether to keep a moving average of the trainable parameters.
    """
    params, extra = task.init(key)
    trainable, _ = split_params(params, frozen)
    state = {"step": jnp.int32(0), "params": params, "opt": tx.init(trainable), "extra": extra}
    if ema:
        state["ema"] = jax.tree.map(jnp.copy, trainable)
    return state


def _microbatches(batch: Any, count: int) -> Any:
    """[B, …] -> [count, B / count, …], interleaved so that each device has a part of each."""

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
    """Returns `(loss, gradients, extra, metrics)` of one batch.

    With `accumulate_steps` > 1, the encoder runs on microbatches: once to compute all features, and
    once more per microbatch for its part of the gradient, after the objective has been
    differentiated on the global batch (Gao et al. 2021, arXiv 2101.06983). Losses over pairs of
    examples are therefore exact. Batch statistics inside the encoder and dropout masks differ from
    those without accumulation.

    Args:
      task: The task.
      trainable: Trainable parameters, None elsewhere.
      frozen: Frozen parameters, None elsewhere.
      extra: Non-trainable state of the model.
      batch: The global batch.
      key: Random key of this step.
      accumulate_steps: Number of microbatches.
    """

    if accumulate_steps == 1:
        loss = _loss_of(task, frozen, extra, batch, key)
        (value, (extra, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(trainable)
        return value, grads, extra, metrics

    def encode(params, extra, batch, key):
        return task.encode(join_params(params, frozen), extra, batch, key)

    def objective(params, features, extra):
        return task.objective(join_params(params, frozen), extra, features, batch, key)

    return _accumulated(encode, objective, trainable, extra, batch, key, accumulate_steps)


def _loss_of(
    task: Any, frozen: dict, extra: dict, batch: Mapping[str, jax.Array], key: jax.Array
) -> Callable[[dict], tuple[jax.Array, tuple[dict, dict]]]:
    """Returns the function trainable parameters -> (loss, (extra, metrics)) of a whole batch."""

    def loss(trainable):
        params = join_params(trainable, frozen)
        features, new_extra = task.encode(params, extra, batch, key)
        return task.objective(params, new_extra, features, batch, key)

    return loss


def lookup_loss_and_grads(
    task: Any,
    trainable: dict,
    frozen: dict,
    extra: dict,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
) -> tuple[jax.Array, dict, dict, dict, dict[str, jax.Array]]:
    """Returns the result of `loss_and_grads`, and sums of squares of gradients of lookups.

    The latter are {path of a trainable table: sum of squares of the gradients of its looked-up
    rows, before rows of the same id are added}; see `mmjax.lookups`.

    Raises:
      UserError: The model looks up no trainable parameter.
    """
    probes = {
        path: jnp.float32(0)
        for path, leaf in tree.flatten(trainable).items()
        if leaf is not None and leaf.ndim == 2
    }
    used: set[str] = set()

    def loss(params, probes):
        with lookups.probing(probes) as paths:
            value, aux = _loss_of(task, frozen, extra, batch, key)(params)
        used.update(paths)
        return value, aux

    (value, (extra, metrics)), (grads, squares) = jax.value_and_grad(
        loss, argnums=(0, 1), has_aux=True
    )(trainable, probes)
    if not used:
        raise UserError(
            "config.optimizer.clip_lookups='separate' has no effect: no trainable parameter of "
            "the model is an embedding that is looked up by id (resampled positions are not). Set "
            "config.optimizer.clip_lookups='summed'."
        )
    return value, grads, extra, metrics, {path: squares[path] for path in sorted(used)}


def _accumulated(
    encode: Callable[..., tuple[Any, dict]],
    objective: Callable[..., tuple[jax.Array, tuple[dict, dict]]],
    trainable: dict,
    extra: dict,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    accumulate_steps: int,
) -> tuple[jax.Array, dict, dict, dict]:
    """Returns the result of `loss_and_grads` computed on microbatches."""
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
    clip: Callable[..., dict],
    separate_lookups: bool = False,
) -> tuple[jax.Array, dict, dict, dict]:
    """Returns `(loss, gradients, extra, metrics)` with gradients clipped per group of examples.

    A group has B / clip_shards consecutive examples. The gradient of its loss / clip_shards is
    clipped, and the results are summed, so the norm of the sum may reach clip_shards times the
    limit. VATT's published fine-tuning code does this on clip_shards replicas. Statistics in
    `extra` start from the same values in every group and are averaged.

    Args:
      task: The task; its loss must be a mean over examples.
      trainable: Trainable parameters, None elsewhere.
      frozen: Frozen parameters, None elsewhere.
      extra: Non-trainable state of the model.
      batch: The global batch.
      key: Random key of this step.
      clip_shards: Number of groups.
      clip: Gradients -> clipped gradients.
      separate_lookups: Whether `clip` also takes the result of `lookup_loss_and_grads`.
    """
    # As many groups at once as devices, so that each device computes groups of its own examples.
    ways = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in BATCH_AXES)
    width = math.gcd(clip_shards, ways)

    def split(x):
        x = x.reshape((width, clip_shards // width, x.shape[0] // clip_shards) + x.shape[1:])
        x = x.swapaxes(0, 1)
        if width < ways:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(None, BATCH_AXES))

    def group(batch, key):
        inputs = (task, trainable, frozen, extra, batch, key)
        if not separate_lookups:
            value, grads, new_extra, metrics = loss_and_grads(*inputs)
            share = jax.tree.map(lambda g: g / clip_shards, grads)
            return clip(share), (value, new_extra, metrics)
        value, grads, new_extra, metrics, squares = lookup_loss_and_grads(*inputs)
        share = jax.tree.map(lambda g: g / clip_shards, grads)
        squares = {path: square / clip_shards**2 for path, square in squares.items()}
        return clip(share, squares), (value, new_extra, metrics)

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


def _check_clip_shards(
    task: Any, clip_shards: int, accumulate_steps: int, clip: Callable[[dict], dict] | None
) -> None:
    """Raises UserError unless `make_step` can clip groups of examples."""
    if not getattr(task, "separable", False):
        raise UserError(
            f"config.clip_shards={clip_shards} needs a loss that is a mean over examples; that "
            f"of {type(task).__name__} compares examples with each other. Set "
            "config.clip_shards=0."
        )
    if accumulate_steps > 1:
        raise UserError(
            f"config.clip_shards={clip_shards} cannot be combined with "
            f"config.accumulate_steps={accumulate_steps}. Set config.accumulate_steps=1."
        )
    if clip is None:
        raise UserError(
            f"config.clip_shards={clip_shards} needs a norm to clip to. Set "
            "config.optimizer.clip_norm, or config.clip_shards=0."
        )


def _check_updates_per_step(updates_per_step: int, accumulate_steps: int, clip_shards: int) -> None:
    """Raises UserError unless a step can make several updates."""
    for key, value, off in (
        ("accumulate_steps", accumulate_steps, 1),
        ("clip_shards", clip_shards, 0),
    ):
        if value > off:
            raise UserError(
                f"config.updates_per_step={updates_per_step} cannot be combined with "
                f"config.{key}={value}: both divide the batch. Set config.updates_per_step=1 or "
                f"config.{key}={off}."
            )


def _moving_average(average: dict, params: dict, step: jax.Array, decay: float) -> dict:
    """Returns the updated moving average of the parameters.

    The average starts as a plain mean, so that it forgets the initial parameters.
    """
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, value: decay * a + (1.0 - decay) * value, average, params)


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
    clip: Callable[..., dict] | None = None,
    separate_lookups: bool = False,
    updates_per_step: int = 1,
) -> Callable[[dict, Mapping[str, jax.Array]], tuple[dict, dict]]:
    """Returns the function `(state, batch) -> (state, metrics)` that the trainer compiles.

    If the loss or the gradient is not finite, only the step number changes, and the metric
    `nonfinite` is 1; the trainer decides whether to continue. The other metrics are `loss`,
    `grad_norm`, `learning_rate` and those of the task, all scalars.

    With `updates_per_step` = K > 1, a step makes K updates on parts of the batch, as K steps on
    these parts do: schedules, random keys and the moving average count updates, and an update that
    is not finite changes nothing. `state["step"]` counts steps. Metrics are means over the updates
    (those of the task over all examples); `nonfinite` is 1 if any update was not finite.

    Args:
      task: The task.
      tx: Optimizer of the trainable parameters.
      schedule: Update -> learning rate, for the metrics.
      seed: Seed of the random keys of all updates.
      frozen: {path of a parameter: whether it is frozen}.
      accumulate_steps: Number of microbatches.
      ema_decay: Decay of the moving average of the parameters; 0 keeps none.
      clip_shards: Number of groups of examples whose gradients are clipped separately
        (`clipped_loss_and_grads`); 0 leaves clipping to `tx`.
      clip: With `clip_shards` or `separate_lookups`, the result of `mmjax.optim.make_clipping`.
        `tx` must not clip again.
      separate_lookups: Whether the gradients of looked-up rows count separately in the norms of
        `clip` (`lookup_loss_and_grads`).
      updates_per_step: Number of updates K. Update k uses the examples k, k + K, k + 2K … of the
        batch, so that each device has a share of each part.

    Raises:
      UserError: `clip_shards` with a loss that compares examples, with accumulation, or without
        `clip`; `separate_lookups` with accumulation; several updates with accumulation or
        `clip_shards`. When traced: `clip_shards` does not divide the batch, or the model looks up
        no trainable parameter.
    """
    if updates_per_step > 1:
        _check_updates_per_step(updates_per_step, accumulate_steps, clip_shards)
    if clip_shards:
        _check_clip_shards(task, clip_shards, accumulate_steps, clip)
    if separate_lookups and accumulate_steps > 1:
        raise UserError(
            "config.optimizer.clip_lookups='separate' cannot be combined with "
            f"config.accumulate_steps={accumulate_steps}: microbatches add gradients of positions. "
            "Set config.accumulate_steps=1, or config.optimizer.clip_lookups='summed'."
        )

    def gradients(trainable, rest, extra, batch, key):
        inputs = (task, trainable, rest, extra, batch, key)
        if not clip_shards and separate_lookups:
            return lookup_loss_and_grads(*inputs)
        if not clip_shards:
            return *loss_and_grads(*inputs, accumulate_steps=accumulate_steps), {}
        batch_size = jax.tree.leaves(batch)[0].shape[0]
        if batch_size % clip_shards:
            raise UserError(
                f"config.batch_size={batch_size} must be divisible by "
                f"config.clip_shards={clip_shards}."
            )
        results = clipped_loss_and_grads(
            *inputs, clip_shards=clip_shards, clip=clip, separate_lookups=separate_lookups
        )
        return *results, {}

    def update(state, rest, batch, index):
        """Returns the state after update `index`, its metrics and those of the task."""
        key = jax.random.fold_in(jax.random.key(seed), index)
        trainable = state["params"]
        loss, grads, extra, task_metrics, squares = gradients(
            trainable, rest, state["extra"], batch, key
        )
        grad_norm = optax.global_norm(grads)
        if squares:
            grads = clip(grads, squares)
        updates, opt = tx.update(grads, state["opt"], trainable)
        new = {"opt": opt, "extra": extra, "params": optax.apply_updates(trainable, updates)}
        if ema_decay:
            new["ema"] = _moving_average(state["ema"], new["params"], index, ema_decay)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": schedule(index),
            "nonfinite": 1.0 - finite,
        }
        return new, (metrics, task_metrics)

    def several_updates(state, rest, batch, first):
        def one(state, xs):
            part, number = xs
            return update(state, rest, part, first + number)

        parts = _microbatches(batch, updates_per_step)
        state, (metrics, sums) = jax.lax.scan(one, state, (parts, jnp.arange(updates_per_step)))
        means = {name: values.mean() for name, values in metrics.items()}
        means["nonfinite"] = metrics["nonfinite"].max()
        return state, (means, jax.tree.map(lambda values: values.sum(axis=0), sums))

    def step(state, batch):
        trainable, rest = split_params(state["params"], frozen)
        old = {"opt": state["opt"], "extra": state["extra"], "params": trainable}
        if ema_decay:
            old["ema"] = state["ema"]
        run = update if updates_per_step == 1 else several_updates
        new, (metrics, sums) = run(old, rest, batch, state["step"] * updates_per_step)
        new["params"] = join_params(new["params"], rest)
        new["step"] = state["step"] + 1
        return new, metrics | {
            name: total / jnp.maximum(count, 1) for name, (total, count) in sums.items()
        }

    return step
