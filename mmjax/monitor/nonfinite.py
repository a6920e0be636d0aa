"""Reaction to training steps and to weights that are not finite."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from absl import logging

from mmjax import files
from mmjax.errors import UserError


class NonfiniteGuard:
    """Stops training at a step that is not finite, or skips it, and records its batch.

    Args:
      directory: The run directory, where records are written.
      batch_ids: Step -> {name: array} that identify the examples of its batch.
      policy: 'stop' or 'skip'.
      limit: Number of skipped steps after which training stops.
      count: Number of steps that were skipped before this start.

    Attributes:
      count: Number of skipped steps.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        batch_ids: Callable[[int], Mapping[str, np.ndarray]],
        policy: str,
        limit: int,
        count: int = 0,
    ):
        self._directory, self._batch_ids = directory, batch_ids
        self._policy, self._limit, self.count = policy, limit, count

    def accepts(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Returns whether the metrics of a step are finite and may be used.

        Raises:
          UserError: The policy is 'stop', or more than `limit` steps were skipped.
        """
        if not metrics["nonfinite"]:
            return True
        self.count += 1
        path = self._directory / f"nonfinite_step_{step}.json"
        record = {
            "step": step,
            "metrics": {k: v if math.isfinite(v) else str(v) for k, v in metrics.items()},
            "batch_ids": {k: v.tolist() for k, v in self._batch_ids(step).items()},
        }
        if jax.process_index() == 0:
            files.write_json(path, record, indent=None)
        values = f"loss {metrics['loss']}, gradient norm {metrics['grad_norm']} at step {step}"
        if self._policy == "stop":
            raise UserError(
                f"Training stopped because a step is not finite: {values}. The examples of its "
                f"batch are listed in {path}; the last checkpoint precedes it. Lower the learning "
                "rate, clip gradients, or skip such steps with --config.nan_policy=skip."
            )
        if self.count > self._limit:
            raise UserError(
                f"{self.count} steps were not finite, more than config.nan_limit={self._limit}. "
                f"The last one: {values}. The examples of its batch are listed in {path}. Lower "
                "the learning rate or clip gradients."
            )
        logging.warning("Skipped a step that is not finite (%d so far): %s", self.count, values)
        return False


def warn_about_weights(
    arrays: Mapping[str, np.ndarray],
    source: object,
    keys: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Logs a warning that names every array with NaN or infinite values.

    Args:
      arrays: {path: array}.
      source: Where they come from, for the warning.
      keys: {path: keys of the source}, if they have other names there.
    """
    lines = []
    for path, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.kind in "biuSUO":
            continue
        finite = np.isfinite(array)
        if finite.all():
            continue
        names = list((keys or {}).get(path, ()))
        if len(names) > 1 and len(names) == len(array):  # one per layer
            layers = ~finite.reshape(len(array), -1).all(axis=1)
            names = [name for name, bad in zip(names, layers, strict=True) if bad]
        origin = f" ({', '.join(names)})" if names else ""
        lines.append(f"  {path}{origin}: {(~finite).sum():,} of {array.size:,} values")
    if lines:
        logging.warning("%s has values that are NaN or infinite:\n%s", source, "\n".join(lines))
