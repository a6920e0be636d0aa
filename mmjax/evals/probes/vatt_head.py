"""The classifier that VATT's published code trains on frozen features.

Dense(128, no activation) → Dropout(0.9) → Dense(C, softmax) with an L2 penalty of 0.1 on the last
kernel. Keras' Adam with a learning rate of 5e-4 minimizes the categorical cross-entropy in batches
of 64, including the last, smaller batch; the examples are shuffled in each of 1000 epochs. The
training is one compiled program.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmjax.evals.probes.linear import Linear, matmul
from mmjax.optim import optimizers, schedules

_HIDDEN, _DROPOUT, _PENALTY, _RATE, _BATCH = 128, 0.9, 0.1, 5e-4, 64

Params = dict[str, dict[str, jax.Array]]


def init(key: jax.Array, num_features: int, num_classes: int) -> Params:
    """Returns initial parameters: Glorot-normal kernels and zero biases."""
    keys = jax.random.split(key)
    glorot = jax.nn.initializers.glorot_normal()
    return {
        name: {"kernel": glorot(one, shape), "bias": jnp.zeros(shape[1])}
        for name, one, shape in (
            ("hidden", keys[0], (num_features, _HIDDEN)),
            ("classes", keys[1], (_HIDDEN, num_classes)),
        )
    }


def loss(
    params: Params, x: jax.Array, labels: jax.Array, weight: jax.Array, noise: jax.Array
) -> jax.Array:
    """Returns the mean cross-entropy of a batch plus the L2 penalty.

    Args:
      params: From `init`.
      x: Features [B, D].
      labels: int [B].
      weight: [B], 0 for padding.
      noise: Factors of the hidden units [B, 128], from `dropout`.
    """
    hidden = _dense(params["hidden"], x) * noise
    logits = _dense(params["classes"], hidden)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    penalty = _PENALTY * jnp.sum(params["classes"]["kernel"] ** 2)
    return jnp.sum(weight * losses) / jnp.sum(weight) + penalty


def dropout(key: jax.Array, batch_size: int, rate: float) -> jax.Array:
    """Returns factors [batch_size, 128]: 0 with probability `rate`, else 1 / (1 - rate)."""
    if not rate:
        return jnp.ones((batch_size, _HIDDEN))
    return jax.random.bernoulli(key, 1.0 - rate, (batch_size, _HIDDEN)) / (1.0 - rate)


@functools.partial(jax.jit, static_argnames=("epochs", "rate", "shuffle"))
def train(
    params: Params,
    x: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    *,
    epochs: int,
    rate: float = _DROPOUT,
    shuffle: bool = True,
) -> Params:
    """Returns the parameters after training.

    Args:
      params: Initial parameters.
      x: Features [N, D].
      labels: int [N].
      key: Random key of orders and dropout.
      epochs: Number of passes over the examples.
      rate: Dropout rate.
      shuffle: Whether to shuffle in every epoch; otherwise the order is that of x.
    """
    count = len(x)
    steps = -(-count // _BATCH)
    tx = optimizers.keras_adam(schedules.constant(base=_RATE))

    def epoch(carry, index):
        order_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
        order = jax.random.permutation(order_key, count) if shuffle else jnp.arange(count)
        order = jnp.pad(order, (0, steps * _BATCH - count), constant_values=count)

        def step(carry, inputs):
            params, state = carry
            examples, step_index = inputs
            weight = (examples < count).astype(x.dtype)
            examples = jnp.minimum(examples, count - 1)
            noise = dropout(jax.random.fold_in(noise_key, step_index), _BATCH, rate)
            grads = jax.grad(loss)(params, x[examples], labels[examples], weight, noise)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, (order.reshape(steps, _BATCH), jnp.arange(steps)))

    (params, _), _ = jax.lax.scan(epoch, (params, tx.init(params)), jnp.arange(epochs))
    return params


def fit(x: np.ndarray, labels: np.ndarray, *, num_classes: int, epochs: int, seed: int) -> Linear:
    """Returns the trained classifier. Without dropout, its two layers are one linear map.

    Args:
      x: Features [N, D].
      labels: int [N].
      num_classes: Number of classes C.
      epochs: Number of passes over the examples.
      seed: Seed of initialization, orders and dropout.
    """
    init_key, key = jax.random.split(jax.random.key(seed))
    params = init(init_key, x.shape[1], num_classes)
    params = train(params, jnp.asarray(x), jnp.asarray(labels), key, epochs=epochs)
    hidden, classes = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), (params["hidden"], params["classes"])
    )
    return Linear(
        (hidden["kernel"] @ classes["kernel"]).astype(np.float32),
        (hidden["bias"] @ classes["kernel"] + classes["bias"]).astype(np.float32),
    )


def _dense(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return matmul(x, params["kernel"]) + params["bias"]
