"""Runs evaluators on a train state. `eval_job` runs them in a separate process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from mmjax.errors import UserError
from mmjax.evals import Evaluator

FAILED = "failed"  # the metric `<evaluator>/failed` marks an evaluator that raised


def run_all(
    evaluators: Sequence[Evaluator], state: Mapping[str, Any], step: int
) -> dict[str, float]:
    """Runs evaluators on one state; they share features.

    An evaluator that raises is logged and reported as `{name/failed: 1}`; the others still run.

    Args:
      evaluators: The evaluators.
      state: The train state, with `params` (or `ema`) and `extra`.
      step: Number of completed updates.

    Returns:
      {name/metric: value}.
    """
    results: dict[str, float] = {}
    for evaluator in evaluators:
        try:
            results |= evaluator.run(state, step)
        except UserError as error:
            logging.error("Evaluator %s failed at step %d: %s", evaluator.name, step, error)
            results[f"{evaluator.name}/{FAILED}"] = 1.0
        except Exception:  # noqa: BLE001 - no failure may stop training
            logging.exception("Evaluator %s failed at step %d.", evaluator.name, step)
            results[f"{evaluator.name}/{FAILED}"] = 1.0
    for evaluator in evaluators:
        evaluator.store.clear()
    return results


def failures(results: Mapping[str, float]) -> list[str]:
    """Returns the names of the evaluators that failed, from the result of `run_all`."""
    return [name.removesuffix(f"/{FAILED}") for name in results if name.endswith(f"/{FAILED}")]
