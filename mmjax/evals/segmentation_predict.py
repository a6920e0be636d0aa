"""Logits of images of any size: of whole images, or averages over overlapping windows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import step as step_lib
from mmjax.errors import UserError


class Predictor:
    """Computes the logits of batches of images with a predict function of a task.

    Args:
      predict: The function `(params, extra, batch) -> {'logits': [B, H, W, C]}`.
      num_classes: Number of classes C.
      window: Side of windows in pixels; 0 predicts whole images.
      overlap: Smallest overlap of neighboring windows as a fraction of their side.
    """

    def __init__(
        self, predict: Callable[..., Any], *, num_classes: int, window: int = 0, overlap: float = 0
    ):
        self._num_classes, self._window = num_classes, window
        self._stride = max(int(window * (1 - overlap)), 1)
        self._predict = jax.jit(functools.partial(self._checked, predict))

    def check(self, state: Mapping[str, Any], batch: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        """Traces the predict function.

        Raises:
          UserError: Its logits have another shape than expected.
        """
        params = step_lib.evaluation_params(state)
        jax.eval_shape(self._predict, params, state["extra"], batch)

    def __call__(
        self, state: Mapping[str, Any], batch: Mapping[str, jax.Array], sizes: jax.Array
    ) -> jax.Array:
        """Returns the logits [B, H, W, C].

        Args:
          state: A train state.
          batch: `image` uint8 [B, H, W, 3] and other fields of the predict function.
          sizes: int [B, 2], the part of each image that is not padding, from its top left corner.
        """
        predict = functools.partial(
            self._predict, step_lib.evaluation_params(state), state["extra"]
        )
        if not self._window:
            return predict(batch)
        image = batch["image"]
        total = weights = None
        for row, column in np.ndindex(*(self._count(side) for side in image.shape[1:3])):
            starts, used = _window_starts((row, column), sizes, self._window, self._stride)
            logits = predict({**batch, "image": _cut(image, starts, self._window)})
            if total is None:
                total = jnp.zeros((*image.shape[:3], self._num_classes), jnp.float32)
                weights = jnp.zeros(image.shape[:3], jnp.float32)
            total, weights = _add(total, weights, logits, starts, used)
        return total / jnp.maximum(weights, 1)[..., None]

    def _count(self, length: int) -> int:
        """Returns the number of windows along an axis."""
        return math.ceil((length - self._window) / self._stride) + 1

    def _checked(self, predict: Callable[..., Any], params: Any, extra: Any, batch: Any):
        logits = predict(params, extra, batch)["logits"]
        expected = (*batch["image"].shape[:3], self._num_classes)
        if logits.shape != expected:
            raise UserError(
                f"The predict function 'logits' returns an array of shape {logits.shape} for "
                f"images of shape {batch['image'].shape}; expected {expected}, because the masks "
                f"have {self._num_classes} classes. Evaluate a model that was trained on these "
                "classes, and resize its logits to the size of the images."
            )
        return logits.astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _window_starts(
    position: tuple[int, int], sizes: jax.Array, window: int, stride: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the position of a window in each image, int [B, 2], and whether it is a new one.

    Windows start at multiples of the stride. The last one along an axis ends with the image; after
    it, the same window is repeated in images that need fewer windows than others.
    """
    index = jnp.array(position)
    last = jnp.maximum(sizes - window, 0)
    starts = jnp.minimum(index * stride, last)
    previous = jnp.minimum((index - 1) * stride, last)
    return starts, ((index == 0) | (starts > previous)).all(1)


@functools.partial(jax.jit, static_argnums=2)
def _cut(images: jax.Array, starts: jax.Array, window: int) -> jax.Array:
    def one(image, start):
        return jax.lax.dynamic_slice(image, (*start, 0), (window, window, image.shape[-1]))

    return jax.vmap(one)(images, starts)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _add(
    total: jax.Array, weights: jax.Array, logits: jax.Array, starts: jax.Array, used: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Adds the logits of windows to their sums, and counts the windows of each pixel."""

    def one(total, weights, logits, start, used):
        side = logits.shape[0]
        part = jax.lax.dynamic_slice(total, (*start, 0), logits.shape)
        counted = jax.lax.dynamic_slice(weights, tuple(start), (side, side))
        part = jnp.where(used, part + logits, part)
        return (
            jax.lax.dynamic_update_slice(total, part, (*start, 0)),
            jax.lax.dynamic_update_slice(weights, counted + used, tuple(start)),
        )

    return jax.vmap(one)(total, weights, logits, starts, used)
