"""Classification losses for soft targets and for several labels per example, in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mmjax.errors import UserError


def softmax_cross_entropy(
    logits: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Returns the mean cross entropy with class probabilities as targets.

    Args:
      logits: [N, C].
      targets: Probabilities [N, C] (one-hot, smoothed or mixed), which sum to 1 over classes.
      mask: Weight of each example, [N]. None weights all examples equally.

    Returns:
      A float32 scalar: the weighted mean, or 0 if all weights are 0.
    """
    losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets.astype(jnp.float32))
    return masked_mean(losses, mask)


def sigmoid_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    mask: jax.Array | None = None,
    balance: bool = True,
    groups: int = 1,
) -> jax.Array:
    """Returns VATT's multi-label loss: binary cross entropies summed over classes.

    With `balance`, example b has the weight w_b = Σ_c (y_bc / n_c) / Σ_c y_bc, where n_c = Σ_b y_bc
    counts class c in the batch, so that rare classes have larger weights. An example without
    labels has weight 0 (0 / 0 in VATT's published code), but it still counts in the mean.

    Args:
      logits: [N, C].
      targets: [N, C] in [0, 1].
      mask: [N], 1 for valid examples. Other examples are excluded from the mean and from n_c.
      balance: Whether to weight examples by inverse class frequency.
      groups: Number of equal, consecutive parts of the batch within which classes are counted.
        Data-parallel VATT counts within each replica. The scale of the loss depends on it, because
        n_c grows with the batch.

    Returns:
      A float32 scalar, or 0 if no example is valid.

    Raises:
      UserError: `groups` does not divide N.

    Source: Akbari et al. 2021 (VATT), published code.
    """
    targets = targets.astype(jnp.float32)
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).sum(axis=-1)
    if balance:
        count = targets.shape[0]
        if groups < 1 or count % groups:
            raise UserError(f"groups={groups} must divide the batch size, {count}.")
        labels = targets if mask is None else targets * mask[:, None]
        labels = labels.reshape(groups, -1, targets.shape[-1])
        occurrences = labels.sum(axis=1, keepdims=True)
        weights = _ratio(labels, occurrences).sum(axis=-1)
        losses *= _ratio(weights, labels.sum(axis=-1)).reshape(-1)
    return masked_mean(losses, mask)


def smooth_labels(targets: jax.Array, smoothing: float) -> jax.Array:
    """Returns targets [..., C] mixed with the uniform distribution of weight `smoothing`."""
    return (1.0 - smoothing) * targets + smoothing / targets.shape[-1]


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a / b, or 0 where b is 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)


def masked_mean(losses: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns the mean of losses weighted by `mask`, of the same shape; 0 if all weights are 0.

    Losses of weight 0 may be NaN: they do not affect the value. They do not affect the gradient
    either, if the derivative of their computation is finite.
    """
    if mask is None:
        return losses.mean()
    mask = mask.astype(jnp.float32)
    return _ratio(jnp.sum(jnp.where(mask > 0, losses, 0.0) * mask), mask.sum())
