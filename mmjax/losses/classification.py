"""Classification losses in float32: soft targets, several labels, examples that do not count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mmjax.errors import UserError


def softmax_cross_entropy(
    logits: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Mean cross entropy with probabilities as targets (one-hot, smoothed or mixed).

    Args:
      logits: [N, C].
      targets: [N, C], rows that sum to 1.
      mask: [N], the weight of each example; None is 1 for all.

    Returns:
      A float32 scalar: the weighted mean, 0 when no example counts.
    """
    losses = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets.astype(jnp.float32))
    return _mean(losses, mask)


def sigmoid_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    mask: jax.Array | None = None,
    balance: bool = True,
    groups: int = 1,
) -> jax.Array:
    """VATT's loss for several labels: binary cross entropies, summed over classes.

    With `balance`, example b counts w_b = Σ_c (y_bc / n_c) / Σ_c y_bc, where n_c = Σ_b y_bc is how
    often class c occurs in the batch: rare classes count more. An example without any label then
    counts 0 (VATT's published code gets 0 / 0 there), but is still one of the examples that the
    mean is over.

    Args:
      logits: [N, C].
      targets: [N, C] in [0, 1].
      mask: [N], 1 for examples that count; the others are not in the mean nor in n_c.
      balance: weigh by inverse occurrence.
      groups: count occurrences within each of so many equal, consecutive parts of the batch, as
        data-parallel VATT does on so many replicas. As n_c grows with the batch, this sets the
        scale of the loss.

    Returns:
      A float32 scalar, 0 when no example counts.

    Raises:
      UserError: `groups` does not divide N.
    """
    targets = targets.astype(jnp.float32)
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets).sum(axis=-1)
    if balance:
        count = targets.shape[0]
        if groups < 1 or count % groups:
            raise UserError(f"groups={groups} does not divide the batch of {count} examples.")
        labels = targets if mask is None else targets * mask[:, None]
        labels = labels.reshape(groups, -1, targets.shape[-1])
        occurrences = labels.sum(axis=1, keepdims=True)
        weights = _ratio(labels, occurrences).sum(axis=-1)
        losses *= _ratio(weights, labels.sum(axis=-1)).reshape(-1)
    return _mean(losses, mask)


def smooth_labels(targets: jax.Array, smoothing: float) -> jax.Array:
    """Gives a part `smoothing` of each row of [..., C] to all its classes alike."""
    return (1.0 - smoothing) * targets + smoothing / targets.shape[-1]


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, and 0 where b is 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)


def _mean(losses: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The mean weighed by `mask`; what weighs nothing is left out of the gradient too."""
    if mask is None:
        return losses.mean()
    mask = mask.astype(jnp.float32)
    return _ratio(jnp.sum(jnp.where(mask > 0, losses, 0.0) * mask), mask.sum())
