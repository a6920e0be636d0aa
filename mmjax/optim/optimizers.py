"""Update rules. Each function returns the whole update: what is added to the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmjax.errors import UserError
from mmjax.optim.schedules import Schedule

# Parameters -> tree of bools: where weight decay applies.
Mask = Callable[[Any], Any]


def adam(
    schedule: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    cycle: Schedule | None = None,
) -> optax.GradientTransformation:
    """Returns Adam as in optax and PyTorch. `cycle`: Values of b1 by update, instead of `b1`."""
    if cycle is None:
        return optax.adam(schedule, b1=b1, b2=b2, eps=eps)
    return optax.chain(
        _scale_by_cycling_adam(cycle, b2, eps), optax.scale_by_learning_rate(schedule)
    )


def adamw(
    schedule: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Returns AdamW as in optax and PyTorch: the learning rate scales the decay."""
    return optax.adamw(schedule, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)


def sgd(
    schedule: Schedule,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
    cycle: Schedule | None = None,
) -> optax.GradientTransformation:
    """Returns SGD as in PyTorch, which has no slots without momentum.

    Weight decay is added to the gradient. `cycle`: Values of the momentum by update, instead of
    `momentum`.

    Raises:
      UserError: Nesterov momentum without momentum.
    """
    if nesterov and not momentum and cycle is None:
        raise UserError("nesterov=True needs momentum. Set momentum, for example to 0.9.")
    decay = optax.add_decayed_weights(weight_decay, mask)
    if cycle is None:
        return optax.chain(decay, optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov))
    trace = _cycling_trace(cycle, nesterov)
    return optax.chain(decay, trace, optax.scale_by_learning_rate(schedule))


def momentum(
    schedule: Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Returns SGD with momentum as in optax and PyTorch. Weight decay is added to the gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )


def keras_adam(
    schedule: Schedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Returns Adam as in Keras: `eps` is added before the second moment is bias-corrected (ε̂)."""
    return optax.chain(
        _scale_by_keras_adam(b1, b2, eps),
        optax.scale_by_learning_rate(schedule),
    )


def keras_momentum(
    schedule: Schedule, *, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """Returns SGD with momentum as in Keras: v ← momentum · v − lr · g; w ← w + v.

    With a constant learning rate it equals `momentum`. After a change of the rate, past gradients
    keep the rate of their own step.
    """

    def init(params):
        return KerasMomentumState(
            count=jnp.zeros([], jnp.int32), velocity=jax.tree.map(jnp.zeros_like, params)
        )

    def update(grads, state, params=None):
        del params
        lr = schedule(state.count)
        velocity = jax.tree.map(
            lambda v, g: momentum * v - (lr * g).astype(v.dtype), state.velocity, grads
        )
        updates = velocity
        if nesterov:
            updates = jax.tree.map(
                lambda v, g: momentum * v - (lr * g).astype(v.dtype), velocity, grads
            )
        count = optax.safe_increment(state.count)
        return updates, KerasMomentumState(count=count, velocity=velocity)

    return optax.GradientTransformation(init, update)


def tfa_adamw(
    schedule: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-7,
    weight_decay: float = 5e-5,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Returns `keras_adam` with the decay of TensorFlow Addons: w ← w − weight_decay · w.

    The learning rate does not scale the decay.
    """
    return optax.chain(
        keras_adam(schedule, b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(-weight_decay, mask),
    )


def tfa_sgdw(
    schedule: Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 5e-5,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Returns `keras_momentum` with the decay of TensorFlow Addons: w ← w − weight_decay · w.

    The learning rate does not scale the decay.
    """
    return optax.chain(
        keras_momentum(schedule, momentum=momentum, nesterov=nesterov),
        optax.add_decayed_weights(-weight_decay, mask),
    )


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": adam,
    "adamw": adamw,
    "momentum": momentum,
    "sgd": sgd,
    "keras_adam": keras_adam,
    "keras_momentum": keras_momentum,
    "tfa_adamw": tfa_adamw,
    "tfa_sgdw": tfa_sgdw,
}


class KerasMomentumState(NamedTuple):
    count: jax.Array  # updates made
    velocity: Any  # like the parameters


def _scale_by_keras_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    def update(grads, state, params=None):
        del params
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        scale = jnp.sqrt(1.0 - b2**count) / (1.0 - b1**count)
        updates = jax.tree.map(lambda m, v: scale * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def _scale_by_cycling_adam(b1: Schedule, b2: float, eps: float) -> optax.GradientTransformation:
    """Returns Adam's rule with a b1 that changes; its new value corrects the bias (PyTorch)."""

    def update(grads, state, params=None):
        del params
        beta = b1(state.count)
        mu = jax.tree.map(lambda m, g: beta * m + (1.0 - beta) * g, state.mu, grads)
        nu = optax.tree.update_moment_per_elem_norm(grads, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        mu_hat = jax.tree.map(lambda m: m / (1.0 - beta**count), mu)
        nu_hat = optax.tree.bias_correction(nu, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


class CyclingTraceState(NamedTuple):
    count: jax.Array  # updates made
    trace: Any  # like the parameters


def _cycling_trace(momentum: Schedule, nesterov: bool) -> optax.GradientTransformation:
    """Returns the accumulation of gradients with a momentum that changes."""

    def init(params):
        return CyclingTraceState(
            count=jnp.zeros([], jnp.int32), trace=jax.tree.map(jnp.zeros_like, params)
        )

    def update(grads, state, params=None):
        del params
        decay = momentum(state.count)
        trace = jax.tree.map(lambda t, g: decay * t + g, state.trace, grads)
        updates = jax.tree.map(lambda t, g: decay * t + g, trace, grads) if nesterov else trace
        return updates, CyclingTraceState(optax.safe_increment(state.count), trace)

    return optax.GradientTransformation(init, update)
